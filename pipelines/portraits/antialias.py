"""Light on what rays have found, and four more rays in every pixel at an edge.

Most of these rays need little: next to them is a pixel centre of which everything is known.
"""

from dataclasses import dataclass

import numpy as np

from .arrays import Array, as_float, clip, like, put, rows_of, space, take
from .gbuffer import CHANNELS, DEPTH, FACING, HERE, PART, PIECE, Nearby, World
from .raycast import MISS
from .shading import LightRig, film, radiance

# Where the four extra rays of a pixel at an edge go, in pixels from its middle.
EDGE_SAMPLES = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
ALBEDO_EDGE, DEPTH_EDGE, NORMAL_EDGE = 0.45, 0.15, 0.6
STEEP = 2.0  # surfaces that fall off faster are looked for anew


@dataclass
class Rays:
    """R rays of B scenes: x, y [B, R], what they found, what is behind [B, 3, R], how much of every light arrives."""

    x: Array
    y: Array
    found: Array
    behind: Array
    arrives: Array | None = None

    def at(self, index: Array) -> "Rays":
        """The rays with these numbers [B, K]."""
        return Rays(*(take(values, index) for values in vars(self).values()))

    def point(self) -> Array:
        """What they hit, [B, 3, R]."""
        return space(self.x).stack([self.x, self.y, self.found[:, DEPTH]], 1)

    def hit(self) -> Array:
        """Which of them hit something, [B, R]."""
        return self.found[:, DEPTH] > MISS


def arriving(world: World, rig: LightRig, rays: Rays, where: Array) -> Array:
    """How much of sky and lights arrives at what rays hit: [B, 1 + L, R], known where ``where`` [B, R] is true."""
    xp, index = space(rays.x), rows_of(where)
    arrives = xp.stack([xp.ones_like(rays.x)] * (1 + rig.count), 1)
    if index.shape[1]:
        put(arrives, index, rig.arriving(world.occluders, take(rays.point(), index)))
    return arrives


def picture(rig: LightRig, rays: Rays) -> Array:
    """What the film sees, [B, 3, R] in 0..1: surfaces where there are some, else the background."""
    light, index = rays.behind + 0, rows_of(rays.hit())
    if index.shape[1]:
        near = rays.at(index)
        albedo, normal, reflect = (near.found[:, CHANNELS[name]] for name in ("albedo", "normal", "reflect"))
        lit = radiance(rig, near.arrives, near.point(), normal, albedo, reflect) * rig.exposure
        put(light, index, space(lit).where(near.hit()[:, None], lit, near.behind))
    return film(light)


def antialias(world: World, rig: LightRig, image: Array, alpha: Array, centers: Rays, pixel: Array, tolerance) -> None:
    """Average four more rays into every pixel at an edge, as the eye would: after the film.

    image [B, 3, H, W] and alpha [B, 1, H, W] are changed; centers: the rays of all pixels; pixel [B, 1]: their size.
    """
    height, width = image.shape[2:]
    edge = rows_of(_edges(centers.found, height, width))
    if not edge.shape[1]:
        return
    around, same = _nearby(centers.found, edge, height, width)
    middle, count = centers.at(edge), len(EDGE_SAMPLES)
    shifts = like(EDGE_SAMPLES, pixel)[:, :, None] * pixel[:, None, None]
    tilt = middle.found[:, CHANNELS["tilt"]]
    depth = middle.found[:, None, DEPTH] + (tilt[:, None] * shifts).sum(2)
    xp = space(pixel)
    over = Rays(*(xp.concatenate([values] * count, -1) for values in vars(middle).values()))
    same = xp.concatenate([same] * count, 1)
    over.x, over.y = ((values[:, None] + shifts[:, :, axis]).reshape(len(edge), -1)
                      for axis, values in enumerate((middle.x, middle.y)))  # fmt: skip
    nearby = Nearby(xp.concatenate([around] * count, 2), same, depth.reshape(len(edge), -1))
    over.found = world.trace_nearby(over.x, over.y, tolerance, nearby)
    new = over.hit() & ~same
    over.arrives = xp.where(new[:, None], arriving(world, rig, over, new), over.arrives)
    for map_, values in ((image, picture(rig, over)), (alpha, as_float(over.hit())[:, None])):
        mean = values.reshape(*values.shape[:2], count, -1).mean(2)
        put(map_.reshape(*map_.shape[:2], -1), edge, mean)


def _edges(found, height, width) -> Array:
    """Pixels [B, R] beside which something else is seen."""
    albedo, what = found[:, CHANNELS["albedo"]].sum(1), found[:, PART] + 64 * found[:, PIECE]
    albedo, what, depth, facing = (
        values.reshape(len(found), height, width) for values in (albedo, what, found[:, DEPTH], found[:, FACING])
    )
    edge = what < 0
    for here, there in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :, 1:], np.s_[:, :, :-1])):
        differs = what[here] != what[there]
        for values, limit in ((albedo, ALBEDO_EDGE), (depth, DEPTH_EDGE), (facing, NORMAL_EDGE)):
            differs |= abs(values[here] - values[there]) > limit
        edge[here] |= differs
        edge[there] |= differs
    return edge.reshape(len(edge), -1)


def _nearby(found, edge, height, width):
    """Pieces [B, 9, K] seen around pixels ``edge`` [B, K], and where these are one surface without steps: [B, K]."""
    xp, row, column = space(found), edge // width, edge % width
    rows = [clip(row + step, 0, height - 1) * width for step in (-1, 0, 1)]
    columns = [clip(column + step, 0, width - 1) for step in (-1, 0, 1)]
    index = xp.concatenate([one + other for one in rows for other in columns], 1)
    around, depth = (take(found[:, part], index).reshape(len(found), 9, -1) for part in (PIECE, DEPTH))
    steep = abs(take(found[:, CHANNELS["tilt"]], edge)).sum(1) > STEEP
    flat = xp.amax(depth, 1) - xp.amin(depth, 1) < DEPTH_EDGE
    return around, (around == around[:, HERE : HERE + 1]).all(1) & (around[:, HERE] > 0) & flat & ~steep
