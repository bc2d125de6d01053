"""Which of DensePose's 24 body parts a surface point is, and where on that part's chart: I in 1..24, U and V in 0..1.

Limbs and torso have a chart for the back and one for the front. V runs along the part, from its far end to its near
one (upwards when standing), U around it, from the person's right to the left as one looks at the chart's side.
"""

import math

from .arrays import Array, clip, either, space, unbind

# name of a group's chart: (index of the back, index of the front, lowest y, highest y in the bone's space)
CHARTS = {
    "torso": (1, 2, -3.7, 0.35), "hand_right": (3, 3, -0.55, 0.1), "hand_left": (4, 4, -0.55, 0.1),
    "foot_left": (5, 5, -0.4, 0.25), "foot_right": (6, 6, -0.4, 0.25),
    "upper_leg_right": (7, 9, -2.8, 0.4), "upper_leg_left": (8, 10, -2.8, 0.4),
    "lower_leg_right": (11, 13, -2.7, 0.35), "lower_leg_left": (12, 14, -2.7, 0.35),
    "upper_arm_left": (15, 17, -1.95, 0.35), "upper_arm_right": (16, 18, -1.95, 0.35),
    "lower_arm_left": (19, 21, -1.75, 0.3), "lower_arm_right": (20, 22, -1.75, 0.3),
    "head": (23, 24, -1.4, 1.75),
}  # fmt: skip


def chart(name: str, point: Array) -> Array:
    """I, U and V [B, 3, K] of points [B, 3, K] in the space of the bone of chart ``name``."""
    xp = space(point)
    back, front, low, high = CHARTS[name]
    x, y, z = unbind(point)
    v = clip((y - low) / (high - low), 0, 1)
    if name == "head":
        # The head is split into its right (23) and left (24) half; U runs from the back of the head to the face.
        part = either(x < 0, back, front)
        u = xp.arctan2(abs(x), -z) / math.pi
    elif back == front:
        part = xp.full_like(x, back)
        u = clip(xp.arctan2(x, z) / (2 * math.pi) + 0.5, 0, 1)
    else:
        part = either(z < 0, back, front)
        u = clip(xp.arctan2(x, abs(z)) / math.pi + 0.5, 0, 1)
    return xp.stack([part, u, v], 1)
