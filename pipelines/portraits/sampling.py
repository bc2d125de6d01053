"""People at random: a person is a function of (seed, index), and every aspect of it has its own stream.

So another pose or costume of person 7 is still person 7, and drawing more people changes none that exist.
"""

from dataclasses import fields, replace

import torch

from ..randomness import generator
from .lightings import LIGHTINGS
from .parameters import (
    COSTUMES,
    EXPRESSIONS,
    EYE_COLORS,
    GARMENTS,
    PATTERNS,
    Background,
    Costume,
    Expression,
    Identity,
    Person,
    Pose,
)  # fmt: skip

STUDIO_BACKGROUNDS = ("studio", "gradient", "window", "shelf", "plain", "stripes")
LONG_STYLES = ("bob", "long", "wavy", "bun", "ponytail", "pigtails", "side part", "curly", "afro", "short")
SHORT_STYLES = ("short", "side part", "quiff", "buzz", "curly", "bald", "afro", "short", "long")
CLOTH_COLORS = (
    (0.09, 0.20, 0.42), (0.46, 0.06, 0.06), (0.06, 0.26, 0.17), (0.66, 0.42, 0.07), (0.20, 0.07, 0.24),
    (0.05, 0.055, 0.07), (0.70, 0.67, 0.60), (0.60, 0.19, 0.09), (0.10, 0.34, 0.40), (0.56, 0.26, 0.32),
    (0.25, 0.27, 0.10), (0.28, 0.38, 0.58), (0.22, 0.21, 0.21), (0.42, 0.27, 0.14),
)  # fmt: skip
PETAL_COLORS = ((0.85, 0.20, 0.36), (0.92, 0.58, 0.03), (0.80, 0.10, 0.08), (0.50, 0.16, 0.70), (0.30, 0.40, 0.88))
FRAME_COLORS = ((0.03, 0.03, 0.03), (0.16, 0.05, 0.02), (0.35, 0.02, 0.03), (0.5, 0.36, 0.14), (0.03, 0.07, 0.2))
WALL_COLORS = (
    (0.30, 0.38, 0.46), (0.46, 0.40, 0.33), (0.24, 0.33, 0.28), (0.45, 0.30, 0.26), (0.34, 0.30, 0.42),
    (0.42, 0.42, 0.40),    (0.16, 0.24, 0.34), (0.52, 0.42, 0.24),
)  # fmt: skip


class Draw:
    """Random values of one purpose, in order."""

    def __init__(self, *keys: int | str):
        self._values = iter(torch.rand(128, generator=generator("portrait", *keys), dtype=torch.float64).tolist())

    def number(self, low: float = 0, high: float = 1) -> float:
        """Uniform."""
        return low + (high - low) * next(self._values)

    def shape(self) -> float:
        """-1..1, more often near the middle, never bunched at the ends."""
        return 0.62 * self.number(-1, 1) + 0.38 * self.number(-1, 1)

    def pick(self, choices):
        """One of ``choices``."""
        return choices[int(next(self._values) * len(choices))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return next(self._values) < probability


def sample_identity(seed: int, index: int) -> Identity:
    """The person number ``index`` of the population ``seed``."""
    draw = Draw("identity", seed, index)
    skin, age, soft = draw.number(), draw.number() ** 1.5, draw.chance(0.5)
    shapes = {
        entry.name: round(draw.shape(), 3)
        for entry in fields(Identity) if entry.metadata.get("low") == -1
    }  # fmt: skip
    shapes["jaw"] = max(-1.0, min(1.0, shapes["jaw"] + (-0.35 if soft else 0.3)))
    shapes["lip_fullness"] = max(-1.0, min(1.0, shapes["lip_fullness"] + (0.3 if soft else -0.1) + 0.3 * (skin - 0.4)))
    beard = "none" if soft else draw.pick(("none", "none", "stubble", "short", "full"))
    return Identity(
        label=index, skin=skin, age=age, **shapes, eye_color=_eye_color(draw, skin),
        lashes=draw.number(0.5, 1) if soft else draw.number(0, 0.35),
        lip_color=draw.number(0.1, 0.95) if soft else draw.number(0, 0.3),
        hair_style=draw.pick(LONG_STYLES if soft else SHORT_STYLES), hair_color=_hair_color(draw, skin, age),
        fringe=draw.number(0.3, 1) if draw.chance(0.4) else 0.0,
        beard=beard, moustache=draw.number(0.6, 1) if not soft and draw.chance(0.25) else 0.0,
        glasses=draw.pick(("round", "square")) if draw.chance(0.25) else "none",
        glasses_color=draw.pick(FRAME_COLORS),
        freckles=draw.number(0.4, 1) if draw.chance(0.22) and skin < 0.6 else 0.0,
        mole=draw.number(0.05, 1) if draw.chance(0.15) else 0.0, blush=draw.number(0.15, 0.7),
    )  # fmt: skip


def _eye_color(draw: Draw, skin: float) -> str:
    return (
        draw.pick(tuple(EYE_COLORS))
        if skin < 0.5
        else draw.pick(("brown", "brown", "brown", "hazel", "amber", "green"))
    )


def _hair_color(draw: Draw, skin: float, age: float) -> str:
    old, dyed, place = draw.number(), draw.number(), draw.number()
    if age > 0.62 and old < 0.75:
        return "white" if old < 0.3 else "grey"
    if dyed < 0.05:
        return "blue" if place < 0.5 else "pink"
    dark = ("black", "black", "dark brown", "brown", "auburn")
    light = ("black", "dark brown", "brown", "chestnut", "auburn", "ginger", "blond", "blond", "platinum")
    colors = light if skin < 0.5 else dark
    return colors[int(place * len(colors))]


def sample_pose(seed: int, index: int, view: str = "portrait") -> Pose:
    """A pose: mostly facing the camera in a portrait, free arms and legs in a full body."""
    draw = Draw("pose", view, seed, index)
    if view == "portrait":
        yaw = 34 * draw.shape()
        gaze = max(-1.0, min(1.0, -yaw / 45))
        return Pose(yaw=yaw, pitch=9 * draw.shape(), roll=9 * draw.shape(), turn=0.35 * yaw + 8 * draw.shape(),
                    gaze_x=gaze, gaze_y=0.3 * draw.shape())  # fmt: skip
    turn = draw.pick((0, 0, 35, -35, 70, -70, 180, 140)) + 15 * draw.shape()
    return Pose(
        turn=max(-180.0, min(180.0, turn)), yaw=25 * draw.shape(), pitch=8 * draw.shape(), roll=8 * draw.shape(),
        left_shoulder=draw.number(6, 60), right_shoulder=draw.number(6, 60),
        left_swing=draw.number(-30, 60), right_swing=draw.number(-30, 60),
        left_elbow=draw.number(5, 95), right_elbow=draw.number(5, 95),
        left_hip=draw.number(-20, 35), right_hip=draw.number(-20, 35),
        left_knee=draw.number(0, 40), right_knee=draw.number(0, 40), stance=draw.number(2, 14),
    )  # fmt: skip


def sample_costume(seed: int, index: int, kind: str | None = None) -> Costume:
    """Everyday clothes, or a costume in colours of its own."""
    draw = Draw("costume", seed, index)
    kind = kind or ("everyday" if draw.chance(0.6) else draw.pick(COSTUMES[1:]))
    first = draw.pick(CLOTH_COLORS)
    second = draw.pick([color for color in CLOTH_COLORS if abs(sum(color) - sum(first)) > 0.35])
    petals = draw.pick(PETAL_COLORS)
    trousers = draw.pick(((0.06, 0.09, 0.16), (0.03, 0.03, 0.035), (0.28, 0.21, 0.13), (0.14, 0.15, 0.16)))
    garment, pattern = draw.pick(GARMENTS), draw.pick(("plain", *PATTERNS))
    return Costume(kind, garment, pattern, petals if kind == "flower" else first, second,
                   trousers)  # fmt: skip


def sample_person(seed: int, index: int, view: str = "portrait") -> Person:
    """A whole person and scene for (seed, index): the same on every machine. ``view``: "portrait" or "body"."""
    draw = Draw("scene", seed, index)
    kind, strength = draw.pick(EXPRESSIONS), draw.number(0.75, 1)
    name = draw.pick(tuple(LIGHTINGS)) if draw.chance(0.5) else draw.pick(("studio", "daylight"))
    person = Person(
        sample_identity(seed, index), sample_pose(seed, index, view), Expression(kind, strength),
        sample_costume(seed, index), view=view,
    )  # fmt: skip
    return replace(lit(person, name), background=sample_background(seed, index, name))


def sample_take(
    seed: int, index: int, take: int, view: str = "portrait", everyday: float = 0.4, plain_light: float = 0.2
) -> Person:
    """Picture number ``take`` of a population ``seed``, showing its person ``index``.

    Pose, expression, costume, light and background are the take's own. ``everyday``: share of everyday clothes, the
    costumes share the rest; ``plain_light``: share of plain studio and daylight, all 17 lightings share the rest.
    """
    draw = Draw("take", seed, take)
    kind, strength = draw.pick(EXPRESSIONS), draw.number(0.75, 1)
    costume = "everyday" if draw.chance(everyday) else draw.pick(COSTUMES[1:])
    light = draw.pick(("studio", "daylight")) if draw.chance(plain_light) else draw.pick(tuple(LIGHTINGS))
    person = Person(
        sample_identity(seed, index), sample_pose(seed, take, view), Expression(kind, strength),
        sample_costume(seed, take, costume), view=view,
    )  # fmt: skip
    return replace(lit(person, light), background=sample_background(seed, take, light))


def sample_background(seed: int, index: int, lighting: str = "studio") -> Background:
    """The background that belongs to a lighting, arranged for (seed, index); a free choice for studio and daylight."""
    draw = Draw("background", seed, index)
    kind = LIGHTINGS[lighting].background.kind
    if lighting in ("studio", "daylight"):
        kind = draw.pick(STUDIO_BACKGROUNDS)
    return Background(kind, draw.pick(WALL_COLORS), index)


def lit(person: Person, name: str) -> Person:
    """The same person under the lighting ``name``, before the background that belongs to it."""
    if name not in LIGHTINGS:
        raise ValueError(f"lighting is {name!r}: choose one of {', '.join(LIGHTINGS)}.")
    chosen = LIGHTINGS[name]
    return replace(person, lighting=chosen.lighting, background=replace(chosen.background, seed=person.identity.label))


def edited(person: Person, **changes) -> Person:
    """A copy with some parameters changed, wherever they belong: ``edited(person, yaw=20, costume="royal")``.

    A whole part is given by its name (``pose=Pose(...)``), ``lighting`` also by its name in ``LIGHTINGS``,
    ``expression`` (at full strength) and ``costume`` also by their kind. A name that two parts have is written with its
    part, as in ``costume__primary``. Identity can only be replaced as a whole. ``ValueError`` for a name nothing has.
    """
    for key, value in changes.items():
        person = _changed(person, key, value)
    return person


def _changed(person: Person, key: str, value) -> Person:
    if key == "lighting" and isinstance(value, str):
        return lit(person, value)
    if key in ("expression", "costume") and isinstance(value, str):
        part = getattr(person, key)
        more = {"strength": 1.0} if key == "expression" else {}
        return replace(person, **{key: replace(part, kind=value, **more)})
    if key in {entry.name for entry in fields(Person)}:
        return replace(person, **{key: value})
    section, _, name = key.rpartition("__")
    parts = (section,) if section else ("pose", "expression", "costume", "background")
    owners = [part for part in parts if name in {entry.name for entry in fields(getattr(person, part, Draw) or Draw)}]
    if len(owners) != 1:
        raise ValueError(f"{key!r} names no single parameter: write part__name, as in pose__yaw or costume__primary.")
    return replace(person, **{owners[0]: replace(getattr(person, owners[0]), **{name: value})})
