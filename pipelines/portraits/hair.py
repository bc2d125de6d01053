"""Hair, beards and glasses: shapes over the head, each style a few lines."""

import numpy as np

from .parameters import HAIR_COLORS, Identity
from .parts import Part
from .shapes import Bone, Group, Shape, capsule, ellipsoid, rotation

LONG = ("bob", "long", "wavy")


def hair_groups(identity: Identity, head: Bone, covered: bool, hidden: bool) -> list[Group]:
    """The hair of a person; ``covered`` leaves only what shows under a hat, ``hidden`` nothing (under a hood)."""
    style = identity.hair_style
    if hidden or style in ("bald", "buzz"):
        return []
    color = HAIR_COLORS[identity.hair_color]
    thick = (1 + 0.45 * identity.hair_volume) * (0.55 if covered else 1)
    shapes = _cap(identity, thick, color) + STYLES[style](identity, thick, color, covered)
    if identity.fringe > 0.05 and not covered:
        shapes += _fringe(identity, thick, color)
    curl = {"curly": 0.75, "afro": 1.0}.get(style, 0.0)
    texture = {
        "flow": {"quiff": 1.0, "short": 0.5, "side part": 0.85, "bun": 0.6, "ponytail": 0.6}.get(style, 0.0),
        "wave": {"wavy": 0.8, "curly": 0.5}.get(style, 0.15), "curl": curl,
    }  # fmt: skip
    return [Group("hair", head, "hair", Part.HAIR, shapes, 0.07, carves=_face_window(identity, style), texture=texture,
                  carve_melt=0.025, iuv="head")]  # fmt: skip


def _cap(identity, thick, color) -> list[Shape]:
    wide = 0.055 * identity.face_width
    return [ellipsoid((0, 0.28, -0.13), (0.79 + wide + 0.05 * thick, 0.83 + 0.07 * thick, 0.87 + 0.05 * thick), color)]


def _face_window(identity, style) -> list[Shape]:
    """What is cut out of the hair so that the face shows."""
    high = {"afro": 0.02, "quiff": 0.03, "bob": -0.03}.get(style, 0.0) - 0.03 * identity.fringe
    wide = 0.045 * identity.face_width
    # Hair parted on one side shows more of the forehead there; short hair has corners at the temples.
    shift = 0.08 * np.sign(identity.hair_volume) if style in ("side part", "bob", "long", "wavy") else 0.0
    window = ellipsoid(
        (shift, -0.30 + high, 0.80), (0.70 + wide - 0.4 * abs(shift), 0.92, 0.86), turn=rotation(0, 0, 60 * shift)
    )
    if style in ("short", "quiff", "side part", "curly"):
        temples = [ellipsoid((side * 0.34, 0.12 + high, 0.85), (0.33 + wide, 0.42, 0.80)) for side in (-1, 1)]
    else:
        temples = []
    jaw = ellipsoid((0, -0.95, 0.10), (0.74 + wide, 0.80, 0.55))
    return (
        [window]
        if style in (*LONG, "afro")
        else [window, *temples, jaw, ellipsoid((0, -0.92, -0.1), (1.2, 0.72, 0.62))]
    )


def _short(identity, thick, color, covered):
    return [] if covered else [ellipsoid((0, 0.62, 0.18), (0.60, 0.34 + 0.06 * thick, 0.56), color)]


def _quiff(identity, thick, color, covered):
    if covered:
        return []
    return [
        ellipsoid(
            (x, 0.93 + 0.10 * thick - 0.12 * abs(x), 0.32), (0.26, 0.20 + 0.05 * thick, 0.44), color, rotation(0, 22, 0)
        )
        for x in (-0.36, -0.12, 0.12, 0.36)
    ]


def _side_part(identity, thick, color, covered):
    if covered:
        return []
    return [
        ellipsoid((0.20, 0.90, 0.26), (0.56, 0.20 + 0.05 * thick, 0.52), color, rotation(0, 8, 14)),
        ellipsoid((-0.46, 0.74, 0.24), (0.30, 0.26, 0.46), color, rotation(0, 0, -30)),
    ]


def _curly(identity, thick, color, covered):
    shapes = []
    for index in range(0 if covered else 13):
        angle = 2.4 * index
        ring = 0.25 + 0.052 * index
        high = 1.02 - 0.05 * index
        shapes.append(
            ellipsoid(
                (ring * np.sin(angle), high, ring * np.cos(angle) * 0.95 - 0.1), (0.27 + 0.03 * thick,) * 3, color
            )
        )
    return shapes


def _afro(identity, thick, color, covered):
    if covered:
        return [ellipsoid((s * 0.62, 0.02, -0.22), (0.38, 0.48, 0.5), color) for s in (-1, 1)]
    size = 0.12 * thick
    shapes = [ellipsoid((0, 0.36, -0.18), (0.98 + size, 0.92 + size, 0.90 + size), color)]
    return shapes + [ellipsoid((s * 0.66, 0.02, -0.22), (0.38 + size, 0.48, 0.5), color) for s in (-1, 1)]


def _curtain(identity, thick, color, end: float, out: float, wide: float):
    """Hair that falls on both sides and behind down to the height ``end``."""
    shapes = [capsule((0, 0.2, -0.42), (0, end + 0.25, -0.42), 0.62 + 0.05 * thick, color, depth=0.34)]
    for side in (-1, 1):
        top, bottom = (side * 0.64, 0.40, -0.04), (side * (0.70 + out), end, -0.06)
        shapes.append(capsule(top, bottom, wide * (0.8 + 0.25 * thick), color, depth=0.30))
        shapes.append(capsule((side * 0.34, 0.86, 0.34), (side * 0.76, 0.0, 0.10), 0.12 + 0.03 * thick, color))
    return shapes


def _bob(identity, thick, color, covered):
    return _curtain(identity, thick, color, -0.72, 0.02, 0.21)


def _long(identity, thick, color, covered):
    return _curtain(identity, thick, color, -1.75, 0.10, 0.23)


def _wavy(identity, thick, color, covered):
    shapes = _curtain(identity, thick, color, -1.2, 0.06, 0.22)
    for side in (-1, 1):
        for index in range(6):
            sway = 0.05 * (-1) ** index
            shapes.append(
                ellipsoid((side * (0.79 + sway + 0.03 * index), 0.25 - 0.32 * index, 0.06), (0.24, 0.27, 0.26), color)
            )
    return shapes


def _bun(identity, thick, color, covered):
    bun = ellipsoid((0, 1.22, -0.36), (0.33 + 0.05 * thick,) * 3, color)
    return [ellipsoid((0, 0.66, 0.12), (0.62, 0.36, 0.58), color)] + ([] if covered else [bun])


def _ponytail(identity, thick, color, covered):
    tail = [
        ((0, 0.72, -0.98), 0.24),
        ((0.08, 0.45, -1.18), 0.27),
        ((0.16, 0.0, -1.22), 0.27),
        ((0.2, -0.5, -1.15), 0.2),
    ]
    shapes = [ellipsoid(center, (size, size * 1.3, size), color) for center, size in tail]
    return [ellipsoid((0, 0.66, 0.12), (0.62, 0.36, 0.58), color)] + shapes


def _pigtails(identity, thick, color, covered):
    shapes = [ellipsoid((0, 0.66, 0.12), (0.62, 0.34, 0.58), color)]
    for side in (-1, 1):
        for x, y, size in ((0.93, 0.22, 0.20), (1.08, -0.08, 0.25), (1.10, -0.45, 0.23), (1.04, -0.78, 0.15)):
            shapes.append(ellipsoid((side * x, y, -0.2), (size, size * 1.15, size), color))
    return shapes


STYLES = {
    "short": _short, "quiff": _quiff, "side part": _side_part, "curly": _curly, "afro": _afro, "bob": _bob,
    "long": _long, "wavy": _wavy, "bun": _bun, "ponytail": _ponytail, "pigtails": _pigtails,
}  # fmt: skip


def _fringe(identity, thick, color):
    """Locks over the forehead; the more fringe, the lower they reach."""
    reach = 0.55 - 0.27 * identity.fringe
    shapes = []
    for index in range(5):
        x = (index - 2) * 0.24
        z = 0.70 - 0.55 * x * x
        top, end = (x * 0.8 + 0.05, 0.86 - 0.55 * x * x, z - 0.20), (x * 1.12, reach - 0.1 * x * x, z + 0.04)
        shapes.append(capsule(top, end, 0.14 + 0.02 * thick, color, depth=0.10))
    return shapes


def beard_groups(identity: Identity, head: Bone, mouth_open: float) -> list[Group]:
    """A full beard: hair around jaw and chin with room for the mouth."""
    if identity.beard != "full":
        return []
    color = HAIR_COLORS[identity.hair_color]
    long, jaw = 0.07 * identity.face_length, 0.07 * identity.jaw
    shapes = [ellipsoid((0, -0.93 - long, 0.42), (0.36, 0.30, 0.32), color)]
    for side in (-1, 1):
        shapes.append(capsule((side * (0.67 + jaw * 0.5), -0.25, 0.12), (side * 0.36, -0.82 - long, 0.38), 0.17, color))
        shapes.append(
            ellipsoid((side * 0.14, -0.43 - long, 0.76), (0.15, 0.055, 0.09), color, rotation(0, 0, side * 16))
        )
    mouth = ellipsoid(
        (0, -0.585 - long - 0.08 * mouth_open, 0.9), (0.25 + 0.06 * mouth_open, 0.085 + 0.13 * mouth_open, 0.5)
    )
    texture = {"flow": 0.0, "wave": 0.3, "curl": 0.35}
    return [Group("beard", head, "hair", Part.BEARD, shapes, 0.06, carves=[mouth], texture=texture, iuv="head")]


def glasses_groups(identity: Identity, head: Bone, eye_x: float, eye_y: float) -> list[Group]:
    """Frames of thin rods around the eyes, a bridge and two arms."""
    if identity.glasses == "none":
        return []
    count, color = (18, identity.glasses_color) if identity.glasses == "round" else (4, identity.glasses_color)
    shapes = [capsule((-0.10, eye_y + 0.04, 0.92), (0.10, eye_y + 0.04, 0.92), 0.024, color)]
    for side in (-1, 1):
        turn = np.arange(count) * 2 * np.pi / count + np.pi / 4
        wide, high = (0.225, 0.205) if count > 4 else (0.30, 0.235)
        x, y = side * (eye_x + 0.005) + wide * np.cos(turn), eye_y - 0.02 + high * np.sin(turn)
        rim = np.stack([x, y, 0.92 - 0.28 * np.abs(x) ** 2], 1)
        shapes += [capsule(rim[index - 1], rim[index], 0.023, color) for index in range(count)]
        shapes.append(
            capsule((side * (eye_x + 0.22), eye_y + 0.05, 0.82), (side * 0.84, eye_y + 0.05, -0.05), 0.022, color)
        )
    return [Group("glasses", head, "glossy", Part.GLASSES, shapes, 0.004, iuv="head")]
