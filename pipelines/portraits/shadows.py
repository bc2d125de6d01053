"""Cast shadows: large shapes are soft occluders, so a shadow's edge is as wide as its light is soft, without noise."""

import numpy as np

from .arrays import Array, array, clip, cross, like, matmul, space
from .fields import FAR
from .kernels import kernels
from .shapes import Group, Stack

CHUNK = 1024  # points at once, so that what is computed stays in the processor's cache


class Occluders:
    """The shapes that cast shadows in B scenes, in the space of the world."""

    def __init__(self, scenes: list[list[Group]], device):
        maps = [_in_world(groups) for groups in scenes]
        count = max(len(one) for one in maps)
        filler = np.concatenate([np.eye(3), np.full((3, 1), FAR)], 1)
        padded = [np.concatenate([one, np.repeat(filler[None], count - len(one), 0)]) for one in maps]
        self.maps = array(np.stack(padded), device)  # [B, P, 3, 4], from the world to the unit space of every shape

    def visible(self, points: Array, light: Array, softness: Array) -> Array:
        """How much of a distant light arrives, 0..1 [B, K], at points [B, 3, K]; ``light`` [B, 3] points to it.

        ``softness`` [B] is the size of the light, 0 (sun) to 1. What counts is how near the way to the light passes
        every shape, measured in its own unit space, against the width that the penumbra has there.
        """
        xp, count = space(points), points.shape[2]
        size = CHUNK if isinstance(points, np.ndarray) else max(count, 1)
        past, along = self._towards(light)
        if isinstance(points, np.ndarray) and (compiled := kernels()):
            flat = (np.ascontiguousarray(values[0]) for values in (past, along, points))
            return compiled.visible(*flat, np.float32(softness[0]))[None]
        softness = softness[:, None, None]
        parts = [_visible(past, along, points[:, :, start : start + size], softness) for start in range(0, count, size)]
        return xp.concatenate(parts, 1) if parts else points[:, 0]

    def _towards(self, light):
        """Maps of points to where the light's way passes every shape: across it [B, 2 P, 4], along it [B, P, 4]."""
        xp = space(light)
        way = matmul(self.maps[..., :3], light[:, None, :, None])[..., 0]
        length = (way * way).sum(2)[..., None]
        way = way / length**0.5
        steep = abs(way[..., :1]) < 0.6
        aside = cross(way, xp.where(steep, like([1.0, 0, 0], light), like([0, 1.0, 0], light)))
        aside = aside / ((aside * aside).sum(2)[..., None]) ** 0.5
        axes = xp.stack([aside, cross(way, aside), way / -(length**0.5)], 1)
        made = matmul(axes[:, :, :, None], self.maps[:, None])[:, :, :, 0]
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


def _in_world(groups: list[Group]) -> np.ndarray:
    """The groups' first shapes as ellipsoids of the world, [P, 3, 4]; a capsule becomes the one that is as long."""
    shapes, signs, turns, origins = [], [], [], []
    for group in groups:
        for shape in group.shapes[: group.shadow]:
            for side in (1, -1) if group.mirrored and abs(shape.offset[0]) > 1e-6 else (1,):
                shapes.append(shape)
                signs.append((side, 1, 1))
                turns.append(group.bone.turn)
                origins.append(group.bone.origin)
    if not shapes:
        return np.zeros((0, 3, 4))
    stack = Stack.of(shapes)
    stretch = np.ones((len(shapes), 3))
    stretch[:, 1] /= 1 + stack.sweep
    matrix = stack.matrix * np.array(signs)[:, None] * stretch[..., None] @ np.array(turns).swapaxes(1, 2)
    offset = stack.offset[..., None] * stretch[..., None] - matrix @ np.array(origins)[..., None]
    return np.concatenate([matrix, offset], 2)
