"""The distance field of a group of shapes: a smooth union with reliefs and cut-outs, for many points at once.

Layout: B scenes, P shapes, R rays; points are [B, 3, R], a field is [B, R]. Distances are first-order exact at the
surface, which is all that walking along a ray needs.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .shapes import Group, Shape

FAR = 1e4  # where the filler shapes of a batch are
FAINT = -60.0  # exponents below are as good as 0; the numbers that follow are slow denormal ones


@dataclass
class ShapeSet:
    """Shapes of B scenes: matrix [B, P, 3, 3], offset [B, P, 3], sweep [B, P, 1], slope [B, P, 3, 1]."""

    matrix: torch.Tensor
    offset: torch.Tensor
    sweep: torch.Tensor
    slope: torch.Tensor
    swept: bool

    @staticmethod
    def of(scenes: list[list[Shape]], device) -> "ShapeSet | None":
        """Stack lists of shapes; shorter ones are filled up with shapes far away."""
        count = max(len(shapes) for shapes in scenes)
        if not count:
            return None
        filler = Shape(np.eye(3), np.full(3, FAR), 0.0, (0, 0, 0))
        scenes = [shapes + [filler] * (count - len(shapes)) for shapes in scenes]
        matrix = np.array([[shape.matrix for shape in shapes] for shapes in scenes], dtype=np.float32)
        offset = np.array([[shape.offset for shape in shapes] for shapes in scenes], dtype=np.float32)
        sweep = np.array([[[shape.sweep] for shape in shapes] for shapes in scenes], dtype=np.float32)
        slope = (matrix**2).sum(-1, keepdims=True)
        tensors = (torch.from_numpy(array).to(device) for array in (matrix, offset, sweep, slope))
        return ShapeSet(*tensors, swept=bool(sweep.any()))

    def inside(self, points: torch.Tensor) -> torch.Tensor:
        """Points in the unit space of every shape, measured from the swept axis: [B, P, 3, R]."""
        batch, count = self.offset.shape[:2]
        flat = torch.baddbmm(self.offset.reshape(batch, -1, 1), self.matrix.reshape(batch, -1, 3), points)
        unit = flat.view(batch, count, 3, -1)
        if self.swept:
            along = unit[:, :, 1]
            along -= torch.maximum(torch.minimum(along, self.sweep), -self.sweep)
        return unit

    def distances(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Signed distance [B, P, R] to every shape, the unit-space points and the length of the distance's slope."""
        unit = self.inside(points)
        square = unit * unit
        radius = square.sum(2).sqrt_()
        slope = (square.mul_(self.slope)).sum(2).sqrt_().add_(1e-6)
        return radius * (radius - 1) / slope, unit, slope

    def gradient(self, unit: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Sum of the shapes' slopes in the bone's space, weighted by ``weight`` [B, P, R]: [B, 3, R]."""
        batch, count = weight.shape[:2]
        scaled = (unit * weight[:, :, None]).view(batch, count * 3, -1)
        return torch.bmm(self.matrix.reshape(batch, -1, 3).transpose(1, 2), scaled)


@dataclass
class Sample:
    """The field at points: value [B, R], gradient [B, 3, R] (about unit length), weights of the shapes [B, P, R]."""

    value: torch.Tensor
    gradient: torch.Tensor
    weights: torch.Tensor


class GroupField:
    """The field of one group in B scenes, in the space of its bone."""

    def __init__(self, groups: list[Group], device):
        first = groups[0]
        self.shapes = ShapeSet.of([group.shapes for group in groups], device)
        self.bumps = ShapeSet.of([[shape for shape, _ in group.bumps] for group in groups], device)
        self.carves = ShapeSet.of([group.carves for group in groups], device)
        self.melt, self.carve_melt, self.mirrored = first.melt, first.carve_melt, first.mirrored
        if self.bumps is not None:
            count = self.bumps.offset.shape[1]
            heights = [[height for _, height in group.bumps] for group in groups]
            heights = [row + [0.0] * (count - len(row)) for row in heights]
            self.heights = torch.tensor(heights, dtype=torch.float32, device=device)[..., None]

    def union(self, points: torch.Tensor) -> torch.Tensor:
        """Signed distance [B, R] to the shapes alone, for points on the side where they are."""
        distance = self.shapes.distances(points)[0]
        if distance.shape[1] == 1:
            return distance[:, 0]
        return distance.div_(-self.melt).clamp_(min=FAINT).exp_().sum(1).log_().mul_(-self.melt)

    def value(self, points: torch.Tensor, relief: bool = True) -> torch.Tensor:
        """Signed distance [B, R]; ``relief`` False leaves the bumps out."""
        points = self._folded(points)
        value = self.union(points)
        if relief and self.bumps is not None:
            value = value - (self._bump(points)[0]).sum(1)
        if self.carves is not None:
            carve = -self._carve(points)[0]
            value = torch.logaddexp(value / self.carve_melt, carve / self.carve_melt) * self.carve_melt
        return value

    def sample(self, points: torch.Tensor) -> Sample:
        """Value, gradient and the share of every shape in the surface."""
        sign = points[:, 0].sign() if self.mirrored else None
        points = self._folded(points)
        distance, unit, slope = self.shapes.distances(points)
        weights = distance.div_(-self.melt).clamp_(min=FAINT).exp_()
        total = weights.sum(1)
        weights /= total[:, None]
        value, gradient = total.log_() * -self.melt, self.shapes.gradient(unit, weights / slope)
        if self.bumps is not None:
            height, bump = self._bump(points)
            value = value - height.sum(1)
            gradient = gradient + self.bumps.gradient(bump, height * 2)
        if self.carves is not None:
            value, gradient = self._carved(points, value, gradient)
        if sign is not None:
            gradient[:, 0] *= sign
        return Sample(value, gradient, weights)

    def _folded(self, points):
        """The points on the positive side of x, where a mirrored group has its shapes."""
        return torch.cat([points[:, :1].abs(), points[:, 1:]], 1) if self.mirrored else points

    def _bump(self, points):
        unit = self.bumps.inside(points)
        return (unit * unit).sum(2).neg_().clamp_(min=FAINT).exp_() * self.heights, unit

    def _carve(self, points):
        distance, unit, slope = self.carves.distances(points)
        return distance.amin(1), distance, unit, slope

    def _carved(self, points, value, gradient):
        nearest, distance, unit, slope = self._carve(points)
        chosen = (distance == nearest[:, None]).float() / slope
        inner = self.carves.gradient(unit, chosen)
        share = torch.sigmoid((value + nearest) / self.carve_melt)[:, None]
        value = torch.logaddexp(value / self.carve_melt, -nearest / self.carve_melt) * self.carve_melt
        return value, torch.lerp(-inner, gradient, share)
