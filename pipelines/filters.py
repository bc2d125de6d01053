"""Window sums and the guided filter, on tensors of any device.

A window of radius r is the square of side 2r+1 around a pixel, truncated at the image border. All means divide by the
number of pixels the truncated window holds.
"""

import torch
from torch.nn.functional import avg_pool2d


def box_sum(x: torch.Tensor, radius: int) -> torch.Tensor:
    """Sum of ``x`` ``[B, C, H, W]`` over the truncated window around every pixel; same shape, differentiable.

    Two one-dimensional passes of plain additions: running sums over a whole row would lose digits in float32.
    """
    side = 2 * radius + 1
    rows = avg_pool2d(x, (side, 1), stride=1, padding=(radius, 0), divisor_override=1)
    return avg_pool2d(rows, (1, side), stride=1, padding=(0, radius), divisor_override=1)


def window_count(size: tuple[int, int], radius: int, like: torch.Tensor) -> torch.Tensor:
    """Number of pixels in the truncated window around every pixel, ``[1, 1, H, W]`` on ``like``'s device."""
    counts = []
    for length in size:
        position = torch.arange(length, device=like.device)
        counts.append((position + radius).clamp(max=length - 1) - (position - radius).clamp(min=0) + 1)
    return (counts[0][:, None] * counts[1]).to(like.dtype)[None, None]


def box_mean(x: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean of ``x`` ``[B, C, H, W]`` over the truncated window around every pixel; same shape, differentiable."""
    return box_sum(x, radius) / window_count(x.shape[-2:], radius, x)


def guided_filter(mask: torch.Tensor, guide: torch.Tensor, radius: int, epsilon: float) -> torch.Tensor:
    """Edge-aware smoothing of ``mask`` by a grey ``guide``: locally, the result is an affine function of the guide.

    He, Sun and Tang 2010 (eqs. 5, 6, 8), with truncated windows. ``mask`` and ``guide`` are ``[B, 1, H, W]``;
    ``epsilon`` is in squared guide units. The result has the mask's shape and may overshoot its range slightly.
    """
    # The guide is centred because squares of large values lose the digits a flat area's variance lives in.
    guide = guide - guide.mean(dim=(-2, -1), keepdim=True)
    mean_guide, mean_mask = box_mean(guide, radius), box_mean(mask, radius)
    covariance = box_mean(guide * mask, radius) - mean_guide * mean_mask
    variance = box_mean(guide * guide, radius) - mean_guide**2
    slope = covariance / (variance + epsilon)
    offset = mean_mask - slope * mean_guide
    return box_mean(slope, radius) * guide + box_mean(offset, radius)
