"""What a portrait is made of. Every value is a parameter with a documented range, so exact counterfactuals exist.

Angles are in degrees, colours are linear RGB in 0..1, shapes run from -1 (least) to 1 (most) around an average face.
Lengths are in head units: a head is about 2 units high. ``x`` points to the right of the picture, ``y`` up and ``z`` to
the camera. Every class checks itself: a value out of its range raises ``ValueError`` naming the value and the mend.
"""

from dataclasses import dataclass, field, fields

EYE_COLORS = {
    "brown": (0.16, 0.065, 0.025), "hazel": (0.30, 0.17, 0.045), "amber": (0.45, 0.22, 0.03),
    "green": (0.10, 0.30, 0.11), "blue": (0.07, 0.22, 0.52), "grey": (0.24, 0.31, 0.36),
}  # fmt: skip
HAIR_COLORS = {
    "black": (0.022, 0.018, 0.018), "dark brown": (0.075, 0.035, 0.018), "brown": (0.17, 0.075, 0.032),
    "chestnut": (0.26, 0.085, 0.028), "auburn": (0.38, 0.10, 0.022), "ginger": (0.62, 0.20, 0.035),
    "blond": (0.72, 0.47, 0.17), "platinum": (0.83, 0.75, 0.56), "grey": (0.42, 0.43, 0.45),
    "white": (0.82, 0.82, 0.80), "blue": (0.06, 0.16, 0.52), "pink": (0.80, 0.22, 0.42),
}  # fmt: skip
HAIR_STYLES = (
    "bald", "buzz", "short", "quiff", "side part", "curly", "afro", "bob", "long", "wavy", "bun", "ponytail", "pigtails"
)  # fmt: skip
EXPRESSIONS = ("neutral", "angry", "shocked", "laughing", "crying")
COSTUMES = ("everyday", "flower", "sheep", "santa", "royal")
GARMENTS = ("t-shirt", "shirt", "jacket", "hoodie", "turtleneck", "scarf")
PATTERNS = ("plain", "stripes", "checks", "dots")
VIEWS = ("portrait", "body")


def ranged(default: float, low: float, high: float, help: str):
    """A number from ``low`` to ``high``, both included."""
    return field(default=default, metadata={"low": low, "high": high, "help": help})


def chosen(default: str, choices, help: str):
    """One of ``choices``."""
    return field(default=default, metadata={"choices": tuple(choices), "help": help})


def color(default: tuple, help: str):
    """A linear RGB triple in 0..1."""
    return field(default=default, metadata={"color": True, "help": help})


class Checked:
    """Checks every field against its metadata when the object is made."""

    def __post_init__(self):
        for entry in fields(self):
            value, rule = getattr(self, entry.name), entry.metadata
            if "low" in rule and not rule["low"] <= value <= rule["high"]:
                raise ValueError(f"{entry.name} is {value}: give a number from {rule['low']} to {rule['high']}.")
            if "choices" in rule and value not in rule["choices"]:
                raise ValueError(f"{entry.name} is {value!r}: choose one of {', '.join(rule['choices'])}.")
            if "color" in rule and not (len(value) == 3 and all(0 <= part <= 1 for part in value)):
                raise ValueError(f"{entry.name} is {value}: give three numbers from 0 to 1 (linear RGB).")


@dataclass(frozen=True)
class Identity(Checked):
    """Who it is: everything that stays the same under every edit."""

    label: int = 0
    skin: float = ranged(0.3, 0, 1, "skin tone, light to dark")
    undertone: float = ranged(0, -1, 1, "skin undertone, pink to golden")
    face_width: float = ranged(0, -1, 1, "width of the skull and cheekbones")
    face_length: float = ranged(0, -1, 1, "distance from the eyes to the chin")
    jaw: float = ranged(0, -1, 1, "width of the jaw, pointed to square")
    chin: float = ranged(0, -1, 1, "how far the chin stands out")
    cheeks: float = ranged(0, -1, 1, "fullness of the cheeks")
    eye_size: float = ranged(0, -1, 1, "size of the eyes")
    eye_spacing: float = ranged(0, -1, 1, "distance between the eyes")
    eye_tilt: float = ranged(0, -1, 1, "outer corners down to up")
    eye_color: str = chosen("brown", EYE_COLORS, "colour of the iris")
    lashes: float = ranged(0.3, 0, 1, "strength of the lashes")
    brow_thickness: float = ranged(0, -1, 1, "thickness of the brows")
    brow_arch: float = ranged(0, -1, 1, "straight to arched brows")
    nose_width: float = ranged(0, -1, 1, "width of the nose at the nostrils")
    nose_length: float = ranged(0, -1, 1, "length of the nose")
    nose_bridge: float = ranged(0, -1, 1, "flat to high bridge")
    mouth_width: float = ranged(0, -1, 1, "width of the mouth")
    lip_fullness: float = ranged(0, -1, 1, "fullness of the lips")
    lip_color: float = ranged(0.3, 0, 1, "natural to red lips")
    ear_size: float = ranged(0, -1, 1, "size of the ears")
    hair_style: str = chosen("short", HAIR_STYLES, "cut of the hair")
    hair_color: str = chosen("brown", HAIR_COLORS, "colour of hair, brows and beard")
    hair_volume: float = ranged(0, -1, 1, "thickness of the hair")
    fringe: float = ranged(0, 0, 1, "how far hair falls over the forehead")
    beard: str = chosen("none", ("none", "stubble", "short", "full"), "beard")
    moustache: float = ranged(0, 0, 1, "strength of the moustache")
    glasses: str = chosen("none", ("none", "round", "square"), "glasses")
    glasses_color: tuple = color((0.05, 0.04, 0.04), "colour of the frame")
    freckles: float = ranged(0, 0, 1, "number of freckles")
    mole: float = ranged(0, 0, 1, "0: none; else which of the places on the face it has")
    blush: float = ranged(0.35, 0, 1, "redness of the cheeks")
    build: float = ranged(0, -1, 1, "slender to stout body and neck")
    height: float = ranged(0, -1, 1, "short to tall body")
    age: float = ranged(0.3, 0, 1, "smooth skin to wrinkles")


@dataclass(frozen=True)
class Pose(Checked):
    """How head and body are held. Positive yaw turns to the right of the picture, positive pitch looks up."""

    yaw: float = ranged(0, -75, 75, "turn of the head against the camera")
    pitch: float = ranged(0, -30, 30, "nod of the head")
    roll: float = ranged(0, -30, 30, "tilt of the head")
    turn: float = ranged(0, -180, 180, "turn of the whole body")
    gaze_x: float = ranged(0, -1, 1, "eyes to the left or right of the face")
    gaze_y: float = ranged(0, -1, 1, "eyes down or up")
    left_shoulder: float = ranged(14, -30, 150, "left arm away from the body")
    right_shoulder: float = ranged(14, -30, 150, "right arm away from the body")
    left_swing: float = ranged(0, -80, 120, "left arm forward")
    right_swing: float = ranged(0, -80, 120, "right arm forward")
    left_elbow: float = ranged(12, 0, 140, "bend of the left elbow")
    right_elbow: float = ranged(12, 0, 140, "bend of the right elbow")
    left_hip: float = ranged(0, -50, 90, "left leg forward")
    right_hip: float = ranged(0, -50, 90, "right leg forward")
    left_knee: float = ranged(0, 0, 120, "bend of the left knee")
    right_knee: float = ranged(0, 0, 120, "bend of the right knee")
    stance: float = ranged(6, 0, 40, "legs apart, each")


@dataclass(frozen=True)
class Expression(Checked):
    """One of the cartoon expressions, and how much of it."""

    kind: str = chosen("neutral", EXPRESSIONS, "expression")
    strength: float = ranged(1, 0, 1, "nothing to full")


@dataclass(frozen=True)
class Costume(Checked):
    """What is worn. ``garment`` and ``pattern`` count for everyday clothes only."""

    kind: str = chosen("everyday", COSTUMES, "costume")
    garment: str = chosen("t-shirt", GARMENTS, "everyday garment")
    pattern: str = chosen("plain", PATTERNS, "pattern of the cloth")
    primary: tuple = color((0.10, 0.22, 0.42), "main colour (petals in the flower costume)")
    secondary: tuple = color((0.75, 0.72, 0.66), "second colour: pattern, shirt under the jacket, scarf")
    trousers: tuple = color((0.07, 0.09, 0.15), "colour of the trousers")


@dataclass(frozen=True)
class Light(Checked):
    """A distant light. ``azimuth`` 0 is the camera, 90 the right of the picture, 180 behind; ``elevation`` 90 above."""

    azimuth: float = ranged(-35, -180, 180, "where it comes from, around")
    elevation: float = ranged(35, -90, 90, "where it comes from, up")
    color: tuple = color((1.0, 0.96, 0.9), "colour")
    power: float = ranged(1, 0, 8, "brightness")
    softness: float = ranged(0.4, 0, 1, "hard sun to large soft box")
    shadow: float = ranged(1, 0, 1, "how dark its cast shadows are")
    grill: float = ranged(0, 0, 1, "how dark the bars of the window before it are")


@dataclass(frozen=True)
class Lighting(Checked):
    """All light of a scene; ``name`` is one of ``LIGHTINGS`` or free."""

    name: str = "studio"
    lights: tuple[Light, ...] = (Light(), Light(azimuth=60, elevation=10, power=0.35, softness=1, shadow=0.3))
    sky: tuple = color((0.34, 0.36, 0.40), "light from above, from everywhere")
    ground: tuple = color((0.20, 0.17, 0.15), "light from below, from everywhere")
    exposure: float = ranged(1, 0.05, 8, "exposure of the film")


@dataclass(frozen=True)
class Background(Checked):
    """What is behind. ``kind`` is one of ``backgrounds.KINDS``; ``seed`` arranges lights, hills, flowers."""

    kind: str = "studio"
    color: tuple = color((0.30, 0.36, 0.44), "main colour, where the kind has one")
    seed: int = 0


@dataclass(frozen=True)
class Person:
    """One person in a scene, and the scene when it is alone."""

    identity: Identity = Identity()
    pose: Pose = Pose()
    expression: Expression = Expression()
    costume: Costume = Costume()
    lighting: Lighting = Lighting()
    background: Background = Background()
    view: str = "portrait"

    def __post_init__(self):
        if self.view not in VIEWS:
            raise ValueError(f"view is {self.view!r}: choose one of {', '.join(VIEWS)}.")
