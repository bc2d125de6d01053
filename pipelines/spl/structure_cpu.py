"""The structure descent on a CPU: one intensity plane, closed-form gradient, window sums by OpenCV.

``structure.py`` derives the gradient; this file is about speed. An iteration is six window sums and some twenty
additions and multiplications, so it is bound by memory and by the serial running sum inside ``cv2.boxFilter``. Hence:

* The plane is cut into four horizontal bands that are stored as the four interleaved channels of one array: the window
  sum then runs four independent chains at once, at over twice the speed. Each band carries a halo of 2r rows of its
  neighbours, renewed once an iteration.
* Every thread works through its rows in tiles small enough for the cache. OpenCV and numpy release the interpreter
  lock, so plain threads scale.
* All arrays are allocated once; every operation writes in place.
"""

import threading
from functools import partial

import numpy as np
import torch

from ..filters import window_count
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

    def share_rows(self, packed: np.ndarray, top: int, bottom: int) -> None:
        """Copy what new rows top..bottom hold for the halos of the neighbouring bands.

        Rows below the image are set to zero, as everything outside it.
        """
        bands, halo, core = self.interleaved(packed), self.halo, self.core
        end = halo + self.height - (self.bands - 1) * core
        bands[max(top, end) : bottom, :, -1] = 0
        first, last = max(top, core), min(bottom, core + halo)
        if self.bands > 1 and first < last:
            bands[first - core : last - core, :, 1:] = bands[first:last, :, :-1]
        first, last = max(top, halo), min(bottom, 2 * halo)
        if self.bands > 1 and first < last:
            bands[first + core : last + core, :, :-1] = bands[first:last, :, 1:]


class _Descent:
    def __init__(self, image, source, mask, settings: StructureSettings, threads: int):
        self.settings, self.threads = settings, threads
        self.radius = settings.radius
        self.scale = settings.learning_rate * settings.structure_weight / (6 * REFERENCE_PIXELS)
        self.layout = _Bands(*image.shape, halo=2 * self.radius)
        self._prepare(image, source, mask)

    def _prepare(self, image, source, mask):
        """Constant planes in the band layout, with the signs and factors that save operations in the loop.

        Outside the image they are zero, but for ``floor`` (N epsilon), which is divided by.
        """
        # One block for all planes: the system hands it out in large pages, which are far cheaper to touch first.
        shape = self.layout.rows, self.layout.width * self.layout.bands
        planes = iter(np.empty((10 if mask is None else 12, *shape), np.float32))

        def pack(plane):
            return self.layout.pack(plane, next(planes))

        if mask is not None:
            image, source = mask * image, mask * source
        # Any constant may be subtracted from both images; small values keep the digits of flat areas.
        center = source.mean()
        source = source - center
        inverse_count = 1 / window_count(source.shape, self.radius, torch.zeros(()))[0, 0].numpy()
        mean = self._window_sum(source)() * inverse_count
        variance = self._window_sum(source * source)() * inverse_count - mean * mean

        self.start = image - center
        self.plane = pack(self.start)
        self.source = pack(source)
        self.minus_mean = pack(-mean)
        self.gain = pack(inverse_count / (variance + np.float32(self.settings.epsilon)))
        self.floor = pack(np.float32(self.settings.epsilon) / inverse_count)
        self.floor[self.floor == 0] = 1
        self.minus_inverse_count = pack(-inverse_count)
        self.mask = None if mask is None else pack(mask)
        self.velocity, *self.coefficients = (next(planes) for _ in range(4))
        self.velocity.fill(0)
        self.total = None if mask is None else next(planes)
        if mask is not None:
            self.total.fill(0)

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
        total, covariance, variance = (values[inner] for values in sums)
        minus_mean_plane = product[inner]
        minus_inverse_count, minus_mean = self.minus_inverse_count[rows], self.minus_mean[rows]
        floor, gain = self.floor[rows], self.gain[rows]
        minus_slopes, minus_offsets, weights = (values[rows] for values in self.coefficients)

        def fit() -> None:
            # Each product is summed at once, while it is in the cache.
            np.multiply(plane, source, out=product)
            sum_product()
            np.multiply(plane, plane, out=product)
            sum_square()
            sum_plane()
            np.multiply(total, minus_inverse_count, out=minus_mean_plane)
            cv2.accumulateProduct(minus_mean, total, covariance)
            cv2.accumulateProduct(minus_mean_plane, total, variance)
            np.add(variance, floor, out=variance)
            back = np.divide(covariance, variance, out=variance)
            np.multiply(back, back, out=weights)
            np.subtract(-1, weights, out=weights)
            np.multiply(weights, minus_inverse_count, out=weights)
            slopes = cv2.accumulateProduct(covariance, gain, back)
            np.multiply(slopes, minus_inverse_count, out=minus_slopes)
            np.multiply(minus_mean_plane, weights, out=minus_offsets)
            cv2.accumulateProduct(minus_slopes, minus_mean, minus_offsets)

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
            self.layout.share_rows(self.plane, top, bottom)

        return step

    def run(self, on_iteration) -> np.ndarray:
        rows, radius = self.layout.rows, self.radius
        fit = _tiles(radius, rows - radius, self.threads)
        step = _tiles(2 * radius, rows - 2 * radius, self.threads)
        height = max(bottom - top for tiles in fit + step for top, bottom in tiles) + 2 * radius
        barrier = threading.Barrier(self.threads)

        def iterate(worker: int) -> None:
            scratch = np.empty((4, height, self.plane.shape[1]), np.float32)
            fits = [self._fit(*tile, scratch) for tile in fit[worker]]
            steps = [self._step(*tile, scratch) for tile in step[worker]]
            for _ in range(self.settings.iterations):
                for compute in fits:
                    compute()
                barrier.wait()
                for compute in steps:
                    compute()
                if worker == 0 and on_iteration is not None:
                    on_iteration()
                barrier.wait()

        def work(worker: int) -> None:
            # A diverging descent overflows; the caller finds that in the result and says so.
            with np.errstate(all="ignore"):
                iterate(worker)

        _run_together(work, self.threads, barrier)
        if self.mask is None:
            return self.layout.unpack(self.plane) - self.start
        return self.layout.unpack(-self.scale * self.total)


def _tiles(first: int, last: int, threads: int) -> list[list[tuple[int, int]]]:
    """Cut rows first..last into one run of tiles for every thread."""
    edges = np.linspace(first, last, threads + 1).astype(int)
    runs = []
    for top, bottom in zip(edges[:-1], edges[1:], strict=True):
        cuts = np.linspace(top, bottom, max(1, round((bottom - top) / _TILE_ROWS)) + 1).astype(int).tolist()
        runs.append([(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True) if b > a])
    return runs


def _run_together(work, threads: int, barrier: threading.Barrier) -> None:
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
