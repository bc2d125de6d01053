"""Parallel rays against groups of shapes: closed-form entry, then a short walk to the blended surface.

The camera is a very long lens, so all rays run along -z and a landmark's pixel is a multiple of its x and y.
"""

from dataclasses import dataclass

import numpy as np

from .arrays import Array, array, as_float, clip, matmul, rows_of, space, take, unit
from .fields import GroupField, Sample
from .lines import END, GroupLines, features
from .shapes import Group, boxes

MISS = -1e3  # depth of a ray that hits nothing
EXACT_MELT = 0.02
SLOW = 0.75  # a step that leaves more than this share of the distance grazes
ROUNDS = 5  # of one or two steps each; most rays need one
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
        middle = corners.mean(1) * (1, 1, 0)  # what is near 0 is exact in quadratics
        self.lines = GroupLines(self.field, (turn, origin - middle), device)
        self.turn, self.origin = array(turn, device), array(origin[..., None], device)
        self.low, self.high, self.middle = (array(part, device) for part in (corners[:, 0], corners[:, 1], middle))
        highest = max([height for group in groups for _, height in group.bumps], default=0.0)
        # Shapes that hardly blend need no walk: where a ray enters the first of them is where it meets the group.
        self.exact = groups[0].melt <= EXACT_MELT and self.field.bumps is None and self.field.carves is None
        self.margin = 0.0 if self.exact else 1.1 * groups[0].melt + 0.6 * highest

    def inside(self, x: Array, y: Array) -> Array:
        """Which rays [S, R] pass through the group's box."""
        return (x > self.low[:, :1]) & (x < self.high[:, :1]) & (y > self.low[:, 1:2]) & (y < self.high[:, 1:2])

    def cast(self, x: Array, y: Array, depth: Array, tolerance: float, near: Array | None = None) -> Hits | None:
        """Nearest hits of rays through ``x``, ``y`` in front of ``depth`` [S, R], which something else has already.

        Within ``tolerance`` of the surface counts as a hit. ``near`` [S, R]: which rays to cast, else all.
        """
        xp = space(x)
        inside = self.inside(x, y)
        index = rows_of(inside if near is None else inside & near)
        if not index.shape[1]:
            return None
        x, y, limit = take(x, index), take(y, index), -take(depth, index)
        seen = features(x - self.middle[:, :1], y - self.middle[:, 1:2])
        entries = self._entries(seen)
        start = xp.amin(entries, 1)
        keep = rows_of(start < limit)
        if not keep.shape[1]:
            return None
        x, y, index, limit, start = (take(values, keep) for values in (x, y, index, limit, start))
        meets = start < limit
        if self.exact:
            return self._exact_hits(x, y, index, meets, start)
        walk = (take(seen, keep), take(entries, keep), limit)
        reached, distance = self._walk(walk, xp.where(meets, start, END), tolerance)
        keep = rows_of(meets & (reached | (distance < limit)))
        if not keep.shape[1]:
            return None
        x, y, index, distance, meets, reached = (
            take(values, keep) for values in (x, y, index, distance, meets, reached)
        )
        hits = self._settle(x, y, index, meets, distance)
        hits.hit = meets & (reached | (hits.sample.value < tolerance))
        return hits

    def touch(self, x: Array, y: Array, depth: Array, these: Array) -> Hits | None:
        """Hits of ``these`` [S, R] of the rays, of which it is known that they meet the surface close to ``depth``."""
        index = rows_of(these)
        if not index.shape[1]:
            return None
        x, y, distance, hit = take(x, index), take(y, index), -take(depth, index), take(these, index)
        return self._settle(x, y, index, hit, distance)

    def front(self, x: Array, y: Array) -> Array:
        """The foremost points [S, 3, K], in the bone's space, at these places [S, K] of the world."""
        seen = features(x - self.middle[:, :1], y - self.middle[:, 1:2])
        entries = self._entries(seen)
        start = space(x).amin(entries, 1)
        distance = self._walk((seen, entries, -MISS + 0 * start), start, 1.0)[1]
        return self._settle(x, y, None, start < END, distance).point

    def _exact_hits(self, x, y, index, meets, start):
        point = self._to_local(x, y, start)
        return Hits(index, meets, space(x).where(meets, -start, MISS), point, self.field.sample(point))

    def _settle(self, x, y, index, hit, distance):
        """One last step from close to the surface onto it."""
        sample = self.field.sample(self._to_local(x, y, distance))
        slope = (sample.gradient * self.turn[:, 2][..., None]).sum(1)
        distance = distance + sample.value / clip(slope, MIN_SLOPE)
        depth = space(x).where(hit, -distance, MISS)
        return Hits(index, hit, depth, self._to_local(x, y, distance), sample)

    def _to_local(self, x, y, gone):
        xp = space(x)
        return matmul(self.turn.swapaxes(1, 2), xp.stack([x, y, -gone], 1) - self.origin)

    def _entries(self, seen):
        """Distances [S, P, K] along the rays at which they enter the shapes, made larger by the blend."""
        shapes = self.lines.shapes
        sides = [shapes.along(seen, side).entries(self.margin) for side in range(shapes.rows.shape[1])]
        return sides[0] if len(sides) == 1 else space(seen).concatenate(sides, 1)

    def _side(self, seen, gone):
        """Which half of a mirrored group rays are in: 0 where the bone's x is positive, else 1."""
        if not self.field.mirrored:
            return 0
        at = (self.turn[:, :2, 0] * (self.middle[:, :2] - self.origin[:, :2, 0])).sum(1)[:, None]
        across = seen[:, 1] * self.turn[:, :1, 0] + seen[:, 2] * self.turn[:, 1:2, 0] + at
        return as_float(across < (gone + self.origin[:, 2]) * self.turn[:, 2:, 0])

    def _walk(self, walk, distance, tolerance):
        """Which rays get to the surface, and how far they have gone then."""
        reached, distance = self._approach(walk, distance, tolerance, 2, relief=False)
        if self.field.bumps is not None:
            reached, distance = self._approach(walk, distance, tolerance, 1, relief=True)
        return reached, distance

    def _approach(self, walk, distance, tolerance, steps, relief):
        """Walk to the surface, ``steps`` at a time, ever fewer rays: whether they may be there, and distances."""
        xp, index, here = space(distance), None, distance
        seen, entries, limit = walk
        reached, distance = xp.ones_like(distance, dtype=bool), distance
        for _ in range(ROUNDS):
            curves, value = self.lines.along(seen, self._side(seen, here), relief), None
            for _ in range(steps):
                before = value
                value = curves.value(here)
                here = here + value * 1.1
            there = value <= tolerance
            reached, distance = _written(reached, index, there), _written(distance, index, here)
            going = rows_of(~there & (here < limit))
            if not going.shape[1]:
                break
            index = going if index is None else take(index, going)
            left = xp.zeros_like(value) if before is None else value / clip(abs(before), 1e-9)
            away = value if self.field.carves is None else curves.union(here)
            here, left, away, seen, entries, limit = (
                take(values, going) for values in (here, left, away, seen, entries, limit)
            )
            here = self._skip(entries, here, away, left)
        return reached, distance

    def _skip(self, entries, here, away, left):
        """Rays that are out of every shape's reach jump to the next one they enter, or end; so do those that graze.

        away: distance from the shapes; left: the share of the distance to the surface that the last step left over. A
        ray that hardly comes nearer goes on where nothing else follows, unless it even goes away again.
        """
        xp = space(here)
        later = xp.amin(xp.where(entries > here[:, None], entries, END), 1)
        graze = (left > SLOW) & (away > 0.4 * self.margin)
        return xp.where((away > 1.3 * self.margin) | (graze & ((later < END) | (left > 1))), later, here)

    def normal_to_world(self, gradient: Array) -> Array:
        """Unit normals [B, 3, K] in the world from slopes in the bone's space."""
        return unit(matmul(self.turn, gradient))

    def to_world(self, point: Array) -> Array:
        """World points [B, 3, K] from points in the bone's space."""
        return matmul(self.turn, point) + self.origin


def _written(values, index, new):
    """``values`` [B, R] with ``new`` [B, K] at ``index``; all of it where that is ``None``."""
    if index is None:
        return new
    if isinstance(values, np.ndarray):
        values[0, index[0]] = new[0]
        return values
    return values.scatter(1, index, new)
