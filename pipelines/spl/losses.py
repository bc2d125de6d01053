"""The two losses of SPL, written as the paper writes them.

Slow and differentiable: the score shown to people and the oracle of the tests. The optimiser that ships never calls
them, it uses their gradients in closed form (``structure.py``, ``chroma.py``).
"""

import torch

from ..filters import box_mean

# Rows of the map from RGB to (Cb, Cr), from Y = .299 R + .587 G + .114 B, Cb = .564 (B - Y), Cr = .713 (R - Y).
_LUMA = (0.299, 0.587, 0.114)
CHROMA = (
    tuple(0.564 * (unit - y) for unit, y in zip((0, 0, 1), _LUMA, strict=True)),
    tuple(0.713 * (unit - y) for unit, y in zip((1, 0, 0), _LUMA, strict=True)),
)


def intensity(image: torch.Tensor) -> torch.Tensor:
    """Intensity (R + G + B) / 3 of ``[B, 3, H, W]``, as ``[B, 1, H, W]`` (paper, section 3; HSI intensity)."""
    return image.mean(dim=1, keepdim=True)


def chroma(image: torch.Tensor) -> torch.Tensor:
    """Cb and Cr of ``[B, 3, H, W]``, without their constant offset, as ``[B, 2, H, W]``."""
    return torch.einsum("kc,bchw->bkhw", image.new_tensor(CHROMA), image)


def local_linear_error(x: torch.Tensor, y: torch.Tensor, radius: int, epsilon: float, mean=box_mean) -> torch.Tensor:
    """D_k(X -> Y): mean squared error of the best local affine map from x to y, in the window around every pixel k.

    Paper, equation 4. ``x``, ``y``: ``[B, 1, H, W]`` intensities in 0..1; the result has the same shape and can be
    slightly negative from rounding. The coefficients a and b are constants to the gradient (authors' code).
    ``mean(image, radius)`` is the truncated window mean.
    """
    # Constants change nothing but the offset b, and small values keep the digits of flat areas.
    x, y = (image - image.detach().mean(dim=(-2, -1), keepdim=True) for image in (x, y))
    mean_x, mean_y = mean(x, radius), mean(y, radius)
    mean_xx, mean_xy, mean_yy = mean(x * x, radius), mean(x * y, radius), mean(y * y, radius)
    with torch.no_grad():
        a = (mean_xy - mean_x * mean_y) / (mean_xx - mean_x**2 + epsilon)
        b = mean_y - a * mean_x
    return mean_yy + a**2 * mean_xx + b**2 - 2 * a * mean_xy - 2 * b * mean_y + 2 * a * b * mean_x


def structure_loss(
    edited: torch.Tensor, source: torch.Tensor, radius: int = 5, epsilon: float = 1e-4, mean=box_mean
) -> torch.Tensor:
    """L_SPL(E, S), paper equation 5: both directions of the local-linear error, averaged over pixels.

    ``edited``, ``source``: ``[B, 3, H, W]`` in 0..1. Returns one value an image, ``[B]``.
    """
    e, s = intensity(edited), intensity(source)
    both = local_linear_error(e, s, radius, epsilon, mean) + local_linear_error(s, e, radius, epsilon, mean)
    return both.mean(dim=(1, 2, 3))


def structure_map(
    edited: torch.Tensor, source: torch.Tensor, radius: int = 5, epsilon: float = 1e-4
) -> torch.Tensor:
    """The summand of L_SPL at every pixel, ``[B, 1, H, W]``, never negative: where structure was lost."""
    e, s = intensity(edited), intensity(source)
    both = local_linear_error(e, s, radius, epsilon) + local_linear_error(s, e, radius, epsilon)
    return both.clamp(min=0)


def color_loss(edited: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """L_CPL, paper equation 6 with the authors' normalisation: mean squared difference of Cb and Cr, ``[B]``.

    ``edited``, ``source``: ``[B, 3, H, W]`` in 0..1. The paper divides by pixels only and so prints twice this value.
    """
    return (chroma(edited) - chroma(source)).square().mean(dim=(1, 2, 3))
