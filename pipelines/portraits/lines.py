"""The fields of groups along the camera's rays, where they cost a fraction of what they cost at free points.

All rays run along -z. So what a shape's unit space makes of a point of a ray is linear in x, y and the distance t that
the ray has gone, and squares of lengths there are quadratics in t whose coefficients are quadratics in x and y: one
product of matrices gives them for all shapes and rays, and every further step of a ray is a few sums per shape.
"""

import numpy as np

from .arrays import Array, array, clip, lerp, matmul, soft_maximum, space
from .fields import FAINT, GroupField, ShapeSet

END = 2e3  # where rays go that have nothing more to meet
MIRROR = np.diag([-1.0, 1.0, 1.0])
FIRST, SECOND, OFTEN = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2), (1, 2, 2, 1, 2, 1)  # products of 1, x and y


def features(x: Array, y: Array) -> Array:
    """What a quadratic in x and y is a sum of: [B, 6, R]."""
    made = space(x).concatenate([x[:, None]] * 6, 1)
    made[:, 0] = 1
    made[:, 2] = y
    made[:, 3] *= x
    made[:, 4] *= y
    made[:, 5] = y * y
    return made


class Quadratics:
    """Shapes of B scenes, for rays; S sides: 1, or 2 where the group is mirrored.

    rows: [B, S, N * P, 6], what turns features into N coefficients of each shape: square of the distance from the
    shape's middle (0th and 1st), the same weighted by slope, and where shapes are swept the place along that axis;
    fixed: [B, S, F, P, 1], coefficients that all rays share: the 2nd of both squares, the speed along the swept axis.
    """

    def __init__(self, shapes: ShapeSet, frames, mirrored: bool, device):
        self.count, self.swept, self.sweep = shapes.offset.shape[1], shapes.swept, shapes.sweep
        sides = [shapes.exact_matrix, shapes.exact_matrix @ MIRROR] if mirrored else [shapes.exact_matrix]
        made = [_coefficients(side, shapes.exact_offset, *frames, self.swept) for side in sides]
        self.rows = array(np.stack([rows for rows, _ in made], 1), device)
        self.fixed = array(np.stack([fixed for _, fixed in made], 1), device)
        self.swept_slope, self.reach = shapes.slope[:, :, 1], space(shapes.slope).amax(shapes.slope, 2) ** 0.5

    def along(self, seen: Array, side: int | Array = 0) -> "Curves":
        """The curves of rays with features ``seen`` [B, 6, K], on one side or each on its own: ``side`` [B, K]."""
        xp = space(seen)
        if isinstance(side, int):
            return Curves(self, matmul(self.rows[:, side], seen), self.fixed[:, side])
        here = side[:, None]
        rows = xp.concatenate([self.rows[:, 0], self.rows[:, 1]], 2)
        table = matmul(rows, xp.concatenate([seen * (1 - here), seen * here], 1))
        return Curves(self, table, lerp(self.fixed[:, 0], self.fixed[:, 1], here[:, None]))


def _coefficients(matrix, offset, turn, origin, swept):
    """Rows and fixed coefficients of one side; turn [B, 3, 3] and origin [B, 3] place the bone in the world."""
    world = matrix @ turn.swapaxes(1, 2)[:, None]
    linear = np.stack([offset - (world @ origin[:, None, :, None])[..., 0], world[..., 0], world[..., 1]], -1)
    speed, slope = -world[..., 2], (matrix**2).sum(-1)
    weights = [np.ones_like(slope), slope]
    if swept:
        weights = [weight * (1, 0, 1) for weight in weights]
    rows, fixed = [], []
    for weight in weights:
        scaled = linear * weight[..., None]
        rows.append((scaled.swapaxes(2, 3) @ linear)[:, :, FIRST, SECOND] * OFTEN)
        rows.append(_as_row(2 * (scaled * speed[..., None]).sum(2)))
        fixed.append((weight * speed**2).sum(2))
    if swept:
        rows.append(_as_row(linear[:, :, 1]))
        fixed.append(speed[:, :, 1])
    return np.concatenate(rows, 1), np.stack(fixed, 1)[..., None]


def _as_row(linear):
    return np.concatenate([linear, np.zeros_like(linear)], -1)


class Curves:
    """K rays past P shapes: everything is [B, P, K] and a function of how far the rays have gone, [B, K]."""

    def __init__(self, shapes: Quadratics, table: Array, fixed: Array):
        self.row = table.reshape(table.shape[0], -1, shapes.count, table.shape[2]).swapaxes(0, 1)
        self.fixed, self.shapes = fixed.swapaxes(0, 1), shapes

    def _polynomial(self, which: int, gone):
        value = self.fixed[which] * gone
        value += self.row[2 * which + 1]
        value *= gone
        value += self.row[2 * which]
        return value

    def _past_axis(self, gone):
        """How far beyond the ends of the swept axis, squared."""
        xp, sweep = space(gone), self.shapes.sweep
        along = self.fixed[2] * gone
        along += self.row[4]
        along -= xp.maximum(xp.minimum(along, sweep), -sweep)
        along *= along
        return along

    def squares(self, gone: Array) -> Array:
        """Squared distances in the unit spaces."""
        value = self._polynomial(0, gone[:, None])
        if self.shapes.swept:
            value += self._past_axis(gone[:, None])
        return value

    def distances(self, gone: Array) -> Array:
        """Signed distances, as of ``ShapeSet.distances``."""
        xp, gone = space(gone), gone[:, None]
        square, slope = self._polynomial(0, gone), self._polynomial(1, gone)
        if self.shapes.swept:
            past = self._past_axis(gone)
            square += past
            past *= self.shapes.swept_slope
            slope += past
        square = clip(square, 1e-12)
        value = square - xp.sqrt(square)
        value /= xp.sqrt(clip(slope, 1e-12))
        return value

    def entries(self, margin: float) -> Array:
        """Distances at which the rays enter the shapes, made larger by ``margin`` in the bone's space."""
        xp, shapes = space(self.fixed), self.shapes
        length, square, middle = self.fixed[0], self.row[0], self.row[1] * 0.5
        grown = 1 + margin * shapes.reach
        if not shapes.swept:
            return _entry(length, middle, square - grown * grown)
        along, speed, sweep = self.row[4], self.fixed[2], shapes.sweep
        if margin == 0:
            ends = [_entry(length + speed * speed, middle + (along - at) * speed, square + (along - at) ** 2 - 1)
                    for at in (-sweep, sweep)]  # fmt: skip
            tube = _entry(clip(length, 1e-9), middle, square - 1)
            tube = xp.where(abs(along + tube * speed) <= sweep, tube, END)
            return xp.minimum(xp.minimum(*ends), tube)
        # The smallest such ellipsoids around spheres that are swept along an axis.
        share = sweep / (grown + sweep)
        wide = (grown * grown * (1 + share * share)) ** -1
        high = wide * (grown / (grown + sweep)) ** 2
        return _entry(
            length * wide + speed * speed * high,
            middle * wide + along * speed * high,
            square * wide + along * along * high - 1,
        )


def _entry(length, middle, rest):
    """The first root of ``length t^2 + 2 middle t + rest``, END where there is none."""
    xp = space(middle)
    root = middle * middle - length * rest
    entry = (-middle - xp.sqrt(clip(root, 0))) / length
    return xp.where(root > 0, entry, END)


class GroupLines:
    """One group of B scenes for rays; ``frames``: turn [B, 3, 3] and origin [B, 3] of its bones."""

    def __init__(self, field: GroupField, frames, device):
        self.field = field
        self.shapes, self.bumps, self.carves = (
            None if shapes is None else Quadratics(shapes, frames, field.mirrored, device)
            for shapes in (field.shapes, field.bumps, field.carves)
        )

    def along(self, seen: Array, side: int | Array, relief: bool) -> "GroupCurves":
        """The group's field along rays, as ``Quadratics.along``; ``relief`` False leaves the bumps out."""
        sets = (self.shapes, self.bumps if relief else None, self.carves)
        return GroupCurves(self.field, *(None if one is None else one.along(seen, side) for one in sets))


class GroupCurves:
    """The field of one group along K rays, as functions of how far they have gone."""

    def __init__(self, field: GroupField, shapes: Curves, bumps: Curves | None, carves: Curves | None):
        self.field, self.shapes, self.bumps, self.carves = field, shapes, bumps, carves

    def union(self, gone: Array) -> Array:
        """Signed distance [B, K] to the shapes alone."""
        xp, distance = space(gone), self.shapes.distances(gone)
        if distance.shape[1] == 1:
            return distance[:, 0]
        distance /= -self.field.melt
        return xp.log(xp.exp(clip(distance, FAINT)).sum(1)) * -self.field.melt

    def value(self, gone: Array) -> Array:
        """Signed distance [B, K] with reliefs and cut-outs."""
        xp, value = space(gone), self.union(gone)
        if self.bumps is not None:
            value = value - (xp.exp(clip(-self.bumps.squares(gone), FAINT)) * self.field.heights).sum(1)
        if self.carves is not None:
            value = soft_maximum(value, -xp.amin(self.carves.distances(gone), 1), self.field.carve_melt)
        return value
