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

    def pack(self, plane: np.ndarray) -> np.ndarray:
        cv2 = need("cv2", "opencv-python")
        padded = np.zeros((self.core * self.bands + 2 * self.halo, self.width), np.float32)
        padded[self.halo : self.halo + self.height] = plane
        bands = [padded[i * self.core : i * self.core + self.rows] for i in range(self.bands)]
        return cv2.merge(bands).reshape(self.rows, -1)

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
        pack = self.layout.pack
        if mask is not None:
            image, source = mask * image, mask * source
        # Any constant may be subtracted from both images; small values keep the digits of flat areas.
        center = source.mean()
        source = source - center
        inverse_count = 1 / np.multiply.outer(*(_window_length(side, self.radius) for side in source.shape))
        mean = self._window_sum(source) * inverse_count
        variance = self._window_sum(source * source) * inverse_count - mean * mean

        self.start = pack(image - center)
        self.plane = self.start.copy()
        self.source = pack(source)
        self.minus_mean = pack(-mean)
        self.gain = pack(inverse_count / (variance + np.float32(self.settings.epsilon)))
        self.floor = pack(np.float32(self.settings.epsilon) / inverse_count)
        self.floor[self.floor == 0] = 1
        self.minus_inverse_count = pack(-inverse_count)
        self.mask = None if mask is None else pack(mask)
        self.velocity = np.zeros_like(self.plane)
        self.total = None if mask is None else np.zeros_like(self.plane)
        self.coefficients = [np.zeros_like(self.plane) for _ in range(3)]

    def _window_sum(self, plane, out=None):
        cv2 = need("cv2", "opencv-python")
        side = self.settings.window
        return cv2.boxFilter(plane, -1, (side, side), dst=out, normalize=False, borderType=cv2.BORDER_CONSTANT)

    def _band_sum(self, packed, out):
        view = self.layout.interleaved
        self._window_sum(view(packed), out=view(out))

    def _fit(self, top: int, bottom: int, scratch) -> None:
        """Coefficient planes of rows top..bottom: -(a + a') / N, -(b - a'b') / N and (1 + a'^2) / N."""
        cv2 = need("cv2", "opencv-python")
        outer, inner = slice(top - self.radius, bottom + self.radius), slice(self.radius, self.radius + bottom - top)
        rows = slice(top, bottom)
        product, *sums = (buffer[: outer.stop - outer.start] for buffer in scratch)
        plane = self.plane[outer]
        # Each product is summed at once, while it is in the cache.
        self._band_sum(np.multiply(plane, self.source[outer], out=product), out=sums[1])
        self._band_sum(np.multiply(plane, plane, out=product), out=sums[2])
        self._band_sum(plane, out=sums[0])

        # Sums over windows, so N times the moments: the factors N cancel in a and a'.
        total, covariance, variance = (values[inner] for values in sums)
        minus_inverse_count, minus_mean = self.minus_inverse_count[rows], self.minus_mean[rows]
        minus_mean_plane = np.multiply(total, minus_inverse_count, out=product[inner])
        cv2.accumulateProduct(minus_mean, total, covariance)
        cv2.accumulateProduct(minus_mean_plane, total, variance)
        variance += self.floor[rows]
        back = np.divide(covariance, variance, out=variance)

        minus_slopes, minus_offsets, weights = (values[rows] for values in self.coefficients)
        np.multiply(back, back, out=weights)
        np.subtract(-1, weights, out=weights)
        weights *= minus_inverse_count
        cv2.accumulateProduct(covariance, self.gain[rows], back)
        np.multiply(back, minus_inverse_count, out=minus_slopes)
        np.multiply(minus_mean_plane, weights, out=minus_offsets)
        cv2.accumulateProduct(minus_slopes, minus_mean, minus_offsets)

    def _step(self, top: int, bottom: int, scratch) -> None:
        """Momentum step of rows top..bottom along P (U + C) - S A - B."""
        cv2 = need("cv2", "opencv-python")
        outer, inner = slice(top - self.radius, bottom + self.radius), slice(self.radius, self.radius + bottom - top)
        rows = slice(top, bottom)
        sums = [buffer[: outer.stop - outer.start] for buffer in scratch[:3]]
        for values, out in zip(self.coefficients, sums, strict=True):
            self._band_sum(values[outer], out)
        minus_a, gradient, weight = (values[inner] for values in sums)
        velocity, plane = self.velocity[rows], self.plane[rows]
        cv2.accumulateProduct(weight, plane, gradient)
        cv2.accumulateProduct(minus_a, self.source[rows], gradient)
        if self.mask is None:
            cv2.scaleAdd(velocity, self.settings.momentum, gradient, dst=velocity)
            cv2.scaleAdd(velocity, -self.scale, plane, dst=plane)
        else:
            gradient *= self.mask[rows]
            cv2.scaleAdd(velocity, self.settings.momentum, gradient, dst=velocity)
            self.total[rows] += velocity
            cv2.scaleAdd(np.multiply(velocity, self.mask[rows], out=weight), -self.scale, plane, dst=plane)

    def run(self, on_iteration) -> np.ndarray:
        rows, radius = self.layout.rows, self.radius
        fit = _tiles(radius, rows - radius, self.threads)
        step = _tiles(2 * radius, rows - 2 * radius, self.threads)
        height = max(bottom - top for tiles in fit + step for top, bottom in tiles) + 2 * radius
        barrier = threading.Barrier(self.threads)

        def iterate(worker: int) -> None:
            scratch = [np.zeros((height, self.plane.shape[1]), np.float32) for _ in range(4)]
            for _ in range(self.settings.iterations):
                for tile in fit[worker]:
                    self._fit(*tile, scratch)
                barrier.wait()
                for tile in step[worker]:
                    self._step(*tile, scratch)
                    self.layout.share_rows(self.plane, *tile)
                if worker == 0 and on_iteration is not None:
                    on_iteration()
                barrier.wait()

        def work(worker: int) -> None:
            # A diverging descent overflows; the caller finds that in the result and says so.
            with np.errstate(all="ignore"):
                iterate(worker)

        _run_together(work, self.threads, barrier)
        if self.mask is None:
            return self.layout.unpack(self.plane - self.start)
        return self.layout.unpack(-self.scale * self.total)


def _window_length(length: int, radius: int) -> np.ndarray:
    """Number of pixels in the truncated one-dimensional window around every position, float32 ``[length]``."""
    position = np.arange(length)
    return (np.minimum(position + radius, length - 1) - np.maximum(position - radius, 0) + 1).astype(np.float32)


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
