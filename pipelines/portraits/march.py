"""How far the camera's rays go until they meet a group: a walk along its distance field, many rays at once."""

from dataclasses import dataclass

import numpy as np

from .arrays import Array, array, as_float, clip, rows_of, space, take
from .fields import GroupField
from .lines import END, GroupLines, features

SLOW = 0.75  # a step that leaves more than this share of the distance grazes
ROUNDS = 5  # of one or two steps each; most rays need one


@dataclass
class Marched:
    """Where rays have come. keep: which of those asked for may meet the group, [B, K]; the rest [B, K] is of these.

    meets: whether they come near it at all; reached: whether they are close to its surface; distance: how far they
    have gone.
    """

    keep: Array
    meets: Array
    reached: Array
    distance: Array


class March:
    """One group of S scenes on bones ``turn`` [S, 3, 3] and ``origin`` [S, 3], in boxes ``corners`` [S, 2, 3].

    margin: how far from its shapes the group's surface may lie; 0 where a ray meets the group as it enters a shape.
    """

    def __init__(self, field: GroupField, turn: np.ndarray, origin: np.ndarray, corners: np.ndarray, margin, device):
        middle = corners.mean(1) * (1, 1, 0)  # what is near 0 is exact in quadratics
        self.field, self.margin = field, margin
        self.lines = GroupLines(field, (turn, origin - middle), device)
        self.turn, self.origin, self.middle = (array(values, device) for values in (turn, origin[..., None], middle))

    def __call__(self, x: Array, y: Array, limit: Array, tolerance: float) -> Marched:
        """Rays through ``x``, ``y`` [S, R] up to ``limit``; within ``tolerance`` of the surface is reached."""
        xp = space(x)
        seen = features(x - self.middle[:, :1], y - self.middle[:, 1:2])
        entries = self._entries(seen)
        start = xp.amin(entries, 1)
        keep = rows_of(start < limit)
        seen, entries, start, limit = (take(values, keep) for values in (seen, entries, start, limit))
        meets = start < limit
        if self.margin == 0 or not keep.shape[1]:
            return Marched(keep, meets, xp.ones_like(meets), start)
        reached, distance = self._walk((seen, entries, limit), xp.where(meets, start, END), tolerance)
        left = rows_of(meets & (reached | (distance < limit)))
        return Marched(*(take(values, left) for values in (keep, meets, reached, distance)))

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


def _written(values, index, new):
    """``values`` [B, R] with ``new`` [B, K] at ``index``; all of it where that is ``None``."""
    if index is None:
        return new
    if isinstance(values, np.ndarray):
        values[0, index[0]] = new[0]
        return values
    return values.scatter(1, index, new)
