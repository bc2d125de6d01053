"""What takes most of a processor's time, compiled by numba where that is installed.

The same maths as ``march``, ``lines``, ``fields``, ``shadows`` and ``noise`` have for arrays, so pictures are the same
but for the last bits of float32. What is faster: LANES rays or points go through all shapes while they are in the
processor's vectors, and a ray that has arrived leaves its place to the next one.

Numbers lie in flat arrays, LANES of each kind side by side at places that the compiler knows, so it sees that they do
not overlap, and makes one vector of every loop over ``lane``.

All in one file, long as that makes it: numba keeps compiled functions until the file that they are in changes, so one
that calls another file's would go on with what that held before an update.
"""

import math

import numba
import numpy as np

from . import kernels
from .arrays import take
from .fields import GroupField, Sample, ShapeSet
from .march import Marched

LANES = 16
# As in ``fields``, ``lines``, ``march`` and ``noise``, but of this file: until it changes numba takes what it has on
# disk, whatever others say.
LOWEST, END, SLOW = (np.float32(value) for value in (-60, 2e3, 0.75))
ROUNDS, PRIMES = 5, (73856093, 19349663, 83492791)
ZERO, HALF, ONE, TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
TINY, LITTLE = np.float32(1e-12), np.float32(1e-9)

# A shape: matrix, offset, sweep, slope, the ellipsoid to enter, and a bump's height.
MATRIX, OFFSET, SWEEP, SLOPE, WIDE, HIGH, HEIGHT, NUMBERS = 0, 9, 12, 13, 16, 17, 18, 19
# A ray past a shape: constant, linear and square coefficient of the squared distance from the swept axis, the same
# weighted by slope, then place and speed along the axis.
C, B, A, C_SLOPE, B_SLOPE, A_SLOPE, ALONG, SPEED, PAST = (LANES * row for row in range(9))
# A ray by itself: where it starts in the bone's space, the side of the mirror, how far it may go and has gone, the
# field there and one step before, the shapes' union, what is cut out, where it enters the first shape, and if it walks.
X, Y, Z, FLIP, LIMIT, HERE, VALUE, BEFORE, UNION, CUT, FIRST, WALKS, STATE = (LANES * row for row in range(13))
# A point in the unit space of a shape, its distance from it, the slope of that, and the shape's weight.
U, V, W, DISTANCE, STEEP, WEIGHT, PLACE = (LANES * row for row in range(7))


def _compiled(function):
    """``function`` compiled at its first call, and kept on disk for the next process where that works.

    Sums stay in the order in which they are written: else what is compiled and what is loaded again differ by rounding.
    """
    fast = {"nnan", "ninf", "nsz"}
    return numba.njit(function, cache=kernels.ON_DISK, nogil=True, fastmath=fast, error_model="numpy")


@_compiled
def _exp(value):
    """The exponential of -87 .. 88, to float32's precision: unlike the library's the compiler makes vectors of it."""
    whole = np.floor(value * np.float32(1.44269504) + HALF)
    rest = value - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    series = np.float32(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        series = series * rest + np.float32(factor)
    power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
    return (series * rest * rest + rest + ONE) * power.view(np.float32)


@_compiled
def _log(value):
    """The logarithm of a positive number, as ``_exp``."""
    bits = np.float32(value).view(np.int32)
    whole = np.float32(((bits >> np.int32(23)) & np.int32(255)) - np.int32(126))
    part = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000)).view(np.float32)
    small = part < np.float32(0.70710678)
    rest, whole = (part + part - ONE if small else part - ONE), (whole - ONE if small else whole)
    series = np.float32(7.0376836292e-2)
    for factor in (
        *(-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
        *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    ):
        series = series * rest + np.float32(factor)
    square = rest * rest
    made = series * rest * square - whole * np.float32(2.12194440e-4) - HALF * square
    return rest + made + whole * np.float32(0.693359375)


@_compiled
def _aim(shapes, first, last, way, state, line):
    """Coefficients ``line`` of the rays for some of the shapes; ``way`` [3]: where they go in the bone's space."""
    across, up, deep = way
    for p in range(first, last):
        low, high = shapes[p, SLOPE], shapes[p, SLOPE + 2]
        a, b, c, d, e, f = shapes[p, 0], shapes[p, 1], shapes[p, 2], shapes[p, 3], shapes[p, 4], shapes[p, 5]
        g, h, i, k, m, n = shapes[p, 6], shapes[p, 7], shapes[p, 8], shapes[p, 9], shapes[p, 10], shapes[p, 11]
        for lane in range(LANES):
            flip, y, z = state[FLIP + lane], state[Y + lane], state[Z + lane]
            x, dx = state[X + lane] * flip, across * flip
            u, v = a * x + b * y + c * z + k, g * x + h * y + i * z + n
            du, dv = a * dx + b * up + c * deep, g * dx + h * up + i * deep
            line[p, C + lane] = u * u + v * v
            line[p, B + lane] = TWO * (u * du + v * dv)
            line[p, A + lane] = du * du + dv * dv
            line[p, C_SLOPE + lane] = low * u * u + high * v * v
            line[p, B_SLOPE + lane] = TWO * (low * u * du + high * v * dv)
            line[p, A_SLOPE + lane] = low * du * du + high * dv * dv
            line[p, ALONG + lane] = d * x + e * y + f * z + m
            line[p, SPEED + lane] = d * dx + e * up + f * deep


@_compiled
def _square(line, p, lane, sweep, gone):
    """A ray's squared distance from a shape's axis in the unit space, and the part of it along the axis."""
    past = line[p, ALONG + lane] + line[p, SPEED + lane] * gone
    past -= max(min(past, sweep), -sweep)
    past *= past
    return (line[p, A + lane] * gone + line[p, B + lane]) * gone + line[p, C + lane] + past, past


@_compiled
def _distance(line, p, lane, sweep, slope, gone):
    """A ray's signed distance from a shape."""
    square, past = _square(line, p, lane, sweep, gone)
    square = max(square, TINY)
    steep = (line[p, A_SLOPE + lane] * gone + line[p, B_SLOPE + lane]) * gone + line[p, C_SLOPE + lane] + past * slope
    return (square - math.sqrt(square)) / math.sqrt(max(steep, TINY))


@_compiled
def _unite(shapes, last, line, melt, state):
    """The smooth union of the first shapes at ``HERE``, into ``UNION``."""
    sharp = -ONE / melt
    for lane in range(LANES):
        state[UNION + lane] = ZERO
    for p in range(last):
        sweep, slope = shapes[p, SWEEP], shapes[p, SLOPE + 1]
        for lane in range(LANES):
            state[CUT + lane] = _distance(line, p, lane, sweep, slope, state[HERE + lane])
        for lane in range(LANES):
            state[UNION + lane] += _exp(min(max(state[CUT + lane] * sharp, LOWEST), -LOWEST))
    for lane in range(LANES):
        state[UNION + lane] = -melt * _log(state[UNION + lane])
    if last == 1:
        for lane in range(LANES):
            state[UNION + lane] = state[CUT + lane]


@_compiled
def _raise(shapes, first, last, line, state):
    """Take the height of the bumps at ``HERE`` from ``VALUE``."""
    for p in range(first, last):
        sweep, height = shapes[p, SWEEP], shapes[p, HEIGHT]
        for lane in range(LANES):
            square, _ = _square(line, p, lane, sweep, state[HERE + lane])
            state[VALUE + lane] -= height * _exp(max(-square, LOWEST))


@_compiled
def _cut_out(value, nearest, melt):
    """``value`` where a shape at the distance ``nearest`` is cut out, the edge rounded by ``melt``."""
    gap = max(abs(value + nearest) / -melt, LOWEST)
    return max(value, -nearest) + melt * _log(ONE + _exp(gap))


@_compiled
def _carve(shapes, first, last, line, melt, state):
    """Cut the carves out of ``VALUE`` at ``HERE``."""
    for lane in range(LANES):
        state[CUT + lane] = END
    for p in range(first, last):
        sweep, slope = shapes[p, SWEEP], shapes[p, SLOPE + 1]
        for lane in range(LANES):
            distance = _distance(line, p, lane, sweep, slope, state[HERE + lane])
            state[CUT + lane] = min(state[CUT + lane], distance)
    for lane in range(LANES):
        state[VALUE + lane] = _cut_out(state[VALUE + lane], state[CUT + lane], melt)


@_compiled
def _entry(length, middle, rest):
    """The first root of ``length t^2 + 2 middle t + rest``, END where there is none."""
    root = middle * middle - length * rest
    return (-middle - math.sqrt(max(root, ZERO))) / length if root > ZERO else END


@_compiled
def _enter_exactly(line, p, lane, sweep):
    """Where a ray enters a swept sphere: one of its ends, or the tube between them."""
    speed, along, square = line[p, SPEED + lane], line[p, ALONG + lane], line[p, C + lane]
    length, middle = line[p, A + lane], line[p, B + lane] * HALF
    lower, upper = along + sweep, along - sweep
    first = _entry(length + speed * speed, middle + lower * speed, square + lower * lower - ONE)
    last = _entry(length + speed * speed, middle + upper * speed, square + upper * upper - ONE)
    tube = _entry(max(length, LITTLE), middle, square - ONE)
    tube = tube if abs(along + tube * speed) <= sweep else END
    return min(min(first, last), tube)


@_compiled
def _enter(shapes, last, line, exact, entries, block, side, state):
    """Where the rays enter the first shapes, made larger by the blend where not ``exact``."""
    for p in range(last):
        at, sweep, wide, high = side * last + p, shapes[p, SWEEP], shapes[p, WIDE], shapes[p, HIGH]
        if exact:
            for lane in range(LANES):
                entries[block, at, lane] = _enter_exactly(line, p, lane, sweep)
        else:
            for lane in range(LANES):
                along, speed = line[p, ALONG + lane], line[p, SPEED + lane]
                length = line[p, A + lane] * wide + speed * speed * high
                middle = line[p, B + lane] * HALF * wide + along * speed * high
                rest = line[p, C + lane] * wide + along * along * high - ONE
                entries[block, at, lane] = _entry(length, middle, rest)
        for lane in range(LANES):
            state[FIRST + lane] = min(state[FIRST + lane], entries[block, at, lane])


@_compiled
def _later(entries, ray, here):
    """The first of a ray's entries beyond ``here``, END where there is none."""
    block, lane, first = ray // LANES, ray % LANES, END
    for p in range(entries.shape[1]):
        if entries[block, p, lane] > here:
            first = min(first, entries[block, p, lane])
    return first


@_compiled
def _skip(entries, ray, margin, away, left, here):
    """Where a ray goes on: ``march.March._skip``."""
    far, graze = away > np.float32(1.3) * margin, left > SLOW and away > np.float32(0.4) * margin
    if far or graze:
        later = _later(entries, ray, here)
        if far or later < END or left > ONE:
            return later
    return here


@_compiled
def _load(rays, ray, turn, origin, state, lane):
    """Put a ray into a lane."""
    right, up = rays[0, ray] - origin[0], rays[1, ray] - origin[1]
    state[X + lane] = turn[0, 0] * right + turn[1, 0] * up - turn[2, 0] * origin[2]
    state[Y + lane] = turn[0, 1] * right + turn[1, 1] * up - turn[2, 1] * origin[2]
    state[Z + lane] = turn[0, 2] * right + turn[1, 2] * up - turn[2, 2] * origin[2]
    state[LIMIT + lane] = rays[2, ray]


@_compiled
def _aim_all(shapes, numbers, way, relief, line, state):
    """Lines of the rays past all shapes that count, each ray on its side of the mirror."""
    united, raised, cut, mirrored, _, _, _ = numbers
    for lane in range(LANES):
        state[FLIP + lane] = ONE
    if mirrored:
        across = way[0]
        for lane in range(LANES):
            state[FLIP + lane] = -ONE if state[X + lane] + state[HERE + lane] * across < ZERO else ONE
    _aim(shapes, 0, raised if relief else united, way, state, line)
    _aim(shapes, raised, cut, way, state, line)


@_compiled
def _step(shapes, numbers, relief, line, state):
    """One step of all rays that walk along the field."""
    united, raised, cut, _, melt, carve_melt, _ = numbers
    _unite(shapes, united, line, melt, state)
    for lane in range(LANES):
        state[BEFORE + lane] = state[VALUE + lane]
        state[VALUE + lane] = state[UNION + lane]
    if relief:
        _raise(shapes, united, raised, line, state)
    if cut > raised:
        _carve(shapes, raised, cut, line, carve_melt, state)
    for lane in range(LANES):
        state[HERE + lane] += state[VALUE + lane] * np.float32(1.1) * state[WALKS + lane]


@_compiled
def _approach(group, turn, origin, rays, entries, tolerance, steps, relief, meets, reached, distance):
    """Walk the rays that meet the group on from ``distance``: ``march.March._approach``.

    A ray that has arrived leaves its lane to the next one.
    """
    shapes, numbers = group
    united, raised, cut, _, melt, _, margin = numbers
    line, state, way = np.empty((len(shapes), PAST), np.float32), np.zeros(STATE, np.float32), _way(turn)
    ray_of, round_of, coming = np.full(LANES, -1), np.zeros(LANES, np.int64), 0
    while True:
        for lane in range(LANES):
            if ray_of[lane] < 0:
                coming = _next(meets, coming)
                state[WALKS + lane] = ONE if coming < len(meets) else ZERO
                if coming < len(meets):
                    ray_of[lane], round_of[lane] = coming, 0
                    _load(rays, coming, turn, origin, state, lane)
                    state[HERE + lane] = distance[coming]
                    coming += 1
        if ray_of.max() < 0:
            return
        _aim_all(shapes, numbers, way, relief, line, state)
        for _ in range(steps):
            _step(shapes, numbers, relief, line, state)
        if cut > raised:
            _unite(shapes, united, line, melt, state)
        for lane in range(LANES):
            ray, here, value = ray_of[lane], state[HERE + lane], state[VALUE + lane]
            if ray < 0:
                continue
            reached[ray], distance[ray] = value <= tolerance, here
            round_of[lane] += 1
            if value <= tolerance or here >= state[LIMIT + lane] or round_of[lane] == ROUNDS:
                ray_of[lane] = -1
                continue
            left = value / max(abs(state[BEFORE + lane]), LITTLE) if steps > 1 else ZERO
            away = state[UNION + lane] if cut > raised else value
            state[HERE + lane] = _skip(entries, ray, margin, away, left, here)


@_compiled
def _next(meets, ray):
    """The first ray from ``ray`` on that meets the group; how many there are where none does."""
    while ray < len(meets) and not meets[ray]:
        ray += 1
    return ray


@_compiled
def _way(turn):
    """Where the rays go in the space of a bone."""
    return -turn[2, 0], -turn[2, 1], -turn[2, 2]


@_compiled
def _enter_all(group, turn, origin, rays, entries, distance):
    """Where all rays enter the group: ``entries`` [blocks, sides * P, LANES], the first of them as ``distance`` [K]."""
    shapes, (united, _, _, _, _, _, margin) = group
    line, state, way = np.empty((united, PAST), np.float32), np.empty(STATE, np.float32), _way(turn)
    for block in range(len(entries)):
        first = block * LANES
        for lane in range(LANES):
            _load(rays, min(first + lane, len(distance) - 1), turn, origin, state, lane)
            state[FIRST + lane] = END
        for side in range(entries.shape[1] // united):
            for lane in range(LANES):
                state[FLIP + lane] = ONE - TWO * np.float32(side)
            _aim(shapes, 0, united, way, state, line)
            _enter(shapes, united, line, margin == ZERO, entries, block, side, state)
        for lane in range(min(LANES, len(distance) - first)):
            distance[first + lane] = state[FIRST + lane]


@_compiled
def march(group, turn, origin, rays, tolerance):
    """How far rays go before they meet a group: whether they may, whether they reach it, and the distance, each [K].

    group: of ``_group``; turn [3, 3] and origin [3] of its bone; rays [3, K]: x, y and where something else is already.
    """
    united, raised, _, mirrored, _, _, margin = group[1]
    count = rays.shape[1]
    entries = np.empty((-(-count // LANES), (2 if mirrored else 1) * united, LANES), np.float32)
    distance = np.empty(count, np.float32)
    _enter_all(group, turn, origin, rays, entries, distance)
    meets = distance < rays[2]
    reached = meets.copy()
    if margin > ZERO:
        _approach(group, turn, origin, rays, entries, tolerance, 2, False, meets, reached, distance)
        if raised > united:
            _approach(group, turn, origin, rays, entries, tolerance, 1, True, meets, reached, distance)
    return meets, reached, distance


@_compiled
def _measure(shapes, first, last, point, place):
    """Points ``point`` [3 * LANES] as some of the shapes see them, ``place`` [P, PLACE]; without ``WEIGHT``."""
    for p in range(first, last):
        a, b, c, d, e, f = shapes[p, 0], shapes[p, 1], shapes[p, 2], shapes[p, 3], shapes[p, 4], shapes[p, 5]
        g, h, i, k, m, n = shapes[p, 6], shapes[p, 7], shapes[p, 8], shapes[p, 9], shapes[p, 10], shapes[p, 11]
        sweep, low, middle, high = shapes[p, SWEEP], shapes[p, SLOPE], shapes[p, SLOPE + 1], shapes[p, SLOPE + 2]
        for lane in range(LANES):
            x, y, z = point[X + lane], point[Y + lane], point[Z + lane]
            u, v, w = a * x + b * y + c * z + k, d * x + e * y + f * z + m, g * x + h * y + i * z + n
            v -= max(min(v, sweep), -sweep)
            radius = math.sqrt(u * u + v * v + w * w)
            steep = math.sqrt(low * u * u + middle * v * v + high * w * w) + np.float32(1e-6)
            place[p, U + lane], place[p, V + lane], place[p, W + lane] = u, v, w
            place[p, DISTANCE + lane], place[p, STEEP + lane] = radius * (radius - ONE) / steep, steep


@_compiled
def _lean(shapes, first, last, place, gradient):
    """Add the slopes of some of the shapes, times ``WEIGHT``, to ``gradient`` [3 * LANES]."""
    for p in range(first, last):
        a, b, c, d, e, f = shapes[p, 0], shapes[p, 1], shapes[p, 2], shapes[p, 3], shapes[p, 4], shapes[p, 5]
        g, h, i = shapes[p, 6], shapes[p, 7], shapes[p, 8]
        for lane in range(LANES):
            weight = place[p, WEIGHT + lane]
            u, v, w = place[p, U + lane] * weight, place[p, V + lane] * weight, place[p, W + lane] * weight
            gradient[X + lane] += a * u + d * v + g * w
            gradient[Y + lane] += b * u + e * v + h * w
            gradient[Z + lane] += c * u + f * v + i * w


@_compiled
def _blend(last, melt, place, value):
    """``value`` [LANES] of the smooth union of the first shapes; ``WEIGHT``: how much every shape has of it."""
    sharp = -ONE / melt
    for lane in range(LANES):
        value[lane] = ZERO
    for p in range(last):
        for lane in range(LANES):
            weight = _exp(min(max(place[p, DISTANCE + lane] * sharp, LOWEST), -LOWEST))
            place[p, WEIGHT + lane] = weight
            value[lane] += weight
    for p in range(last):
        for lane in range(LANES):
            place[p, WEIGHT + lane] /= value[lane]
    for lane in range(LANES):
        value[lane] = -melt * _log(value[lane])
    if last == 1:
        for lane in range(LANES):
            value[lane], place[0, WEIGHT + lane] = place[0, DISTANCE + lane], ONE


@_compiled
def _add_bumps(shapes, first, last, point, place, value, gradient):
    """Raise ``value`` and ``gradient`` by the bumps."""
    _measure(shapes, first, last, point, place)
    for p in range(first, last):
        height = shapes[p, HEIGHT]
        for lane in range(LANES):
            u, v, w = place[p, U + lane], place[p, V + lane], place[p, W + lane]
            raised = height * _exp(max(-(u * u + v * v + w * w), LOWEST))
            place[p, WEIGHT + lane] = TWO * raised
            value[lane] -= raised
    _lean(shapes, first, last, place, gradient)


@_compiled
def _take_carves(shapes, first, last, melt, point, place, value, gradient):
    """Cut the carves out of ``value``; ``gradient`` turns over where their surface is what counts."""
    _measure(shapes, first, last, point, place)
    for lane in range(LANES):
        nearest = END
        for p in range(first, last):
            nearest = min(nearest, place[p, DISTANCE + lane])
        share = ONE / (ONE + _exp(min(max((value[lane] + nearest) / -melt, LOWEST), -LOWEST)))
        for p in range(first, last):
            counts = place[p, DISTANCE + lane] == nearest
            place[p, WEIGHT + lane] = (share - ONE) / place[p, STEEP + lane] if counts else ZERO
        for axis in range(3):
            gradient[axis * LANES + lane] *= share
        value[lane] = _cut_out(value[lane], nearest, melt)
    _lean(shapes, first, last, place, gradient)


@_compiled
def sample(group, points):
    """The field of ``fields.GroupField.sample`` at points [3, K]: value [K], gradient [3, K], weights [P, K]."""
    shapes, (united, raised, cut, mirrored, melt, carve_melt, _) = group
    place, value = np.empty((len(shapes), PLACE), np.float32), np.empty(LANES, np.float32)
    point, gradient = np.empty(3 * LANES, np.float32), np.empty(3 * LANES, np.float32)
    count = points.shape[1]
    values, gradients = np.empty(count, np.float32), np.empty((3, count), np.float32)
    weights = np.empty((united, count), np.float32)
    for first in range(0, count, LANES):
        for lane in range(LANES):
            for axis in range(3):
                point[axis * LANES + lane] = points[axis, min(first + lane, count - 1)]
                gradient[axis * LANES + lane] = ZERO
            if mirrored:
                point[X + lane] = abs(point[X + lane])
        _measure(shapes, 0, united, point, place)
        _blend(united, melt, place, value)
        for p in range(united):
            for lane in range(min(LANES, count - first)):
                weights[p, first + lane] = place[p, WEIGHT + lane]
            for lane in range(LANES):
                place[p, WEIGHT + lane] /= place[p, STEEP + lane]
        _lean(shapes, 0, united, place, gradient)
        if raised > united:
            _add_bumps(shapes, united, raised, point, place, value, gradient)
        if cut > raised:
            _take_carves(shapes, raised, cut, carve_melt, point, place, value, gradient)
        for lane in range(min(LANES, count - first)):
            values[first + lane] = value[lane]
            for axis in range(3):
                gradients[axis, first + lane] = gradient[axis * LANES + lane]
            if mirrored:
                gradients[0, first + lane] *= np.sign(points[0, first + lane])
    return values, gradients, weights


@_compiled
def visible(past, along, points, softness):
    """How much of a light arrives at points [3, K]: ``shadows.Occluders.visible`` for one scene."""
    shapes, count = len(along), points.shape[1]
    arrives, size = np.ones(count, np.float32), 8 * LANES
    reach = np.float32(0.06) + np.float32(0.3) * softness
    for first in range(0, count, size):
        last = min(first + size, count)
        x, y, z, share = points[0, first:last], points[1, first:last], points[2, first:last], arrives[first:last]
        for p in range(shapes):
            a, b, c, d = along[p]
            e, f, g, h = past[p]
            i, k, m, n = past[shapes + p]
            for at in range(last - first):
                way = a * x[at] + b * y[at] + c * z[at] + d
                aside, above = e * x[at] + f * y[at] + g * z[at] + h, i * x[at] + k * y[at] + m * z[at] + n
                wide = min(max(way, ZERO), TWO) * softness + np.float32(0.12)
                blocked = HALF - (math.sqrt(aside * aside + above * above) - ONE) / wide
                blocked = min(max(blocked, ZERO), ONE) * min(max(way / reach - np.float32(0.4), ZERO), ONE)
                share[at] *= ONE - blocked
    return arrives


@_compiled
def noise(places, table):
    """``noise.noise`` at ``places`` [D, K], D 1 to 3; ``table``: random numbers, a power of 2 of them."""
    count, last = places.shape[1], len(table) - 1
    made, corners = np.empty(count, np.float32), np.empty((8, LANES), np.float32)
    keys, blends = np.zeros((3, 2, LANES), np.int64), np.zeros((3, LANES), np.float32)
    for first in range(0, count, LANES):
        for axis in range(len(places)):
            prime = PRIMES[axis]
            for lane in range(LANES):
                place = places[axis, min(first + lane, count - 1)]
                cell = np.floor(place)
                part, key = place - cell, np.int64(cell) * prime
                blends[axis, lane] = part * part * (np.float32(3) - TWO * part)
                keys[axis, 0, lane], keys[axis, 1, lane] = key, key + prime
        for corner in range(1 << len(places)):
            x, y, z = corner & 1, corner >> 1 & 1, corner >> 2
            for lane in range(LANES):
                key = keys[0, x, lane] ^ keys[1, y, lane] ^ keys[2, z, lane]
                corners[corner, lane] = table[(key ^ (key >> 13)) & last]
        for axis in range(len(places)):
            for corner in range(1 << (len(places) - 1 - axis)):
                for lane in range(LANES):
                    low, high = corners[2 * corner, lane], corners[2 * corner + 1, lane]
                    corners[corner, lane] = low + (high - low) * blends[axis, lane]
        for lane in range(min(LANES, count - first)):
            made[first + lane] = corners[0, lane]
    return made


def _group(field: GroupField, margin: float) -> tuple:
    """A group of one scene as the functions above take it: its shapes, bumps and carves, where each of them end, ..."""
    sets = [_numbers(shapes, margin) for shapes in (field.shapes, field.bumps, field.carves)]
    if field.heights is not None:
        sets[1][:, HEIGHT] = field.heights[0, :, 0]
    ends = np.cumsum([len(rows) for rows in sets]).tolist()
    widths = (np.float32(value) for value in (field.melt, field.carve_melt, margin))
    return np.concatenate(sets), (*ends, field.mirrored, *widths)


def _numbers(shapes: ShapeSet | None, margin: float) -> np.ndarray:
    """One scene's shapes as rows [P, NUMBERS]."""
    if shapes is None:
        return np.empty((0, NUMBERS), np.float32)
    rows = np.zeros((shapes.offset.shape[1], NUMBERS), np.float32)
    rows[:, MATRIX:OFFSET], rows[:, OFFSET:SWEEP] = shapes.matrix[0].reshape(-1, 9), shapes.offset[0]
    rows[:, SWEEP], rows[:, SLOPE:WIDE] = shapes.sweep[0, :, 0], shapes.slope[0, ..., 0]
    # The smallest ellipsoids around spheres that are made larger by the blend and swept along an axis.
    grown, swept = 1 + margin * np.sqrt(rows[:, SLOPE:WIDE].max(1)), rows[:, SWEEP]
    rows[:, WIDE] = 1 / (grown**2 * (1 + (swept / (grown + swept)) ** 2))
    rows[:, HIGH] = rows[:, WIDE] * (grown / (grown + swept)) ** 2
    return rows


class CompiledMarch:
    """``march.March`` and ``fields.GroupField.sample`` for a group of one scene."""

    def __init__(self, field: GroupField, turn: np.ndarray, origin: np.ndarray, margin: float):
        self.group = _group(field, margin)
        self.turn, self.origin = np.ascontiguousarray(turn), np.ascontiguousarray(origin)

    def __call__(self, x: np.ndarray, y: np.ndarray, limit: np.ndarray, tolerance: float) -> Marched:
        rays = np.concatenate([x, y, limit])
        meets, reached, distance = march(self.group, self.turn, self.origin, rays, np.float32(tolerance))
        keep = (meets & (reached | (distance < rays[2]))).nonzero()[0][None]
        return Marched(keep, *(take(values[None], keep) for values in (meets, reached, distance)))

    def sample(self, points: np.ndarray) -> Sample:
        """The field at points [1, 3, K] of the bone's space."""
        return Sample(*(values[None] for values in sample(self.group, np.ascontiguousarray(points[0]))))


def try_out() -> None:
    """Run everything once. Raises whatever numba raises where it is broken, or what it kept on disk is."""
    shape = np.array([[1.0] * NUMBERS] * 2, np.float32)
    group = shape, (1, 2, 2, True, np.float32(0.1), np.float32(0.1), np.float32(0.1))
    axes, nowhere = np.eye(3, dtype=np.float32), np.zeros((3, 1), np.float32)
    march(group, axes, nowhere[:, 0], nowhere, np.float32(0.1))
    sample(group, nowhere)
    visible(np.zeros((2, 4), np.float32), np.zeros((1, 4), np.float32), nowhere, np.float32(0.1))
    noise(nowhere, np.zeros(4096, np.float32))
