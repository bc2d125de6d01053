"""The colour loss, all its iterations at once.

L_CPL is quadratic in the colour difference d = (Cb, Cr) between image and source, with the same 2x2 matrix
G = M M^T at every pixel, where M maps RGB to (Cb, Cr). In G's eigenbasis every component follows the scalar recurrence

    w <- momentum w + kappa d,    d <- d - lr w / 2

so K steps multiply d by a fixed number T_K(kappa), found once. The rows of M sum to zero, so none of this changes the
intensity, and the structure loss, which sees only the intensity, never changes d: the two parts run independently.
"""

import torch

from .losses import CHROMA
from .settings import REFERENCE_PIXELS, StructureSettings


def color_change(
    edited: torch.Tensor, source: torch.Tensor, mask: torch.Tensor | None, settings: StructureSettings
) -> torch.Tensor:
    """What K steps of colour descent add to ``edited``: ``[B, 3, H, W]``, same dtype and device.

    ``edited``, ``source``: ``[B, 3, H, W]`` in 0..1; ``mask``: ``[B, 1, H, W]`` or None.
    """
    matrix = torch.tensor(CHROMA, dtype=torch.float64)
    eigenvalues, basis = torch.linalg.eigh(matrix @ matrix.T)
    # d L_CPL / d x of one pixel is W_c m^2 M^T d / (2 pixels); the image in -1..1 contributes the factor 1/2.
    strength = settings.color_weight / (2 * REFERENCE_PIXELS)
    weight = matrix.new_ones(1, 1, 1, 1) if mask is None else mask**2
    shares = [_shrink_after(strength * value * weight, settings) - 1 for value in eigenvalues.tolist()]
    to_components = basis.T @ matrix
    back_to_rgb = matrix.T @ basis @ torch.diag(1 / eigenvalues)
    if mask is None:  # the same 3x3 matrix at every pixel
        return _mix(back_to_rgb @ torch.diag(torch.cat(shares).flatten()) @ to_components, edited - source)
    return _mix(back_to_rgb, torch.cat(shares, dim=1) * _mix(to_components, edited - source))


def _mix(matrix: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """Each pixel of ``[B, C, H, W]`` times a matrix ``[D, C]``: ``[B, D, H, W]``."""
    return torch.einsum("dc,bchw->bdhw", matrix.to(channels), channels)


def _shrink_after(kappa: torch.Tensor, settings: StructureSettings) -> torch.Tensor:
    """T_K(kappa): the factor by which K steps of the recurrence above shrink d from rest; same shape as ``kappa``.

    One step is the matrix A = [[1 - lr kappa / 2, -lr momentum / 2], [kappa, momentum]] on (d, w). With its trace P and
    its determinant Q = momentum, A^K = U_K A - Q U_(K-1), where U is a Lucas sequence and V = P U_K - 2 Q U_(K-1) its
    companion, both found by doubling K bit by bit; elementwise, in float64 where the device has it.
    """
    precise = kappa.device.type in ("cpu", "cuda")
    shrink = 1 - settings.learning_rate / 2 * (kappa.double() if precise else kappa)
    determinant = settings.momentum
    trace = shrink + determinant
    first, companion, power = torch.ones_like(trace), trace, determinant
    for bit in f"{settings.iterations:b}"[1:]:
        first, companion, power = first * companion, companion * companion - 2 * power, power * power
        if bit == "1":
            first, companion = (
                (trace * first + companion) / 2,
                ((trace * trace - 4 * determinant) * first + trace * companion) / 2,
            )
            power = power * determinant
    return ((shrink - trace / 2) * first + companion / 2).to(kappa.dtype)
