"""The head's skin: skull, jaw, cheeks, nose, ears and neck, as one smooth surface, and how identity shapes them."""

import numpy as np

from .parameters import Identity, Person
from .parts import Part
from .shapes import Bone, Group, capsule, ellipsoid, rotation

# Linear RGB at skin = 0, 0.25, 0.5, 0.75, 1.
SKIN_TONES = np.array(
    [[0.86, 0.60, 0.47], [0.74, 0.45, 0.31], [0.50, 0.27, 0.165], [0.26, 0.125, 0.07], [0.105, 0.048, 0.028]]
)
# What the face does, by expression: at strength 1, against neutral.
NEUTRAL = {
    "raise": 0.0, "furrow": 0.0, "inner_up": 0.0, "lid": 1.0, "squint": 0.0, "mouth_open": 0.0, "mouth_width": 1.0,
    "smile": 0.14, "teeth": 0.0, "tears": 0.0, "flush": 0.0,
}  # fmt: skip
EXPRESSION_CHANGES = {
    "neutral": {},
    "angry": {"raise": -0.6, "furrow": 1.0, "lid": 0.74, "smile": -0.85, "mouth_width": 0.86, "mouth_open": 0.16,
              "teeth": 1.0, "flush": 0.5},
    "shocked": {"raise": 1.0, "lid": 1.42, "smile": 0.0, "mouth_open": 1.0, "mouth_width": 0.60, "teeth": 0.25},
    "laughing": {"raise": 0.35, "lid": 0.30, "squint": 1.0, "smile": 1.0, "mouth_open": 0.82, "mouth_width": 1.28,
                 "teeth": 1.0, "flush": 0.35},
    "crying": {"raise": 0.1, "inner_up": 1.0, "lid": 0.56, "smile": -1.0, "mouth_open": 0.34, "mouth_width": 1.05,
               "teeth": 0.6, "tears": 1.0, "flush": 0.7},
}  # fmt: skip


def expression_values(person: Person) -> dict[str, float]:
    """The coefficients of the face for this person's expression."""
    strength = person.expression.strength
    change = EXPRESSION_CHANGES[person.expression.kind]
    return {key: value + strength * (change.get(key, value) - value) for key, value in NEUTRAL.items()}


def skin_color(identity: Identity) -> tuple[float, float, float]:
    """Linear RGB of the skin."""
    place = identity.skin * (len(SKIN_TONES) - 1)
    low = min(int(place), len(SKIN_TONES) - 2)
    tone = SKIN_TONES[low] ** (1 - place + low) * SKIN_TONES[low + 1] ** (place - low)
    tint = 1 + identity.undertone * np.array([-0.03, 0.04, -0.10])
    return tuple(float(value) for value in np.clip(tone * tint, 0, 1))


def face_layout(identity: Identity) -> dict[str, float]:
    """Where features lie in the plane of the face, in head units."""
    long = identity.face_length
    return {
        "eye_x": 0.325 + 0.045 * identity.eye_spacing, "eye_y": 0.05,
        "eye_w": 0.185 * (1 + 0.16 * identity.eye_size), "eye_h": 0.098 * (1 + 0.22 * identity.eye_size),
        "nose_y": -0.28 - 0.07 * identity.nose_length - 0.03 * long, "mouth_y": -0.57 - 0.07 * long,
        "mouth_w": 0.27 * (1 + 0.2 * identity.mouth_width), "chin_y": -0.98 - 0.11 * long,
    }  # fmt: skip


def head_group(person: Person, head: Bone) -> Group:
    """The skin of the head, both halves alike."""
    identity, layout, express = person.identity, face_layout(person.identity), expression_values(person)
    shapes = [*_skull(identity, layout), *_nose(identity, layout), _ear(identity)]
    bumps = _feature_bumps(identity, layout) + _expression_bumps(layout, express, identity)
    texture = {**layout, **express, **_paint_values(person)}
    return Group(
        "head", head, "head", Part.FACE, shapes, 0.05, bumps, texture=texture, iuv="head", mirrored=True, shadow=8
    )


def neck_group(person: Person, head: Bone, torso: Bone) -> Group:
    """The neck, from inside the head to inside the torso."""
    wide = 0.35 * (1 + 0.17 * person.identity.build)
    shape = capsule(torso.to_local(head.to_world((0, -0.42, -0.20))), (0, -0.25, 0), wide, skin_color(person.identity))
    return Group("neck", torso, "bare", Part.NECK, [shape], iuv="torso")


def _skull(identity, layout):
    wide, jaw, long = 0.055 * identity.face_width, identity.jaw, 0.06 * identity.face_length
    chin_y, cheek = layout["chin_y"], identity.cheeks
    shapes = [
        ellipsoid((0, 0.26, -0.10), (0.77 + wide, 0.80, 0.84)),
        ellipsoid((0, -0.16, 0.16), (0.665 + wide, 0.66 + long, 0.60)),
        ellipsoid((0, -0.56 - long, 0.17), (0.49 + 0.075 * jaw + 0.5 * wide, 0.36, 0.50)),
        ellipsoid((0, chin_y + 0.13, 0.50 + 0.035 * identity.chin), (0.17 + 0.05 * jaw, 0.14, 0.16)),
    ]
    center = (0.41 + 0.5 * wide, -0.25 - 0.04 * cheek, 0.46)
    return [*shapes, ellipsoid(center, (0.23 + 0.045 * cheek, 0.22 + 0.03 * cheek, 0.20 + 0.03 * cheek))]


def _nose(identity, layout):
    y, wide, bridge = layout["nose_y"], 1 + 0.26 * identity.nose_width, 0.035 * identity.nose_bridge
    return [
        ellipsoid((0, y + 0.03, 0.88), (0.108 * wide, 0.090, 0.125)),
        ellipsoid(
            (0, 0.12 + 0.5 * y, 0.74 + bridge),
            (0.078 * (1 + 0.12 * identity.nose_width), 0.32, 0.10),
            turn=rotation(0, 17, 0),
        ),
        ellipsoid((0.105 * wide, y + 0.005, 0.80), (0.062 * wide, 0.058, 0.095)),
    ]


def _ear(identity):
    size = 1 + 0.22 * identity.ear_size
    wide = 0.055 * identity.face_width
    return ellipsoid((0.80 + wide, -0.04, -0.06), (0.075, 0.215 * size, 0.135 * size), turn=rotation(24, 8))


def _feature_bumps(identity, layout):
    x, y = layout["eye_x"], layout["eye_y"]
    mouth, full = layout["mouth_y"], 1 + 0.45 * identity.lip_fullness
    bumps = [
        (ellipsoid((0, mouth + 0.045, 0.74), (0.17, 0.045, 0.2)), 0.024 * full),
        (ellipsoid((0, mouth - 0.06, 0.74), (0.15, 0.05, 0.2)), 0.032 * full),
        (ellipsoid((0, mouth - 0.155, 0.72), (0.15, 0.05, 0.2)), -0.018),
        (ellipsoid((0, mouth + 0.13, 0.78), (0.035, 0.06, 0.2)), -0.010),
    ]
    return bumps + [
        (ellipsoid((x, y + 0.02, 0.72), (0.24, 0.17, 0.26)), -0.075),
        (ellipsoid((x, y, 0.66), (0.17, 0.125, 0.3)), 0.042),
        (ellipsoid((x, y + 0.25, 0.72), (0.22, 0.065, 0.2)), 0.022),
        (ellipsoid((0.82, -0.04, 0.03), (0.08, 0.12, 0.06)), -0.022),
    ]


def _expression_bumps(layout, express, identity):
    """Reliefs only: an expression changes nothing outside of the head's skin and casts no shadow on anything else."""
    mouth, width = layout["mouth_y"], layout["mouth_w"] * express["mouth_width"]
    fold = 0.010 + 0.020 * max(express["smile"] - 0.14, 0) + 0.012 * identity.age
    bumps = [
        (ellipsoid((0, mouth - 0.1, 0.74), (0.16, 0.12, 0.2)), -0.035 * express["mouth_open"]),
        (ellipsoid((0, layout["chin_y"] - 0.02, 0.45), (0.3, 0.16, 0.35)), 0.085 * express["mouth_open"]),
        (ellipsoid((0, 0.22, 0.78), (0.05, 0.09, 0.2)), -0.03 * express["furrow"]),
    ]
    crease = capsule((0.16, layout["nose_y"] + 0.02, 0.74), (width + 0.06, mouth + 0.02, 0.64), 0.035)
    cheek = ellipsoid((0.42, -0.22, 0.62), (0.2, 0.15, 0.2))
    bumps += [(crease, -fold), (cheek, 0.045 * max(express["smile"] - 0.14, 0) + 0.02 * express["squint"])]
    return [(shape, height) for shape, height in bumps if height]


def _paint_values(person):
    from .parameters import EYE_COLORS, HAIR_COLORS

    identity, pose = person.identity, person.pose
    hair = HAIR_COLORS[identity.hair_color]
    stubble = {"none": 0.0, "stubble": 0.55, "short": 1.0, "full": 1.0}[identity.beard]
    scalp = {"bald": 0.0, "buzz": 0.8}.get(identity.hair_style, 1.0)
    return {
        "skin": skin_color(identity), "hair": hair, "iris": EYE_COLORS[identity.eye_color], "tilt": identity.eye_tilt,
        "lashes": identity.lashes, "brow_thickness": identity.brow_thickness, "brow_arch": identity.brow_arch,
        "lip_fullness": identity.lip_fullness, "lip_color": identity.lip_color, "freckles": identity.freckles,
        "mole": identity.mole, "blush": identity.blush, "age": identity.age, "stubble": stubble, "scalp": scalp,
        "moustache": identity.moustache, "gaze_x": pose.gaze_x, "gaze_y": pose.gaze_y, "dark": identity.skin,
    }  # fmt: skip
