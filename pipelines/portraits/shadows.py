"""Cast shadows: large shapes are soft occluders, so a shadow's edge is as wide as its light is soft, without noise."""

import numpy as np
import torch

from .fields import ShapeSet
from .shapes import Group, Shape

CHUNK = 2048  # points at once, so that what is computed stays in the processor's cache


class Occluders:
    """The shapes that cast shadows in B scenes, in the space of the world."""

    def __init__(self, scenes: list[list[Group]], device):
        self.shapes = ShapeSet.of(
            [[shape for group in groups for shape in _in_world(group)] for groups in scenes], device
        )

    def visible(self, points: torch.Tensor, light: torch.Tensor, softness: torch.Tensor) -> torch.Tensor:
        """How much of a distant light arrives, 0..1 [B, K], at points [B, 3, K]; ``light`` [B, 3] points to it.

        ``softness`` [B] is the size of the light, 0 (sun) to 1. What counts is how near the way to the light passes
        every shape, measured in its own unit space, against the width that the penumbra has there.
        """
        size = CHUNK if points.device.type == "cpu" else points.shape[2]
        return torch.cat([self._visible(part, light, softness) for part in points.split(size, 2)], 1)

    def _visible(self, points, light, softness):
        shapes = self.shapes
        batch, count = shapes.offset.shape[:2]
        d = torch.bmm(shapes.matrix.reshape(batch, -1, 3), light[..., None]).view(batch, count, 3, 1)
        a = torch.baddbmm(shapes.offset.reshape(batch, -1, 1), shapes.matrix.reshape(batch, -1, 3), points)
        a = a.view(batch, count, 3, -1)
        softness = softness[:, None, None]
        length = d.square().sum(2)
        along = torch.matmul(d.transpose(2, 3), a)[:, :, 0].div_(-length)
        miss = a.square_().sum(2).sub_(along.square() * length).clamp_(min=0).sqrt_()
        penumbra = along.clamp(0, 2).mul_(softness).add_(0.12)
        blocked = (1 - miss).div_(penumbra).add_(0.5).clamp_(0, 1)
        blocked *= along.div_(0.06 + 0.3 * softness).sub_(0.4).clamp_(0, 1)
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
