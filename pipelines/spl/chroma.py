"""The colour loss, all its iterations at once.

L_CPL is quadratic in the colour difference d = (Cb, Cr) between image and source, with the same 2x2 matrix
G = M M^T at every pixel, where M maps RGB to (Cb, Cr). In G's eigenbasis every component follows the scalar recurrence

    w <- momentum w + kappa d,    d <- d - lr w / 2

so K steps multiply d by a fixed number T_K(kappa), found once. The rows of M sum to zero, so none of this changes the
intensity, and the structure loss, which sees only the intensity, never changes d: the two parts run independently.
"""

import torch

from .losses import CHROMA, chroma
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
    weight = edited.new_ones(1, 1, 1, 1) if mask is None else mask**2
    factors = [_shrink_after(strength * value * weight, settings) for value in eigenvalues.tolist()]

    components = torch.einsum("jk,bkhw->bjhw", basis.T.to(edited), chroma(edited - source))
    change = torch.cat([(f - 1) * c for f, c in zip(factors, components.split(1, dim=1), strict=True)], dim=1)
    back_to_rgb = matrix.T @ basis @ torch.diag(1 / eigenvalues)
    return torch.einsum("cj,bjhw->bchw", back_to_rgb.to(edited), change)


def _shrink_after(kappa: torch.Tensor, settings: StructureSettings) -> torch.Tensor:
    """T_K(kappa): the factor by which K steps of the recurrence above shrink d from rest; same shape as ``kappa``.

    One step is the matrix [[1 - lr kappa / 2, -lr momentum / 2], [kappa, momentum]] on (d, w); its K-th power is taken
    by squaring, elementwise, in float64 where the device has it.
    """
    precise = kappa.device.type in ("cpu", "cuda")
    k = kappa.double() if precise else kappa
    half = settings.learning_rate / 2
    step = (1 - half * k, torch.full_like(k, -half * settings.momentum), k, torch.full_like(k, settings.momentum))
    power = (torch.ones_like(k), torch.zeros_like(k), torch.zeros_like(k), torch.ones_like(k))
    remaining = settings.iterations
    while remaining:
        if remaining & 1:
            power = _multiply(power, step)
        step = _multiply(step, step)
        remaining >>= 1
    return power[0].to(kappa.dtype)


def _multiply(a, b):
    return (
        a[0] * b[0] + a[1] * b[2],
        a[0] * b[1] + a[1] * b[3],
        a[2] * b[0] + a[3] * b[2],
        a[2] * b[1] + a[3] * b[3],
    )
