"""Names of what a pixel shows, and of how surfaces are painted."""

from enum import IntEnum


class Part(IntEnum):
    """Values of the part map."""

    BACKGROUND = 0
    FACE = 1
    EARS = 2
    EYES = 3
    BROWS = 4
    LIPS = 5
    MOUTH = 6
    NECK = 7
    HAIR = 8
    BEARD = 9
    GLASSES = 10
    TORSO = 11
    ARMS = 12
    HANDS = 13
    LEGS = 14
    FEET = 15
    HEADWEAR = 16
    COLLAR = 17


FACE_PARTS = (Part.FACE, Part.EYES, Part.BROWS, Part.LIPS, Part.MOUTH)
HEAD_PARTS = (*FACE_PARTS, Part.EARS, Part.BEARD)
