"""The distance field of a group of shapes: a smooth union with reliefs and cut-outs, for many points at once.

Layout: B scenes, P shapes, R rays; points are [B, 3, R], a field is [B, R]. Distances are first-order exact at the
surface, which is all that walking along a ray needs.
"""

from dataclasses import dataclass

import numpy as np

from .arrays import Array, array, as_float, clip, lerp, matmul, soft_maximum, space
from .shapes import Group, Shape, Stack

FAR = 1e3  # where the filler shapes of a batch are
FILLER = Shape(np.eye(3), np.full(3, FAR), 0.0, (0, 0, 0))
FAINT = -60.0  # exponents below are as good as 0; the numbers that follow are slow denormal ones


@dataclass
class ShapeSet:
    """Shapes of B scenes: matrix [B, P, 3, 3], offset [B, P, 3], sweep [B, P, 1], slope [B, P, 3, 1].

    ``exact_matrix`` and ``exact_offset`` are the same with numpy and in double precision, to compute more from.
    """

    matrix: Array
    offset: Array
    sweep: Array
    slope: Array
    swept: bool
    exact_matrix: np.ndarray
    exact_offset: np.ndarray

    @staticmethod
    def of(scenes: list[list[Shape]], device) -> "ShapeSet | None":
        """Stack lists of shapes; shorter ones are filled up with shapes far away."""
        count = max(len(shapes) for shapes in scenes)
        if not count:
            return None
        stack = Stack.of([shape for shapes in scenes for shape in shapes + [FILLER] * (count - len(shapes))])
        matrix, offset = stack.matrix.reshape(-1, count, 3, 3), stack.offset.reshape(-1, count, 3)
        sweep, slope = stack.sweep.reshape(-1, count, 1), (matrix**2).sum(-1, keepdims=True)
        numbers = (array(values, device) for values in (matrix, offset, sweep, slope))
        return ShapeSet(*numbers, bool(sweep.any()), matrix, offset)

    def inside(self, points: Array) -> Array:
        """Points in the unit space of every shape, measured from the swept axis: [B, P, 3, R]."""
        xp = space(points)
        batch, count = self.offset.shape[:2]
        flat = matmul(self.matrix.reshape(batch, -1, 3), points)
        flat += self.offset.reshape(batch, -1, 1)
        unit = flat.reshape(batch, count, 3, -1)
        if self.swept:
            along = unit[:, :, 1]
            along -= xp.maximum(xp.minimum(along, self.sweep), -self.sweep)
        return unit

    def distances(self, points: Array) -> tuple[Array, Array, Array]:
        """Signed distance [B, P, R] to every shape, the unit-space points and the length of the distance's slope."""
        xp = space(points)
        unit = self.inside(points)
        square = unit * unit
        radius = xp.sqrt(square.sum(2))
        square *= self.slope
        slope = xp.sqrt(square.sum(2))
        slope += 1e-6
        return radius * (radius - 1) / slope, unit, slope

    def gradient(self, unit: Array, weight: Array) -> Array:
        """Sum of the shapes' slopes in the bone's space, weighted by ``weight`` [B, P, R]: [B, 3, R]."""
        batch, count = weight.shape[:2]
        scaled = (unit * weight[:, :, None]).reshape(batch, count * 3, -1)
        return matmul(self.matrix.reshape(batch, -1, 3).swapaxes(1, 2), scaled)


@dataclass
class Sample:
    """The field at points: value [B, R], gradient [B, 3, R] (about unit length), weights of the shapes [B, P, R]."""

    value: Array
    gradient: Array
    weights: Array


class GroupField:
    """The field of one group in B scenes, in the space of its bone."""

    def __init__(self, groups: list[Group], device):
        first = groups[0]
        self.shapes = ShapeSet.of([group.shapes for group in groups], device)
        self.bumps = ShapeSet.of([[shape for shape, _ in group.bumps] for group in groups], device)
        self.carves = ShapeSet.of([group.carves for group in groups], device)
        self.melt, self.carve_melt, self.mirrored = first.melt, first.carve_melt, first.mirrored
        self.heights = None
        if self.bumps is not None:
            count = self.bumps.offset.shape[1]
            heights = [[height for _, height in group.bumps] for group in groups]
            self.heights = array([row + [0.0] * (count - len(row)) for row in heights], device)[..., None]

    def sample(self, points: Array) -> Sample:
        """Value, gradient and the share of every shape in the surface, [B, P, R]."""
        xp = space(points)
        folded = xp.concatenate([abs(points[:, :1]), points[:, 1:]], 1) if self.mirrored else points
        distance, unit, slope = self.shapes.distances(folded)
        value, weights = self._blended(distance)
        gradient = self.shapes.gradient(unit, weights / slope)
        if self.bumps is not None:
            bump = self.bumps.inside(folded)
            height = xp.exp(clip(-(bump * bump).sum(2), FAINT)) * self.heights
            value = value - height.sum(1)
            gradient += self.bumps.gradient(bump, height * 2)
        if self.carves is not None:
            value, gradient = self._carved(folded, value, gradient)
        if self.mirrored:
            gradient[:, 0] *= xp.sign(points[:, 0])
        return Sample(value, gradient, weights)

    def _blended(self, distance):
        """The smooth union and how much every shape has of it."""
        xp = space(distance)
        if distance.shape[1] == 1:
            return distance[:, 0], xp.ones_like(distance)
        weights = xp.exp(clip(distance / -self.melt, FAINT))
        total = weights.sum(1)
        weights /= total[:, None]
        return xp.log(total) * -self.melt, weights

    def _carved(self, points, value, gradient):
        xp = space(points)
        distance, unit, slope = self.carves.distances(points)
        nearest = xp.amin(distance, 1)
        inner = self.carves.gradient(unit, as_float(distance == nearest[:, None]) / slope)
        share = 1 / (1 + xp.exp(clip((value + nearest) / -self.carve_melt, FAINT, -FAINT)))[:, None]
        value = soft_maximum(value, -nearest, self.carve_melt)
        return value, lerp(-inner, gradient, share)
