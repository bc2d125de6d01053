"""Parallel rays against groups of shapes: closed-form entry, a short walk to the blended surface, shadows.

The camera is a very long lens, so all rays run along -z and a landmark's pixel is a multiple of its x and y.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .fields import GroupField, Sample
from .shapes import Group

MISS = -1e3  # depth of a ray that hits nothing
END = 2e3  # where rays go that have nothing more to meet
EXACT_MELT = 0.02
SLOW = 0.75  # a step that leaves more than this share of the distance grazes
ROUNDS = 5  # of one or two steps each; most rays need one
# Every step goes on by the distance over the slope along the ray, at least this slope: rays that graze stay in front.
MIN_SLOPE = 0.35


def rows_of(mask: torch.Tensor) -> torch.Tensor:
    """Where ``mask`` [B, R] is true: indices [B, K], K the largest count of a row.

    A row with fewer is filled up by repeating its first, one without any by its ray 0: that costs a little and changes
    nothing, because a ray's result does not depend on how often it is asked for.
    """
    count = mask.sum(1)
    most = int(count.max())
    row, column = mask.nonzero(as_tuple=True)
    if len(mask) == 1:
        return column[None]
    place = torch.arange(len(row), device=mask.device) - (count.cumsum(0) - count)[row]
    first = mask.byte().argmax(1, keepdim=True)
    index = first.expand(-1, most).clone()
    index[row, place] = column
    return index


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors [B, 3, K] at length 1."""
    return vectors * (vectors * vectors).sum(1, keepdim=True).clamp_(min=1e-12).rsqrt_()


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Entries [B, ..., K] of ``values`` [B, ..., R] at ``index`` [B, K]."""
    if len(index) == 1:
        return values[..., index[0]]
    shape = (len(index),) + (1,) * (values.ndim - 2) + (index.shape[1],)
    return values.gather(-1, index.view(shape).expand(*values.shape[:-1], -1))


@dataclass
class Hits:
    """Where rays meet a group in S scenes: ray index, hit, depth [S, K]; points [S, 3, K] in the bone's space."""

    index: torch.Tensor
    hit: torch.Tensor
    depth: torch.Tensor
    point: torch.Tensor
    sample: Sample


class Caster:
    """One group of S scenes, ready for rays: field, bones and boxes to cull by."""

    def __init__(self, groups: list[Group], device):
        self.field = GroupField(groups, device)

        def tensor(values):
            return torch.from_numpy(np.stack(values).astype(np.float32)).to(device)

        self.turn = tensor([group.bone.turn for group in groups])
        self.origin = tensor([group.bone.origin for group in groups])[..., None]
        corners = [group.bounds() for group in groups]
        self.low, self.high = tensor([low for low, _ in corners]), tensor([high for _, high in corners])
        highest = max([height for group in groups for _, height in group.bumps], default=0.0)
        # Shapes that hardly blend need no walk: where a ray enters the first of them is where it meets the group.
        self.exact = groups[0].melt <= EXACT_MELT and self.field.bumps is None and self.field.carves is None
        self.margin = 0.0 if self.exact else 1.1 * groups[0].melt + 0.6 * highest

    def cast(self, x: torch.Tensor, y: torch.Tensor, depth: torch.Tensor, tolerance: float) -> Hits | None:
        """Nearest hits of rays through ``x``, ``y`` in front of ``depth`` [S, R], which something else has already.

        Within ``tolerance`` of the surface counts as a hit.
        """
        inside = (x > self.low[:, :1]) & (x < self.high[:, :1]) & (y > self.low[:, 1:2]) & (y < self.high[:, 1:2])
        index = rows_of(inside)
        if not index.shape[1]:
            return None
        origin, direction = self._local_rays(take(x, index), take(y, index))
        entries = self._entries(origin, direction)
        limit = -take(depth, index)
        keep = rows_of(entries.amin(1) < limit)
        if not keep.shape[1]:
            return None
        index, origin, entries, limit = (take(values, keep) for values in (index, origin, entries, limit))
        return self._walk(index, origin, direction, entries, limit, tolerance)

    def _local_rays(self, x, y):
        """Rays in the bone's space, starting on the plane z = 0 of the world."""
        world = torch.stack([x, y, torch.zeros_like(x)], 1) - self.origin
        return torch.bmm(self.turn.transpose(1, 2), world), -self.turn[:, 2, :, None]

    def _entries(self, origin, direction):
        """Distances [B, P, K] along the rays at which they enter the shapes, made larger by the blend."""
        if self.field.mirrored:
            flip = origin.new_tensor([-1.0, 1.0, 1.0])[None, :, None]
            return torch.cat([self._one_side(origin, direction), self._one_side(origin * flip, direction * flip)], 1)
        return self._one_side(origin, direction)

    def _one_side(self, origin, direction):
        shapes = self.field.shapes
        batch, count = shapes.offset.shape[:2]
        matrix = shapes.matrix.reshape(batch, -1, 3)
        a = torch.baddbmm(shapes.offset.reshape(batch, -1, 1), matrix, origin).view(batch, count, 3, -1)
        d = torch.bmm(matrix, direction).view(batch, count, 3, 1)
        grown = 1 + self.margin * shapes.slope.amax(2).sqrt()
        if not shapes.swept:
            return _sphere_entry(a, d, grown.square())
        if not self.exact:
            return _around_entry(a, d, grown, shapes.sweep)
        shift = torch.zeros_like(d)
        shift[:, :, 1] = shapes.sweep
        ends = torch.minimum(_sphere_entry(a - shift, d, 1.0), _sphere_entry(a + shift, d, 1.0))
        return torch.minimum(ends, _tube_entry(a, d, shapes.sweep))

    def _walk(self, index, origin, direction, entries, limit, tolerance) -> Hits:
        start = entries.amin(1)
        meets = start < limit
        if self.exact:
            point = torch.addcmul(origin, direction, start[:, None])
            return Hits(index, meets, torch.where(meets, -start, MISS), point, self.field.sample(point))
        distance = torch.where(meets, start, END)
        walk = (origin, direction, entries, limit)
        distance, reached = self._approach(*walk, distance, tolerance, 2, relief=False)
        if self.field.bumps is not None:
            distance, reached = self._approach(*walk, distance, tolerance, 1, relief=True)
        point = torch.addcmul(origin, direction, distance[:, None])
        sample = self.field.sample(point)
        slope = -(sample.gradient * direction).sum(1)
        hit = meets & (reached | (sample.value < tolerance))
        distance = distance + sample.value / slope.clamp(min=MIN_SLOPE)
        point = torch.addcmul(origin, direction, distance[:, None])
        return Hits(index, hit, torch.where(hit, -distance, MISS), point, sample)

    def _approach(self, origin, direction, entries, limit, distance, tolerance, steps, relief):
        """Walk to the surface, ``steps`` at a time, ever fewer rays: distances and whether there is one, [B, K]."""
        index, here = None, distance
        reached = torch.ones_like(distance, dtype=torch.bool)
        for _ in range(ROUNDS):
            value = None
            for _ in range(steps):
                before = value
                value = self.field.value(torch.addcmul(origin, direction, here[:, None]), relief)
                here = here + value * 1.1
            there = value <= tolerance
            distance = here if index is None else distance.scatter(1, index, here)
            reached = there if index is None else reached.scatter(1, index, there)
            going = rows_of(~there & (here < limit))
            if not going.shape[1]:
                break
            index = going if index is None else take(index, going)
            origin, entries, limit, here = (take(values, going) for values in (origin, entries, limit, here))
            away = take(value, going)
            if self.field.carves is not None:
                away = self.field.union(torch.addcmul(origin, direction, here[:, None]))
            graze = value > SLOW * before if before is not None else torch.zeros_like(value, dtype=torch.bool)
            here = self._skip(entries, here, away, take(graze, going))
        return distance, reached

    def _skip(self, entries, here, away, graze):
        """Rays that are out of every shape's reach jump to the next one they enter, or end; so do those that graze.

        away: distance from the shapes; graze: does the ray come hardly nearer? It goes on where nothing else follows.
        """
        later = torch.where(entries > here[:, None], entries, END).amin(1)
        return torch.where(
            (away > 1.3 * self.margin) | (graze & (away > 0.4 * self.margin) & (later < END)), later, here
        )

    def normal_to_world(self, gradient: torch.Tensor) -> torch.Tensor:
        """Unit normals [B, 3, K] in the world from slopes in the bone's space."""
        return unit(torch.bmm(self.turn, gradient))

    def to_world(self, point: torch.Tensor) -> torch.Tensor:
        """World points [B, 3, K] from points in the bone's space."""
        return torch.bmm(self.turn, point) + self.origin

    def front(self, place: torch.Tensor) -> torch.Tensor:
        """The foremost points [S, 3, K] of the surface, along the bone's own z axis, at x, y = ``place`` [S, 2, K]."""
        origin = torch.cat([place, torch.zeros_like(place[:, :1])], 1)
        direction = place.new_tensor([0, 0, -1.0])[None, :, None].expand(len(place), 3, 1)
        index = torch.arange(place.shape[2], device=place.device)[None].expand(len(place), -1)
        limit = torch.full_like(origin[:, 0], -MISS)
        return self._walk(index, origin, direction, self._entries(origin, direction), limit, 1.0).point


def _sphere_entry(a, d, square_radius):
    """Entry [B, P, K] into spheres around 0 for rays ``a + t d``."""
    length = (d * d).sum(2)
    middle = torch.matmul(d.transpose(2, 3), a)[:, :, 0]
    root = middle * middle - length * ((a * a).sum(2) - square_radius)
    entry = (-middle - root.clamp(min=0).sqrt_()) / length
    return torch.where(root > 0, entry, END)


def _around_entry(a, d, radius, sweep):
    """Entry [B, P, K] into the smallest such ellipsoids around spheres of ``radius`` that are swept along y."""
    share = sweep / (radius + sweep)
    wide = radius * (1 + share * share).sqrt()
    scale = torch.stack([1 / wide, radius / (wide * (radius + sweep)), 1 / wide], 2)
    return _sphere_entry(a * scale, d * scale, 1.0)


def _tube_entry(a, d, sweep):
    """Entry [B, P, K] into tubes of radius 1 around y, as long as the swept axis."""
    length = (d[:, :, 0].square() + d[:, :, 2].square()).clamp(min=1e-9)
    middle = a[:, :, 0] * d[:, :, 0] + a[:, :, 2] * d[:, :, 2]
    root = middle * middle - length * (a[:, :, 0].square() + a[:, :, 2].square() - 1)
    entry = (-middle - root.clamp(min=0).sqrt_()) / length
    inside = (root > 0) & ((a[:, :, 1] + entry * d[:, :, 1]).abs() <= sweep)
    return torch.where(inside, entry, END)
