"""Parallel rays against groups of shapes: closed-form entry, then a short walk to the blended surface.

The camera is a very long lens, so all rays run along -z and a landmark's pixel is a multiple of its x and y.
"""

from dataclasses import dataclass

import numpy as np

from .arrays import Array, array, clip, matmul, rows_of, space, take, unit
from .fields import GroupField, Sample
from .kernels import kernels
from .march import March
from .shapes import Group, boxes

MISS = -1e3  # depth of a ray that hits nothing
EXACT_MELT = 0.02
# Every step goes on by the distance over the slope along the ray, at least this slope: rays that graze stay in front.
MIN_SLOPE = 0.35


@dataclass
class Hits:
    """Where rays meet a group in S scenes: ray index, hit, depth [S, K]; points [S, 3, K] in the bone's space."""

    index: Array
    hit: Array
    depth: Array
    point: Array
    sample: Sample

    def joined(self, other: "Hits") -> "Hits":
        """These hits and the others."""
        sample = Sample(*(_beside(self.sample, other.sample, name) for name in ("value", "gradient", "weights")))
        return Hits(*(_beside(self, other, name) for name in ("index", "hit", "depth", "point")), sample)


def _beside(one, other, name):
    values = [getattr(one, name), getattr(other, name)]
    return space(values[0]).concatenate(values, -1)


class Caster:
    """One group of S scenes, ready for rays: field, bones and boxes [S, 2, 3] to cull by."""

    def __init__(self, groups: list[Group], device, corners: np.ndarray | None = None):
        self.field = GroupField(groups, device)
        turn = np.stack([group.bone.turn for group in groups])
        origin = np.stack([group.bone.origin for group in groups])
        corners = boxes(groups) if corners is None else corners
        self.turn, self.origin = array(turn, device), array(origin[..., None], device)
        self.low, self.high = (array(part, device) for part in (corners[:, 0], corners[:, 1]))
        highest = max([height for group in groups for _, height in group.bumps], default=0.0)
        # Shapes that hardly blend need no walk: where a ray enters the first of them is where it meets the group.
        self.exact = groups[0].melt <= EXACT_MELT and self.field.bumps is None and self.field.carves is None
        margin = 0.0 if self.exact else 1.1 * groups[0].melt + 0.6 * highest
        if device is None and (compiled := kernels()):
            self.march = compiled.CompiledMarch(self.field, self.turn[0], self.origin[0, :, 0], margin)
            self.sample = self.march.sample
        else:
            self.march = March(self.field, turn, origin, corners, margin, device)
            self.sample = self.field.sample

    def inside(self, x: Array, y: Array) -> Array:
        """Which rays [S, R] pass through the group's box."""
        return (x > self.low[:, :1]) & (x < self.high[:, :1]) & (y > self.low[:, 1:2]) & (y < self.high[:, 1:2])

    def cast(self, x: Array, y: Array, depth: Array, tolerance: float, near: Array | None = None) -> Hits | None:
        """Nearest hits of rays through ``x``, ``y`` in front of ``depth`` [S, R], which something else has already.

        Within ``tolerance`` of the surface counts as a hit. ``near`` [S, R]: which rays to cast, else all.
        """
        inside = self.inside(x, y)
        index = rows_of(inside if near is None else inside & near)
        if not index.shape[1]:
            return None
        x, y = take(x, index), take(y, index)
        rays = self.march(x, y, -take(depth, index), tolerance)
        if not rays.keep.shape[1]:
            return None
        x, y, index = (take(values, rays.keep) for values in (x, y, index))
        if self.exact:
            return self._exact_hits(x, y, index, rays.meets, rays.distance)
        hits = self._settle(x, y, index, rays.meets, rays.distance)
        hits.hit = rays.meets & (rays.reached | (hits.sample.value < tolerance))
        return hits

    def touch(self, x: Array, y: Array, depth: Array, these: Array) -> Hits | None:
        """Hits of ``these`` [S, R] of the rays, of which it is known that they meet the surface close to ``depth``."""
        index = rows_of(these)
        if not index.shape[1]:
            return None
        x, y, distance, hit = take(x, index), take(y, index), -take(depth, index), take(these, index)
        return self._settle(x, y, index, hit, distance)

    def front(self, x: Array, y: Array) -> Array:
        """The foremost points [S, 3, K], in the bone's space, at places [S, K] of the world that it covers."""
        rays = self.march(x, y, -MISS + 0 * x, 1.0)
        return self._settle(x, y, None, rays.meets, rays.distance).point

    def _exact_hits(self, x, y, index, meets, start):
        point = self._to_local(x, y, start)
        return Hits(index, meets, space(x).where(meets, -start, MISS), point, self.sample(point))

    def _settle(self, x, y, index, hit, distance):
        """One last step from close to the surface onto it."""
        sample = self.sample(self._to_local(x, y, distance))
        slope = (sample.gradient * self.turn[:, 2][..., None]).sum(1)
        distance = distance + sample.value / clip(slope, MIN_SLOPE)
        depth = space(x).where(hit, -distance, MISS)
        return Hits(index, hit, depth, self._to_local(x, y, distance), sample)

    def _to_local(self, x, y, gone):
        xp = space(x)
        return matmul(self.turn.swapaxes(1, 2), xp.stack([x, y, -gone], 1) - self.origin)

    def normal_to_world(self, gradient: Array) -> Array:
        """Unit normals [B, 3, K] in the world from slopes in the bone's space."""
        return unit(matmul(self.turn, gradient))

    def to_world(self, point: Array) -> Array:
        """World points [B, 3, K] from points in the bone's space."""
        return matmul(self.turn, point) + self.origin
