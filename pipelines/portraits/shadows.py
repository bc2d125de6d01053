"""Cast shadows: large shapes are soft occluders, so a shadow's edge is as wide as its light is soft, without noise."""

import numpy as np

from .arrays import Array, clip, cross, like, matmul, space
from .fields import ShapeSet
from .shapes import Group, Shape

CHUNK = 1024  # points at once, so that what is computed stays in the processor's cache


class Occluders:
    """The shapes that cast shadows in B scenes, in the space of the world."""

    def __init__(self, scenes: list[list[Group]], device):
        self.shapes = ShapeSet.of(
            [[shape for group in groups for shape in _in_world(group)] for groups in scenes], device
        )

    def visible(self, points: Array, light: Array, softness: Array) -> Array:
        """How much of a distant light arrives, 0..1 [B, K], at points [B, 3, K]; ``light`` [B, 3] points to it.

        ``softness`` [B] is the size of the light, 0 (sun) to 1. What counts is how near the way to the light passes
        every shape, measured in its own unit space, against the width that the penumbra has there.
        """
        xp, count = space(points), points.shape[2]
        size = CHUNK if isinstance(points, np.ndarray) else max(count, 1)
        past, along = self._towards(light)
        softness = softness[:, None, None]
        parts = [_visible(past, along, points[:, :, start : start + size], softness) for start in range(0, count, size)]
        return xp.concatenate(parts, 1) if parts else points[:, 0]

    def _towards(self, light):
        """Maps of points to where the light's way passes every shape: across it [B, 2 P, 4], along it [B, P, 4]."""
        xp, shapes = space(light), self.shapes
        way = matmul(shapes.matrix, light[:, None, :, None])[..., 0]
        length = (way * way).sum(2)[..., None]
        way = way / length**0.5
        steep = abs(way[..., :1]) < 0.6
        aside = cross(way, xp.where(steep, like([1.0, 0, 0], light), like([0, 1.0, 0], light)), 2)
        aside = aside / ((aside * aside).sum(2)[..., None]) ** 0.5
        axes = xp.stack([aside, cross(way, aside, 2), way / -(length**0.5)], 1)
        full = xp.concatenate([shapes.matrix, shapes.offset[..., None]], 3)
        made = matmul(axes[:, :, :, None], full[:, None])[:, :, :, 0]
        return made[:, :2].reshape(len(light), -1, 4), made[:, 2]


def _visible(past, along, points, softness):
    xp = space(points)
    points = xp.concatenate([points, xp.ones_like(points[:, :1])], 1)
    aside = matmul(past, points)
    aside *= aside
    count = along.shape[1]
    miss = aside[:, :count]
    miss += aside[:, count:]
    miss = xp.sqrt(miss)
    along = matmul(along, points)
    blocked = clip(along, 0, 2)
    blocked *= softness
    blocked += 0.12
    miss -= 1
    miss /= blocked
    blocked = clip(0.5 - miss, 0, 1)
    along /= 0.06 + 0.3 * softness
    blocked *= clip(along - 0.4, 0, 1)
    return (1 - blocked).prod(1)


def _in_world(group: Group) -> list[Shape]:
    """The group's first shapes as ellipsoids of the world; a capsule becomes the ellipsoid that is as long."""
    made = []
    for shape in group.shapes[: group.shadow]:
        stretch = np.array([1, 1 / (1 + shape.sweep), 1])
        sides = (1, -1) if group.mirrored and abs(shape.offset[0]) > 1e-6 else (1,)
        for side in sides:
            matrix = shape.matrix * np.array([side, 1, 1]) * stretch[:, None]
            matrix = matrix @ group.bone.turn.T
            made.append(Shape(matrix, shape.offset * stretch - matrix @ group.bone.origin, 0.0, shape.color))
    return made
