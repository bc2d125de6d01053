"""The structure descent on a CPU: one intensity plane, closed-form gradient, window sums by OpenCV.

``structure.py`` derives the gradient; this file is about speed. An iteration is six window sums and some twenty
additions and multiplications, so it is bound by memory and by the serial running sum inside ``cv2.boxFilter``. Hence:

* The plane is cut into four horizontal bands that are stored as the four interleaved channels of one array: the window
  sum then runs four independent chains at once, at over twice the speed. Each band carries a halo of r rows of its
  neighbours, renewed whenever these change.
* Every thread works through its rows in tiles small enough for the cache. OpenCV and numpy release the interpreter
  lock, so plain threads scale.
* All arrays are allocated once; every operation writes in place.
"""

import math
import threading
from functools import partial
from queue import SimpleQueue

import numpy as np

from ..optional import need
from .settings import REFERENCE_PIXELS, StructureSettings

_TILE_ROWS = 64
_SINGLE_THREAD_PIXELS = 128 * 128


def descend(image, source, mask, settings: StructureSettings, threads: int, on_iteration=None) -> np.ndarray:
    """Intensity change that K structure steps make; arrays are float32 ``[H, W]`` in 0..1, ``mask`` may be None.

    ``threads``: how many to use at most. ``on_iteration()`` is called in the calling thread after every iteration; what
    it raises ends the descent and is passed on.
    """
    if image.size < _SINGLE_THREAD_PIXELS:
        threads = 1
    return _Descent(image, source, mask, settings, threads).run(on_iteration)


class _Bands:
    """Layout of a plane ``[H, W]`` as interleaved bands ``[rows, W * bands]`` with halos of ``halo`` rows."""

    def __init__(self, height: int, width: int, halo: int):
        self.height, self.width, self.halo = height, width, halo
        # A halo must not reach past the neighbouring band.
        self.bands = 4 if height >= 4 * halo else 1
        self.core = -(-height // self.bands)
        self.rows = self.core + 2 * halo
        # Where the image ends in the last band.
        self.end = halo + height - (self.bands - 1) * self.core

    def pack(self, plane: np.ndarray, out: np.ndarray) -> np.ndarray:
        cv2 = need("cv2", "opencv-python")
        padded = np.zeros((self.core * self.bands + 2 * self.halo, self.width), np.float32)
        padded[self.halo : self.halo + self.height] = plane
        bands = [padded[i * self.core : i * self.core + self.rows] for i in range(self.bands)]
        cv2.merge(bands, self.interleaved(out))
        return out

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        core = self.interleaved(packed)[self.halo : self.halo + self.core]
        return np.concatenate(np.moveaxis(core, -1, 0))[: self.height]

    def interleaved(self, packed: np.ndarray) -> np.ndarray:
        return packed.reshape(-1, self.width, self.bands)

    def sharing(self, planes: list[np.ndarray], top: int, bottom: int):
        """A function that copies what new rows top..bottom of ``planes`` hold for the halos of the neighbouring bands.

        Rows below the image are set to zero, as everything outside it.
        """
        cv2 = need("cv2", "opencv-python")
        halo, core = self.halo, self.core
        below = [self.interleaved(plane)[max(top, self.end) : bottom, :, -1] for plane in planes]
        copies = []
        # The last rows of a band lie above the next one, its first rows below the one before.
        for start, shift, source, target in ((core, -core, 0, 1), (halo, core, 1, 0)):
            first, last = max(top, start), min(bottom, start + halo)
            if first < last and self.bands > 1:
                rows = [self.interleaved(plane)[first:last] for plane in planes]
                halos = [self.interleaved(plane)[first + shift : last + shift] for plane in planes]
                pairs = [
                    plane * self.bands + band + side
                    for plane in range(len(planes)) for band in range(self.bands - 1) for side in (source, target)
                ]  # fmt: skip
                copies.append(partial(cv2.mixChannels, rows, halos, pairs))

        def share() -> None:
            for rows in below:
                rows.fill(0)
            for copy in copies:
                copy()

        return share


class _Descent:
    def __init__(self, image, source, mask, settings: StructureSettings, threads: int):
        self.settings, self.threads = settings, threads
        self.radius = settings.radius
        self.scale = settings.learning_rate * settings.structure_weight / (6 * REFERENCE_PIXELS)
        self.layout = _Bands(*image.shape, halo=self.radius)
        self.tiles = _tiles(self.radius, self.layout.rows - self.radius, threads)
        self._prepare(image, source, mask)

    def _prepare(self, image, source, mask):
        """Constant planes in the band layout, with the signs and factors that save operations in the loop.

        Outside the image they are zero, but for ``floor`` (N epsilon): what is divided by it there is zero, too.
        """
        planes, self.scratch = self._allocate(10 if mask is None else 12)
        planes = iter(planes)

        def pack(plane):
            return self.layout.pack(plane, next(planes))

        if mask is not None:
            image, source = mask * image, mask * source
        # Any constant may be subtracted from both images; small values keep the digits of flat areas.
        center = source.mean()
        self.start = image - center
        self.plane, self.source = pack(self.start), pack(source - center)
        self.inverse_count = pack(1 / _window_count(*image.shape, self.radius))
        self.mask = None if mask is None else pack(mask)
        self.floor, self.minus_mean, self.minus_gain, self.velocity, *rest = planes
        self.coefficients = rest[:3]
        self.total = None if mask is None else rest[3]
        with np.errstate(divide="ignore"):
            np.divide(np.float32(self.settings.epsilon), self.inverse_count, out=self.floor)
        self._describe_source()
        self.velocity.fill(0)
        if mask is not None:
            self.total.fill(0)
        for plane in self.coefficients:  # above and below the image nothing is ever written
            plane[: self.radius] = plane[-self.radius :] = 0

    def _describe_source(self) -> None:
        """-E[S] and -1 / (N^2 (var S + epsilon)) of every window, from N E[S] and N E[S^2]."""
        minus_mean, gain, squares = self.minus_mean, self.minus_gain, self.coefficients[0]
        self._band_sum(self.source, minus_mean)()
        self._band_sum(np.multiply(self.source, self.source, out=squares), gain)()
        np.multiply(minus_mean, minus_mean, out=squares)
        np.multiply(squares, self.inverse_count, out=squares)
        np.subtract(squares, gain, out=gain)
        np.subtract(gain, self.floor, out=gain)
        np.divide(self.inverse_count, gain, out=gain)
        np.negative(np.multiply(minus_mean, self.inverse_count, out=minus_mean), out=minus_mean)

    def _allocate(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """``count`` planes, and for each thread four of a tile with all that its windows reach.

        All in one block: the system hands that out in large pages, which are far cheaper to touch first.
        """
        columns = self.layout.width * self.layout.bands
        shapes = [
            (count, self.layout.rows, columns),
            (self.threads, 4, max(bottom - top for top, bottom in sum(self.tiles, [])) + 2 * self.radius, columns),
        ]
        first, second = (math.prod(shape) for shape in shapes)
        block = np.empty(first + second, np.float32)
        return block[:first].reshape(shapes[0]), block[first:].reshape(shapes[1])

    def _window_sum(self, plane, out=None):
        """A function that puts the window sums of ``plane`` into ``out`` and returns them."""
        cv2 = need("cv2", "opencv-python")
        size = (self.settings.window, self.settings.window)
        return partial(cv2.boxFilter, plane, -1, size, dst=out, normalize=False, borderType=cv2.BORDER_CONSTANT)

    def _band_sum(self, packed, out):
        return self._window_sum(self.layout.interleaved(packed), self.layout.interleaved(out))

    def _slices(self, top: int, bottom: int) -> tuple[slice, slice, slice]:
        """Rows of a tile, the rows its windows reach, and the tile's rows within those."""
        radius = self.radius
        return slice(top, bottom), slice(top - radius, bottom + radius), slice(radius, radius + bottom - top)

    def _fit(self, top: int, bottom: int, scratch):
        """A function that computes the coefficient planes of rows top..bottom:

        -(a + a') / N, -(b - a'b') / N and (1 + a'^2) / N. All views are made once: between two operations a thread
        holds the interpreter lock, so every line of Python there keeps the other threads waiting.
        """
        cv2 = need("cv2", "opencv-python")
        rows, outer, inner = self._slices(top, bottom)
        product, *sums = (buffer[: outer.stop - outer.start] for buffer in scratch)
        plane, source = self.plane[outer], self.source[outer]
        sum_plane = self._band_sum(plane, sums[0])
        sum_product, sum_square = (self._band_sum(product, out) for out in sums[1:])
        # Sums over windows, so N times the moments: the factors N cancel in a and a'.
        total, covariance, minus_variance = (values[inner] for values in sums)
        mean_plane = product[inner]
        inverse_count, minus_mean = self.inverse_count[rows], self.minus_mean[rows]
        floor, minus_gain = self.floor[rows], self.minus_gain[rows]
        minus_slopes, minus_offsets, weights = (values[rows] for values in self.coefficients)
        share = self.layout.sharing(self.coefficients, top, bottom)

        def fit() -> None:
            # Each product is summed at once, while it is in the cache.
            np.multiply(plane, source, product)
            sum_product()
            cv2.multiply(plane, plane, product, -1)
            sum_square()
            sum_plane()
            np.multiply(total, inverse_count, mean_plane)
            cv2.accumulateProduct(minus_mean, total, covariance)
            cv2.accumulateProduct(mean_plane, total, minus_variance)
            np.subtract(minus_variance, floor, minus_variance)
            minus_back = np.divide(covariance, minus_variance, minus_variance)
            np.multiply(minus_back, inverse_count, minus_slopes)
            np.copyto(weights, inverse_count)
            cv2.accumulateProduct(minus_back, minus_slopes, weights)
            cv2.accumulateProduct(covariance, minus_gain, minus_slopes)
            cv2.multiply(mean_plane, weights, minus_offsets, -1)
            cv2.accumulateProduct(minus_slopes, minus_mean, minus_offsets)
            share()

        return fit

    def _step(self, top: int, bottom: int, scratch):
        """A function that makes the momentum step of rows top..bottom along P (U + C) - S A - B."""
        cv2 = need("cv2", "opencv-python")
        rows, outer, inner = self._slices(top, bottom)
        sums = [buffer[: outer.stop - outer.start] for buffer in scratch[:3]]
        window_sums = [self._band_sum(c[outer], out) for c, out in zip(self.coefficients, sums, strict=True)]
        minus_a, gradient, weight = (values[inner] for values in sums)
        velocity, plane, source = self.velocity[rows], self.plane[rows], self.source[rows]
        mask, total = (None, None) if self.mask is None else (self.mask[rows], self.total[rows])
        momentum, scale = self.settings.momentum, self.scale
        share = self.layout.sharing([self.plane], top, bottom)

        def step() -> None:
            for window_sum in window_sums:
                window_sum()
            cv2.accumulateProduct(weight, plane, gradient)
            cv2.accumulateProduct(minus_a, source, gradient)
            if mask is None:
                cv2.scaleAdd(velocity, momentum, gradient, dst=velocity)
                cv2.scaleAdd(velocity, -scale, plane, dst=plane)
            else:
                np.multiply(gradient, mask, out=gradient)
                cv2.scaleAdd(velocity, momentum, gradient, dst=velocity)
                np.add(total, velocity, out=total)
                cv2.scaleAdd(np.multiply(velocity, mask, out=weight), -scale, plane, dst=plane)
            share()

        return step

    def run(self, on_iteration) -> np.ndarray:
        barrier = _Barrier(self.threads)

        def iterate(worker: int) -> None:
            fits = [self._fit(*tile, self.scratch[worker]) for tile in self.tiles[worker]]
            steps = [self._step(*tile, self.scratch[worker]) for tile in self.tiles[worker]]
            for _ in range(self.settings.iterations):
                for compute in fits:
                    compute()
                barrier.wait(worker)
                for compute in steps:
                    compute()
                if worker == 0 and on_iteration is not None:
                    on_iteration()
                barrier.wait(worker)

        def work(worker: int) -> None:
            # A diverging descent overflows; the caller finds that in the result and says so.
            with np.errstate(all="ignore"):
                iterate(worker)

        _run_together(work, self.threads, barrier)
        if self.mask is None:
            return self.layout.unpack(self.plane) - self.start
        return self.layout.unpack(-self.scale * self.total)


def _window_count(height: int, width: int, radius: int) -> np.ndarray:
    """How many pixels every window has in the image, float32. Without torch: its threads spin on after their work."""
    counts = []
    for length in (height, width):
        before = np.minimum(np.arange(length), radius)
        counts.append((before + 1 + before[::-1]).astype(np.float32))
    return np.outer(*counts)


def _tiles(first: int, last: int, threads: int) -> list[list[tuple[int, int]]]:
    """Cut rows first..last into one run of tiles for every thread."""
    edges = np.linspace(first, last, threads + 1).astype(int)
    runs = []
    for top, bottom in zip(edges[:-1], edges[1:], strict=True):
        cuts = np.linspace(top, bottom, max(1, round((bottom - top) / _TILE_ROWS)) + 1).astype(int).tolist()
        runs.append([(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True) if b > a])
    return runs


class _Barrier:
    """As ``threading.Barrier``, of queues written in C: Python's own takes the interpreter lock several times a wait.

    Every worker tells the one that is 1, 2, 4 ... places on, and hears from as many (the dissemination barrier of
    Hensgen, Finkel and Manber 1988).
    """

    def __init__(self, workers: int):
        self.rounds = [[SimpleQueue() for _ in range(workers)] for _ in range((workers - 1).bit_length())]

    def wait(self, worker: int) -> None:
        """Until all have come; raises ``BrokenBarrierError`` if one calls ``abort`` instead."""
        for number, inboxes in enumerate(self.rounds):
            inboxes[(worker + 2**number) % len(inboxes)].put(True)
            if not inboxes[worker].get():
                raise threading.BrokenBarrierError

    def abort(self) -> None:
        """Wake all that wait, and all that will."""
        for inboxes in self.rounds:
            for inbox in inboxes:
                inbox.put(False)


def _run_together(work, threads: int, barrier: _Barrier) -> None:
    """Run ``work(0)`` here and ``work(1..)`` in threads; the first error ends all of them and is raised here."""
    errors = []

    def guarded(worker: int) -> None:
        try:
            work(worker)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    helpers = []
    try:
        for worker in range(1, threads):
            helper = threading.Thread(target=guarded, args=(worker,), daemon=True)
            helper.start()
            helpers.append(helper)
    except RuntimeError as error:  # the system allows no more threads
        errors.append(error)
        barrier.abort()
    guarded(0)
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
