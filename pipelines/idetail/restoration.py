"""Fine detail of the original for a relit or redrawn portrait, without the light that the original was taken in.

The paper (section 3) names a "wavelet transform-based guided filter" after He et al. 2012 and says no more. To put the
original's finest frequencies in the place of the edited picture's, as those words suggest, is wrong under another
light, where every edge has another contrast: in the portrait world the error against the true picture hardly falls,
and in some lights it grows (tests/test_restoration.py prints by how much). So detail is taken as the guided filter sees
it (its eq. 5), with the original G as the guide of the edited picture L: near each pixel L is an affine function of G.
The slope a of their coarse parts says how much of the original's contrast shows in the new light, the slope b of their
fine parts how much of the original's detail is there already. What lacks is put there:

    L' = L + strength * mask * clamp(a - b, 0, 1.5) * fine(G)

Both slopes are 1 where the two pictures are one. Where only the old light has a shadow, a is near 0,
and most of its edge stays away; a shadow of the new light is no detail of the original and stays. L and G are
logarithms of luminance: light multiplies colours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, pad

from ..filters import box_mean
from ..images import check_image, check_mask, cut_as_encoded, match_batch, match_size

METHODS = ("guided filter", "wavelet")
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
FLOOR = 0.05  # added to luminance before its logarithm: what is darker is noise rather than detail
# Regularisers of the slopes, in squared logarithms. Shading of skin varies by less than the coarse one: there the slope
# tends to 1, and pores and wrinkles come back whole; edges and hard shadows vary by more.
COARSE_EPSILON, FINE_EPSILON = 1e-2, 1e-6
MOST = 1.5
WINDOW = 4  # radius of the slopes' windows, in sizes of detail
# Daubechies 1988: the orthogonal wavelet of four taps.
TAPS = tuple(tap / (4 * math.sqrt(2)) for tap in (1 + 3**0.5, 3 + 3**0.5, 3 - 3**0.5, 1 - 3**0.5))


@dataclass(frozen=True)
class RestorationSettings:
    """What is restored, and how much.

    method: how detail is told from the rest: "guided filter" takes what a Gaussian smooths away, "wavelet" the finest
        bands of an orthogonal wavelet. strength: 0 restores nothing, 1 all that lacks. detail: size of the largest
        detail in pixels: the Gaussian's sigma, or half the period of the coarsest band.
    """

    method: str = METHODS[0]
    strength: float = 1.0
    detail: float = 2.0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method of detail restoration is {self.method!r}: choose one of {', '.join(METHODS)}.")
        if not 0 <= self.strength <= 2 or not 0.5 <= self.detail <= 64:
            raise ValueError(f"strength is {self.strength}, detail {self.detail}: use 0 to 2, and 0.5 to 64 pixels.")


def restore_detail(
    edited: Tensor, original: Tensor, mask: Tensor | None = None, settings: RestorationSettings | None = None
) -> Tensor:
    """``edited`` with the fine detail of ``original``, float32 [B, 3, H, W] in 0..1.

    edited, original: [B, 3, H, W] in 0..1, of any size, the same view; an original of another size is cropped as
    ComfyUI's VAE Encode crops, or scaled. mask: [B, H, W] or [B, 1, H, W] in 0..1, of either picture, where to
    restore, None for everywhere; where it is 0 not a bit changes. Batches equal, or one against many. Raises
    ``ValueError`` for pictures and masks that do not fit.
    """
    settings = settings or RestorationSettings()
    edited = check_image(edited, "edited image")
    size = tuple(edited.shape[-2:])
    original, mask = cut_as_encoded(check_image(original, "original image").to(edited.device), size, mask)
    original = match_size(original, size, "original image", "edited image")
    batch = max(len(edited), len(original))
    edited, original = match_batch(edited, batch, "edited image"), match_batch(original, batch, "original image")
    mask = torch.ones_like(edited[:, :1]) if mask is None else check_mask(mask, size, batch).to(edited.device)
    change = settings.strength * mask * missing_detail(log_luminance(edited), log_luminance(original), settings)
    # One factor for all channels keeps the colour; expm1 is exactly 0 where nothing changes.
    return (edited + (edited + FLOOR) * torch.expm1(change)).clamp(0, 1)


def log_luminance(image: Tensor) -> Tensor:
    """log(luminance + floor) [B, 1, H, W] of an image [B, 3, H, W]."""
    weights = torch.tensor(LUMINANCE, device=image.device, dtype=image.dtype)[:, None, None]
    return torch.log((image * weights).sum(1, keepdim=True) + FLOOR)


def missing_detail(edited: Tensor, original: Tensor, settings: RestorationSettings) -> Tensor:
    """What to add to ``edited`` [B, 1, H, W], to be as detailed as ``original``; both logarithms of luminance."""
    coarse = _smoothing(settings)
    radius = max(1, round(WINDOW * settings.detail))
    edited_base, original_base = coarse(edited), coarse(original)
    detail = original - original_base
    wanted = slope(edited_base, original_base, radius, COARSE_EPSILON)
    there = slope(edited - edited_base, detail, radius, FINE_EPSILON)
    return (wanted - there).clamp(0, MOST) * detail


def slope(target: Tensor, guide: Tensor, radius: int, epsilon: float) -> Tensor:
    """Slope of ``target`` on ``guide``, both [B, 1, H, W], near every pixel (He et al., eqs. 5 and 8).

    Unlike theirs it tends to 1, not to 0, where the guide varies by less than ``epsilon``.
    """
    guide, target = (x - x.mean((-2, -1), keepdim=True) for x in (guide, target))
    mean_guide, mean_target = box_mean(guide, radius), box_mean(target, radius)
    covariance = box_mean(guide * target, radius) - mean_guide * mean_target
    variance = box_mean(guide * guide, radius) - mean_guide**2
    return box_mean((covariance + epsilon) / (variance + epsilon), radius)


def _smoothing(settings: RestorationSettings) -> Callable[[Tensor], Tensor]:
    """What takes the detail from a picture [B, 1, H, W]."""
    if settings.method == METHODS[0]:
        return lambda x: gaussian(x, settings.detail)
    levels = max(1, round(math.log2(settings.detail)) + 1)
    return lambda x: coarse_bands(x, levels)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """``x`` [B, 1, H, W] smoothed, borders repeated."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None, None]
    for _ in "xy":
        x = conv2d(pad(x, (reach, reach, 0, 0), mode="replicate"), kernel).mT
    return x


def coarse_bands(x: Tensor, levels: int) -> Tensor:
    """``x`` [B, 1, H, W] without the ``levels`` finest bands of the wavelet, of any size; borders are repeated.

    Without bands of detail the inverse of an orthogonal transform is its transpose, so both directions are one filter.
    """
    cell = 2**levels
    edge = 4 * cell  # more than the filters of all levels together reach
    height, width = x.shape[-2:]
    coarse = pad(x, (edge, edge + -width % cell, edge, edge + -height % cell), mode="replicate")
    taps = torch.tensor(TAPS, device=x.device, dtype=x.dtype)[None, None, None]
    for _ in range(levels):
        for _ in "xy":
            coarse = conv2d(pad(coarse, (0, 2)), taps, stride=(1, 2)).mT
    for _ in range(levels):
        for _ in "xy":
            coarse = conv_transpose2d(coarse, taps, stride=(1, 2))[..., :-2].mT
    return coarse[..., edge : edge + height, edge : edge + width]
