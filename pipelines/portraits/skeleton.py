"""From parameters to bones and groups of shapes: the one body that both views show."""

from dataclasses import dataclass

import numpy as np

from .hair import beard_groups, glasses_groups, hair_groups
from .parameters import Person, Pose
from .parts import Part
from .shapes import Bone, Group, capsule, ellipsoid, rotation
from .skin import expression_values, face_layout, head_group, neck_group, skin_color
from .wardrobe import Outfit, costume_groups, outfit_of

NECK_BASE = np.array([0.0, -1.25, -0.16])
NECK_JOINT = np.array([0.0, -0.70, -0.18])  # where the head turns, in the head's space
HEAD_ON_NECK = np.array([0.0, 0.55, -0.02])  # the same joint above the neck's base


@dataclass(frozen=True)
class Skeleton:
    """Bones of one person in the world; ``left`` is the person's own left (the right of the picture, facing us)."""

    head: Bone
    torso: Bone
    limbs: dict[str, Bone]
    tall: float


def skeleton(pose: Pose, height: float = 0, place=(0, 0, 0)) -> Skeleton:
    """Bones for a pose; a limb's y axis runs from its end to its joint. ``place``: where the head is, in head units."""
    tall = 1 + 0.07 * height
    torso = Bone(rotation(pose.turn), np.asarray(place, float) + NECK_BASE)
    turn = rotation(pose.turn + pose.yaw, pose.pitch, pose.roll)
    joint = torso.to_world(HEAD_ON_NECK)
    head = Bone(turn, joint - turn @ NECK_JOINT)
    limbs: dict[str, Bone] = {}
    for name, side in (("left", 1), ("right", -1)):
        limbs |= _arm(pose, torso, name, side, tall) | _leg(pose, torso, name, side, tall)
    return Skeleton(head, torso, limbs, tall)


def _joint(parent: Bone, at, *angles) -> Bone:
    return Bone(parent.turn @ rotation(*angles), parent.to_world(at))


def _arm(pose, torso, name, side, tall):
    out, swing, bend = (getattr(pose, f"{name}_{joint}") for joint in ("shoulder", "swing", "elbow"))
    upper = _joint(torso, (side * 1.10, -0.47, 0), 0, swing, -side * out)
    lower = _joint(upper, (0, -1.55 * tall, 0), 0, bend, 0)
    hand = _joint(lower, (0, -1.45 * tall, 0), 0, 0, 0)
    return {f"upper_arm_{name}": upper, f"lower_arm_{name}": lower, f"hand_{name}": hand}


def _leg(pose, torso, name, side, tall):
    forward, bend = getattr(pose, f"{name}_hip"), getattr(pose, f"{name}_knee")
    upper = _joint(torso, (side * 0.42, -3.25 * tall, 0), 0, forward, -side * pose.stance)
    lower = _joint(upper, (0, -2.25 * tall, 0), 0, -bend, 0)
    foot = _joint(lower, (0, -2.25 * tall, 0), 0, 0, 0)
    return {f"upper_leg_{name}": upper, f"lower_leg_{name}": lower, f"foot_{name}": foot}


def person_groups(person: Person, place=(0, 0, 0)) -> list[Group]:
    """All groups of one person standing at ``place``."""
    bones = skeleton(person.pose, person.identity.height, place)
    identity, layout, outfit = person.identity, face_layout(person.identity), outfit_of(person)
    groups = [head_group(person, bones.head), neck_group(person, bones.head, bones.torso)]
    groups += hair_groups(identity, bones.head, outfit.hat, outfit.hood)
    groups += beard_groups(identity, bones.head, expression_values(person)["mouth_open"])
    groups += glasses_groups(identity, bones.head, layout["eye_x"], layout["eye_y"])
    groups += _torso(person, bones, outfit) + _limbs(person, bones, outfit)
    return groups + costume_groups(person, bones.head, bones.torso, bones.limbs)


def _torso(person, bones, outfit: Outfit) -> list[Group]:
    stout, tall = person.identity.build, bones.tall
    upper, lower = outfit.color, outfit.trousers
    shapes = [
        ellipsoid((0, -1.00, -0.01), (0.86 + 0.10 * stout, 0.95, 0.50 + 0.07 * stout), upper),
        capsule((-1.02, -0.49, -0.02), (1.02, -0.49, -0.02), 0.30 + 0.02 * stout, upper),
        ellipsoid((0, -2.15 * tall, 0.02 + 0.05 * stout), (0.76 + 0.16 * stout, 0.95, 0.44 + 0.16 * stout), upper),
    ]
    for side in (-1, 1):
        shapes.append(ellipsoid((side * 0.42, -0.17, -0.06), (0.46, 0.17, 0.27), upper, rotation(0, 0, side * 24)))
    hips = [
        ellipsoid((0, -3.0 * tall, 0), (0.80 + 0.12 * stout, 0.60, 0.47 + 0.10 * stout), lower),
    ]
    texture = outfit.texture | {"skin": skin_color(person.identity)}
    below = texture | {"pattern": 0.0, "jacket": 0.0, "buttons": 0.0, "neckline": 0.0}
    return [
        Group("torso", bones.torso, outfit.material, Part.TORSO, shapes, 0.09, texture=texture, costume=True),
        Group("hips", bones.torso, outfit.trouser_material, Part.LEGS, hips, 0.05, texture=below, costume=True),
    ]


def _limbs(person, bones, outfit: Outfit) -> list[Group]:
    stout, tall, skin = person.identity.build, bones.tall, skin_color(person.identity)
    plain = outfit.texture | {"skin": skin, "jacket": 0.0, "buttons": 0.0, "neckline": 0.0}
    below = plain | {"pattern": 0.0}
    wide = 1 + 0.16 * stout
    groups = []

    def limb(name, material, part, shapes, texture, costume):
        groups.append(Group(name, bones.limbs[name], material, part, shapes, 0.02, texture=texture, iuv=name,
                            costume=costume))  # fmt: skip

    for side in ("left", "right"):
        arm = capsule((0, 0, 0), (0, -1.5 * tall, 0), 0.285 * wide, outfit.color)
        limb(f"upper_arm_{side}", outfit.material, Part.ARMS, [arm], plain, True)
        sleeved = outfit.long_sleeves
        fore = capsule(
            (0, 0, 0), (0, -1.35 * tall, 0), (0.245 if sleeved else 0.205) * wide, outfit.color if sleeved else skin
        )
        limb(f"lower_arm_{side}", outfit.material if sleeved else "bare", Part.ARMS, [fore], plain, sleeved)
        hand = [
            ellipsoid((0, -0.24, 0.02), (0.13, 0.33, 0.21), skin),
            capsule((0, -0.12, 0.14), (0, -0.32, 0.28), 0.075, skin),
        ]
        limb(f"hand_{side}", "bare", Part.HANDS, hand, plain, False)
        thigh = capsule((0, 0, 0), (0, -2.2 * tall, 0), 0.375 * wide, outfit.trousers)
        limb(f"upper_leg_{side}", outfit.trouser_material, Part.LEGS, [thigh], below, True)
        shin = capsule((0, 0, 0), (0, -2.15 * tall, 0), 0.295 * wide, outfit.trousers)
        limb(f"lower_leg_{side}", outfit.trouser_material, Part.LEGS, [shin], below, True)
        shoe = [
            ellipsoid((0, -0.17, 0.24), (0.22, 0.16, 0.46), outfit.shoes),
            ellipsoid((0, -0.08, 0), (0.22, 0.26, 0.24), outfit.shoes),
        ]
        limb(f"foot_{side}", "glossy", Part.FEET, shoe, below, True)
    return groups
