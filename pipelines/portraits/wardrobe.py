"""Clothes and costumes: what the cloth of torso and limbs looks like, and the pieces worn on top."""

from dataclasses import dataclass

import numpy as np

from .parameters import PATTERNS, Person
from .parts import Part
from .shapes import Bone, Group, capsule, ellipsoid, rotation

WHITE, RED, GOLD = (0.86, 0.85, 0.82), (0.56, 0.018, 0.022), (0.92, 0.58, 0.12)
PURPLE, GREEN, BLACK = (0.20, 0.022, 0.27), (0.06, 0.25, 0.045), (0.02, 0.02, 0.022)


@dataclass(frozen=True)
class Outfit:
    """Colours and cloth of torso, arms and legs."""

    color: tuple
    trousers: tuple
    shoes: tuple
    material: str
    trouser_material: str
    long_sleeves: bool
    hat: bool
    hood: bool
    texture: dict


def _texture(**changes) -> dict:
    plain = {"second": WHITE, "pattern": 0.0, "jacket": 0.0, "buttons": 0.0, "neckline": 0.0, "fold": 0.5, "spots": 0.0,
             "skin": BLACK}  # fmt: skip
    return plain | changes


def outfit_of(person: Person) -> Outfit:
    """The clothes of the person's costume."""
    costume = person.costume
    if costume.kind == "flower":
        return Outfit(GREEN, GREEN, GREEN, "cloth", "cloth", True, True, True, _texture())
    if costume.kind == "sheep":
        return Outfit(WHITE, WHITE, BLACK, "wool", "wool", True, True, True, _texture())
    if costume.kind == "santa":
        return Outfit(RED, RED, BLACK, "felt", "felt", True, True, False, _texture())
    if costume.kind == "royal":
        return Outfit(PURPLE, WHITE, GOLD, "cloth", "cloth", True, True, False, _texture(second=GOLD))
    return _everyday(costume)


def _everyday(costume) -> Outfit:
    garment = costume.garment
    drawn = "plain" if garment == "jacket" else costume.pattern
    texture = _texture(
        second=costume.secondary, pattern=float(PATTERNS.index(drawn)), jacket=float(garment == "jacket"),
        buttons=float(garment == "shirt"), neckline={"t-shirt": 0.5, "scarf": 0.0}.get(garment, 0.15),
        fold=0.7 if garment in ("hoodie", "jacket") else 0.45,
    )  # fmt: skip
    shoes = tuple(0.4 * value for value in costume.trousers)
    return Outfit(
        costume.primary, costume.trousers, shoes, "cloth", "cloth", garment != "t-shirt", False, False, texture
    )


def costume_groups(person: Person, head: Bone, torso: Bone, limbs: dict[str, Bone]) -> list[Group]:
    """Hats, collars and all else that is worn over the clothes."""
    kind = person.costume.kind
    if kind == "everyday":
        return _everyday_pieces(person.costume, torso)
    return {"flower": _flower, "sheep": _sheep, "santa": _santa, "royal": _royal}[kind](person, head, torso, limbs)


def _piece(name, bone, material, part, shapes, melt=0.012, **more) -> Group:
    iuv = more.pop("iuv", "head" if part == Part.HEADWEAR else "torso")
    texture = _texture(**more.pop("texture", {}))
    return Group(name, bone, material, part, shapes, melt, texture=texture, costume=True, iuv=iuv, **more)


def _everyday_pieces(costume, torso) -> list[Group]:
    main, second, garment = costume.primary, costume.secondary, costume.garment
    if garment == "turtleneck":
        shapes = [
            ellipsoid((0, 0.16, 0.02), (0.43, 0.20, 0.42), main),
            ellipsoid((0, 0.01, 0.02), (0.49, 0.16, 0.46), main),
        ]
        return [_piece("collar", torso, "felt", Part.COLLAR, shapes, 0.02)]
    if garment == "scarf":
        shapes = [
            ellipsoid((0, 0.14, 0.05), (0.55, 0.19, 0.53), second, rotation(0, 6, 5)),
            ellipsoid((0, -0.07, 0.06), (0.66, 0.20, 0.59), second, rotation(0, 4, -6)),
            capsule((0.30, -0.2, 0.50), (0.36, -1.30, 0.56), 0.23, second, depth=0.09),
        ]
        texture = {"second": main, "pattern": 1.0, "fold": 0.8}
        return [_piece("scarf", torso, "cloth", Part.COLLAR, shapes, 0.02, texture=texture)]
    if garment == "hoodie":
        shapes = [capsule((side * 0.60, 0.02, -0.14), (side * 0.14, -0.24, 0.47), 0.15, main) for side in (-1, 1)] + [
            ellipsoid((0, 0.04, -0.36), (0.68, 0.30, 0.36), main)
        ]
        cords = [capsule((side * 0.13, -0.3, 0.58), (side * 0.16, -0.85, 0.60), 0.028, second) for side in (-1, 1)]
        return [
            _piece("collar", torso, "felt", Part.COLLAR, shapes, 0.05),
            _piece("cords", torso, "felt", Part.COLLAR, cords),
        ]
    if garment in ("shirt", "jacket"):
        color = main if garment == "shirt" else second
        shapes = [
            ellipsoid((side * 0.25, -0.06, 0.38), (0.27, 0.075, 0.13), color, rotation(side * 22, 12, side * 33))
            for side in (-1, 1)
        ]
        shapes.append(ellipsoid((0, 0.06, -0.04), (0.46, 0.13, 0.40), color))
        return [_piece("collar", torso, "felt", Part.COLLAR, shapes, 0.02)]
    return []


def _ring(count: int, make, start: float = 0.0) -> list:
    """``make(sin, cos, turn in degrees)`` for every place on a ring."""
    turns = [start + 360 * index / count for index in range(count)]
    return [make(np.sin(np.radians(turn)), np.cos(np.radians(turn)), turn) for turn in turns]


def _flower(person, head, torso, limbs) -> list[Group]:
    color = person.costume.primary
    pale = tuple(0.5 + 0.5 * value for value in color)

    def petals(radius, size, shade, back, start):
        def petal(s, c, turn):
            radii = (0.31 * size, 0.46 * size, 0.09)
            return ellipsoid((radius * s, 0.02 + radius * c, back), radii, shade, rotation(0, 0, turn))

        return _ring(10, petal, start)

    leaves = [
        ellipsoid((side * x, y, 0.36), (0.60, 0.15, 0.10), (0.12, 0.42, 0.06), rotation(side * 14, 0, side * tilt))
        for side in (-1, 1) for x, y, tilt in ((0.52, -0.12, 20), (0.36, -0.34, 48))
    ]  # fmt: skip
    return [
        _piece("petals", head, "petal", Part.HEADWEAR, petals(1.10, 1.0, color, -0.10, 0), 0.008),
        _piece("petals_behind", head, "petal", Part.HEADWEAR, petals(1.17, 1.05, pale, -0.26, 18), 0.008),
        _piece("hood", head, "felt", Part.HEADWEAR, [_hood(person, 0.03, (0.85, 0.60, 0.08))], 0.03,
               carves=_hood_window(person), carve_melt=0.04),
        _piece("collar", torso, "petal", Part.COLLAR, leaves, 0.01),
    ]  # fmt: skip


def _hood(person, thick, color):
    wide = 0.055 * person.identity.face_width
    return ellipsoid((0, 0.08, -0.13), (0.86 + wide + thick, 1.06 + thick, 0.94 + thick), color)


def _hood_window(person) -> list:
    wide = 0.05 * person.identity.face_width
    long = 0.06 * person.identity.face_length
    return [ellipsoid((0, -0.20 - long, 0.92), (0.67 + wide, 0.88 + long, 1.0))]


def _sheep(person, head, torso, limbs) -> list[Group]:
    tuft = _ring(7, lambda s, c, turn: ellipsoid((0.36 * s, 0.98, 0.30 + 0.26 * c), (0.21,) * 3, WHITE))
    ears = [
        ellipsoid((side * 1.12, 0.30, -0.02), (0.36, 0.155, 0.10), (0.78, 0.73, 0.68), rotation(0, 0, side * 24))
        for side in (-1, 1)
    ]
    inner = [
        ellipsoid((side * 1.15, 0.285, 0.055), (0.25, 0.09, 0.07), (0.80, 0.36, 0.36), rotation(0, 0, side * 24))
        for side in (-1, 1)
    ]
    fluff = [ellipsoid((0, -0.08, 0.02), (0.72, 0.24, 0.58), WHITE)]
    return [
        _piece("hood", head, "wool", Part.HEADWEAR, [_hood(person, 0.12, WHITE), *tuft], 0.05,
               carves=_hood_window(person), carve_melt=0.06),
        _piece("ears", head, "felt", Part.HEADWEAR, ears + inner),
        _piece("collar", torso, "wool", Part.COLLAR, fluff),
    ]  # fmt: skip


def _cuffs(limbs, material, color, size=0.30) -> list[Group]:
    return [
        _piece(f"cuff_{side}", limbs[f"lower_arm_{side}"], material, Part.ARMS,
               [ellipsoid((0, -1.30, 0), (size, 0.14, size), color)], iuv=f"lower_arm_{side}")
        for side in ("left", "right")
    ]  # fmt: skip


def _santa(person, head, torso, limbs) -> list[Group]:
    cone = [
        ((0, 0.92, -0.12), (0.84, 0.42, 0.86)), ((0.05, 1.22, -0.16), (0.60, 0.36, 0.62)),
        ((0.24, 1.48, -0.18), (0.40, 0.29, 0.42)), ((0.56, 1.56, -0.16), (0.29, 0.21, 0.28)),
        ((0.84, 1.42, -0.10), (0.22, 0.20, 0.21)), ((1.00, 1.18, -0.06), (0.17, 0.20, 0.17)),
    ]  # fmt: skip
    hat = [ellipsoid(center, radii, RED) for center, radii in cone]
    trim = [ellipsoid((0, 0.66, -0.09), (0.93, 0.185, 0.98), WHITE, rotation(0, 5, 0)),
            ellipsoid((1.04, 0.93, -0.04), (0.22, 0.22, 0.22), WHITE)]  # fmt: skip
    fur = [
        ellipsoid((0, -0.05, 0.03), (0.68, 0.20, 0.60), WHITE),
        capsule((0, -0.25, 0.44), (0, -3.4, 0.50), 0.15, WHITE),
    ]
    belt = [
        ellipsoid(
            (0, -2.62, 0.02), (0.97 + 0.15 * person.identity.build, 0.17, 0.62 + 0.12 * person.identity.build), BLACK
        )
    ]
    buckle = [ellipsoid((0, -2.62, 0.62 + 0.12 * person.identity.build), (0.2, 0.2, 0.06), GOLD)]
    return [
        _piece("hat", head, "felt", Part.HEADWEAR, hat, 0.05),
        _piece("trim", head, "wool", Part.HEADWEAR, trim),
        _piece("collar", torso, "wool", Part.COLLAR, fur, 0.04),
        _piece("belt", torso, "glossy", Part.TORSO, belt),
        _piece("buckle", torso, "metal", Part.TORSO, buckle),
        *_cuffs(limbs, "wool", WHITE),
    ]  # fmt: skip


def _royal(person, head, torso, limbs) -> list[Group]:
    def spike(s, c, turn):
        return ellipsoid((0.83 * s, 1.10, -0.09 + 0.87 * c), (0.17, 0.33, 0.065), GOLD, rotation(turn, 0, 0))

    def ball(s, c, turn):
        return ellipsoid((0.83 * s, 1.43, -0.09 + 0.87 * c), (0.075,) * 3, GOLD)

    def gem(s, c, turn):
        red = (0.62, 0.01, 0.03) if round(turn / 45) % 2 else (0.02, 0.12, 0.55)
        return ellipsoid((0.90 * s, 0.88, -0.09 + 0.94 * c), (0.085, 0.095, 0.085), red)

    band = ellipsoid((0, 0.86, -0.09), (0.88, 0.34, 0.92), GOLD)
    cut = [ellipsoid((0, 1.93, -0.09), (2.2, 0.92, 2.2)), ellipsoid((0, -0.22, -0.09), (2.2, 0.94, 2.2))]
    velvet = ellipsoid((0, 0.98, -0.09), (0.74, 0.40, 0.78), (0.42, 0.012, 0.05))
    ermine = [
        ellipsoid((0, -0.13, 0.0), (0.98, 0.30, 0.62), WHITE),
        ellipsoid((0, -0.32, 0.12), (0.86, 0.34, 0.58), WHITE),
    ]
    brooch = [
        ellipsoid((0, -0.42, 0.72), (0.13, 0.15, 0.07), GOLD),
        ellipsoid((0, -0.42, 0.77), (0.075, 0.09, 0.05), (0.62, 0.01, 0.03)),
    ]
    hem = [ellipsoid((0, -3.25, 0.0), (1.02, 0.24, 0.70), WHITE)]
    robe = [capsule((0, -2.2, -0.02), (0, -2.9, -0.02), 0.92, PURPLE, depth=0.62)]
    return [
        _piece("crown", head, "metal", Part.HEADWEAR, [band], carves=cut, carve_melt=0.015),
        _piece("points", head, "metal", Part.HEADWEAR, [*_ring(8, spike), *_ring(8, ball)], 0.02),
        _piece("velvet", head, "felt", Part.HEADWEAR, [velvet]),
        _piece("gems", head, "glossy", Part.HEADWEAR, _ring(8, gem)),
        _piece("collar", torso, "wool", Part.COLLAR, ermine, 0.04, texture={"spots": 1.0}),
        _piece("brooch", torso, "metal", Part.COLLAR, brooch),
        _piece("robe", torso, "cloth", Part.TORSO, robe),
        _piece("hem", torso, "wool", Part.TORSO, hem, texture={"spots": 1.0}),
        *_cuffs(limbs, "metal", GOLD, 0.26),
    ]  # fmt: skip
