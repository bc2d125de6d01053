"""IDetail's training data in the portrait world: an imperfect generator of one person in many lights.

InstantID does not quite draw the person of the photo (paper, figure 3): jaw, features, pose, clothes change. Nor does
this one, by a stated amount: all outputs of one person share a *drift* of its identity, clothes and pose, so they fit
each other better than the photo, which is why the paper pairs outputs with outputs; each output adds a small *jitter*
of its own to all of these.
"""

from dataclasses import dataclass, fields, replace

from ..configuration import option
from ..portraits import LANDMARKS, LIGHTINGS, Background, Draw, Light, Lighting, Person, render, why_slow
from ..portraits.parameters import Identity
from ..portraits.sampling import sample_background, sample_person
from .prompts import INPUT_PROMPTS, TARGET_PROMPTS, RelightPrompt, input_table
from .takes import INPUT, ORIGINAL, TARGET

COLORS = {
    "white": (1.0, 0.96, 0.90), "warm": (1.0, 0.72, 0.42), "sun": (1.0, 0.86, 0.66), "amber": (1.0, 0.62, 0.26),
    "orange": (1.0, 0.46, 0.16), "rose": (1.0, 0.46, 0.44), "red": (1.0, 0.06, 0.08), "pink": (1.0, 0.15, 0.55),
    "purple": (0.55, 0.15, 1.0), "blue": (0.12, 0.25, 1.0), "moon": (0.55, 0.70, 1.0), "sky": (0.66, 0.80, 1.0),
    "cool": (0.78, 0.88, 1.0), "cyan": (0.1, 0.75, 1.0), "green": (0.12, 1.0, 0.25), "leaf": (0.72, 1.0, 0.52),
}  # fmt: skip
# The photo was taken before anybody asked for an effect.
PLAIN_LIGHTS = ("studio", "daylight")


@dataclass(frozen=True)
class WorldSettings:
    """Who is drawn, in how many lights, and how well the imitated generator knows them."""

    population: int = option(0, "seed of the people: other populations share nobody", minimum=0)
    people: int = option(512, "how many people", minimum=1)
    inputs: int = option(8, "how many of the 60 input prompts each person gets", minimum=1, maximum=len(INPUT_PROMPTS))
    drift: float = option(0.5, "how far all outputs of a person are from the photo: shapes run from -1 to 1",
                          minimum=0, maximum=1)  # fmt: skip
    pose_drift: float = option(4.0, "degrees by which all outputs of a person hold the head otherwise than the photo",
                               minimum=0, maximum=20)  # fmt: skip
    jitter: float = option(0.06, "how far each output is from the others", minimum=0, maximum=1)
    pose_jitter: float = option(0.5, "degrees by which each output turns the head", minimum=0, maximum=20)
    size: int = option(128, "side of the square pictures in pixels", minimum=16, maximum=4096)


class IdetailPortraits:
    """``png`` is the picture, ``mask.png`` the foreground, ``txt`` the prompt, ``json`` what ``takes.Take`` reads.

    For each person one original, the 7 target effects and ``inputs`` of the 60 input prompts, drawn for the person.
    """

    name = "idetail_portraits"
    summary = "one person in many lights as an imperfect generator draws it, for IDetail; needs nothing"
    version = 1
    Settings = WorldSettings
    inputs = ""
    advice = staticmethod(why_slow)

    def __init__(self, settings: WorldSettings, device: str = "cpu"):
        """Renders on ``device``."""
        self.settings, self.device = settings, device
        self.takes = 1 + len(TARGET_PROMPTS) + settings.inputs
        self.count = settings.people * self.takes

    def parameters(self, item: int, seed: int) -> dict:
        """A take is a function of population and item alone."""
        person, take = divmod(item, self.takes)
        role, prompt = self._prompts(person)[take]
        return {"person": person, "take": take, "role": role, "prompt": prompt.name if prompt else ""}

    def _prompts(self, person: int) -> list[tuple[str, RelightPrompt | None]]:
        draw, left = Draw("inputs", self.settings.population, person), list(INPUT_PROMPTS)
        chosen = [left.pop(int(draw.number(0, len(left)))) for _ in range(self.settings.inputs)]
        return [(ORIGINAL, None), *((TARGET, prompt) for prompt in TARGET_PROMPTS),
                *((INPUT, prompt) for prompt in chosen)]  # fmt: skip

    def person(self, parameters: dict) -> Person:
        """Who the picture shows, in its light."""
        chosen, number = self.settings, parameters["person"]
        photo = original(chosen.population, number)
        if parameters["role"] == ORIGINAL:
            return photo
        drift = Draw("drift", chosen.population, number)
        own = Draw("jitter", chosen.population, number, parameters["take"])
        shared = turned(drifted(photo, drift, chosen.drift), drift, chosen.pose_drift)
        one = turned(drifted(shared, own, chosen.jitter), own, chosen.pose_jitter)
        return in_light(one, parameters["prompt"], chosen.population, number * self.takes + parameters["take"])

    def make(self, parameters: dict, seed: int) -> dict:
        """Render one take."""
        made = render(self.person(parameters), self.settings.size, self.device)
        points = made.landmarks[0, 0].tolist()
        _, prompt = self._prompts(parameters["person"])[parameters["take"]]
        truth = {
            **{name: parameters[name] for name in ("person", "role", "prompt")},
            "landmarks": {name: [round(x, 2) for x in point] for name, point in zip(LANDMARKS, points, strict=True)},
        }  # fmt: skip
        words = prompt.caption() if prompt else "a studio portrait of a <c>"
        return {"png": made.image[0].cpu(), "mask.png": made.alpha[0].cpu(), "txt": words, "json": truth}


def original(population: int, number: int) -> Person:
    """The photo of a person: as it is sampled, in plain light."""
    draw = Draw("photo", population, number)
    return in_light(sample_person(population, number), draw.pick(PLAIN_LIGHTS), population, number)


def in_light(person: Person, name: str, seed: int, take: int) -> Person:
    """The person in the light of a prompt by its name, before the background that belongs to it.

    seed, take: arrange the background. ``ValueError`` for a name that is no lighting and no input prompt.
    """
    if name in LIGHTINGS:
        return replace(person, lighting=LIGHTINGS[name].lighting, background=sample_background(seed, take, name))
    rows = {row["name"]: row for row in input_table()}
    if name not in rows:
        raise ValueError(f"prompt is {name!r}: choose one of {', '.join([*LIGHTINGS, *rows])}.")
    row = rows[name]
    wall = sample_background(seed, take).color
    return replace(person, lighting=light_of(row), background=Background(row["background"], wall, take))


def light_of(row: dict) -> Lighting:
    """The light that a row of ``input_prompts.json`` means.

    ``lights``: azimuth, elevation, colour, power, softness, and darkness of window bars where there are any;
    ``ambient``: level and colour from above, half as much from below.
    """
    lights = tuple(
        Light(azimuth, elevation, COLORS[color], power, softness, grill=grill[0] if grill else 0.0)
        for azimuth, elevation, color, power, softness, *grill in row["lights"]
    )
    level, color = row["ambient"]
    sky = tuple(round(level * part, 4) for part in COLORS[color])
    return Lighting(row["name"], lights, sky, tuple(round(part / 2, 4) for part in sky))


def drifted(person: Person, draw: Draw, strength: float) -> Person:
    """The person with shapes of face and body moved by up to ``strength``, and the clothes' colours a little."""
    who, moved = person.identity, {}
    for entry in fields(Identity):
        if entry.metadata.get("low") == -1:
            moved[entry.name] = max(-1.0, min(1.0, getattr(who, entry.name) + strength * draw.shape()))
    moved["skin"] = max(0.0, min(1.0, who.skin + 0.15 * strength * draw.shape()))
    colors = {
        name: tuple(max(0.0, min(1.0, part * (1 + 0.6 * strength * draw.shape())))
                    for part in getattr(person.costume, name))
        for name in ("primary", "secondary")
    }  # fmt: skip
    return replace(person, identity=replace(who, **moved), costume=replace(person.costume, **colors))


def turned(person: Person, draw: Draw, degrees: float) -> Person:
    """The person with its head moved by up to so many degrees around each axis."""
    pose = person.pose
    moved = {
        name: max(-limit, min(limit, getattr(pose, name) + degrees * draw.shape()))
        for name, limit in (("yaw", 75), ("pitch", 30), ("roll", 30))
    }
    return replace(person, pose=replace(pose, **moved))
