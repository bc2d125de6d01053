"""The scores of pixels. Where a paper leaves a border or a scale open, its authors' code and piq decide.

The constants belong to the definitions: with other values the scores could not be compared with published ones.
"""

import torch
from torch.nn.functional import avg_pool2d, conv2d

from ..images import size_text
from ..optional import need
from .phase_congruency import SHORTEST_WAVELENGTH, phase_congruency

SSIM_SIGMA = 1.5  # pixels
SSIM_WINDOW = 11  # pixels

# Weights of a 3x3 derivative across its direction; both kernels are normalised to the slope over two pixels.
PREWITT = (1 / 3, 1 / 3, 1 / 3)
SCHARR = (3 / 16, 10 / 16, 3 / 16)
GMSD_CONSTANT = 170  # squared grey levels, c in the paper

FSIM_SIDE = 256  # pixels: the scale at which FSIM compares
FSIM_T1 = 0.85  # for phase congruency, which has no unit
FSIM_T2 = 160  # squared grey levels, for gradient magnitudes


@torch.no_grad()
def psnr(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of two ``[B, 3, H, W]`` in 0..1, in dB: ``[B]``, infinite for identical images.

    -10 log10 of the mean squared error over pixels and channels.
    """
    return -10 * (image.float() - reference.float()).square().mean(dim=(1, 2, 3)).log10()


@torch.no_grad()
def ssim(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean structural similarity of two ``[B, 3, H, W]`` in 0..1, averaged over R, G and B: ``[B]`` in -1..1.

    Wang, Bovik, Sheikh and Simoncelli 2004, equations 13 to 17: Gaussian window, K1 = 0.01, K2 = 0.03, only windows
    that lie inside the image. Raises ``ValueError`` for a side shorter than the window and ``ImportError`` without
    scikit-image.
    """
    _require_side(image, SSIM_WINDOW, "SSIM")
    structural_similarity = need("skimage.metrics", "scikit-image").structural_similarity

    scores = [
        structural_similarity(
            one.cpu().numpy(),
            other.cpu().numpy(),
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
        )
        for one, other in zip(image.float(), reference.float(), strict=True)
    ]
    return torch.tensor(scores, dtype=torch.float32, device=image.device)


@torch.no_grad()
def gmsd(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Gradient magnitude similarity deviation of two ``[B, 3, H, W]`` in 0..1: ``[B]``, 0 for identical images.

    Xue, Zhang, Mou and Bovik 2014: the standard deviation over the image (GMSD, equation 6) of the similarity of the
    gradient magnitudes (GMS, equation 4), on luminance at half size.
    """
    gradients = [gradient_magnitude(_halve(luminance(x)), PREWITT) for x in (image, reference)]
    return similarity(*gradients, GMSD_CONSTANT).std(dim=(1, 2, 3), correction=0)


@torch.no_grad()
def fsim(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Feature similarity of the luminance of two ``[B, 3, H, W]`` in 0..1: ``[B]`` in 0..1, 1 for identical images.

    Zhang, Zhang, Mou and Zhang 2011, section III: S_L = S_PC S_G, the product of the similarities of phase congruency
    and of gradient magnitude, averaged with the larger phase congruency PC_m as weight. Raises ``ValueError`` for a
    side shorter than the shortest wave of the phase congruency.
    """
    _require_side(image, SHORTEST_WAVELENGTH, "FSIM")
    factor = max(1, round(min(image.shape[-2:]) / FSIM_SIDE))
    planes = [avg_pool2d(luminance(x), factor) for x in (image, reference)]
    congruencies = [phase_congruency(x) for x in planes]
    gradients = [gradient_magnitude(x, SCHARR) for x in planes]
    local = similarity(*congruencies, FSIM_T1) * similarity(*gradients, FSIM_T2)
    # Where neither image has any structure the weights vanish together: all pixels then count alike.
    weight = torch.maximum(*congruencies).clamp_min(torch.finfo(local.dtype).eps)
    return (local * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))


def luminance(image: torch.Tensor) -> torch.Tensor:
    """The Y of YIQ, ``[B, 1, H, W]`` float32 in grey levels 0..255, of an image ``[B, 3, H, W]`` in 0..1."""
    red, green, blue = (255 * image.float()).split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def gradient_magnitude(plane: torch.Tensor, across: tuple[float, float, float]) -> torch.Tensor:
    """Length of the gradient of ``plane`` ``[B, 1, H, W]``, same shape; outside the image all is zero.

    ``across`` smooths the central difference across its direction: ``PREWITT`` or ``SCHARR``.
    """
    kernel = plane.new_tensor(across)[:, None] * plane.new_tensor((-1.0, 0.0, 1.0))
    return conv2d(plane, torch.stack([kernel, kernel.T])[:, None], padding=1).norm(dim=1, keepdim=True)


def similarity(a: torch.Tensor, b: torch.Tensor, constant: float) -> torch.Tensor:
    """``(2 a b + c) / (a^2 + b^2 + c)`` per pixel: 1 where the features agree, the form all these scores share.

    ``constant`` c is positive, in the square of the features' unit; it says which differences are too small to matter.
    """
    return (2 * a * b + constant) / (a * a + b * b + constant)


def _halve(plane: torch.Tensor) -> torch.Tensor:
    # The authors filter with zeros beyond the border: the last row and column of an odd side count as half a block.
    return avg_pool2d(plane, 2, ceil_mode=True, divisor_override=4)


def _require_side(image: torch.Tensor, least: int, score: str) -> None:
    if min(image.shape[-2:]) < least:
        raise ValueError(
            f"The image is {size_text(image)} pixels, but {score} needs sides of at least {least}: use a larger image."
        )
