"""Guided mask upsampling: doubling by doubling, each time snapped to the picture's edges by a guided filter.

SPL paper, algorithm 2, and the refinement that only the authors' code has (method notes 2.10 and 5.E-G), with two
changes: everything stays in floating point (the authors round to 8 bits between scales), and any aspect ratio works.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import conv2d, pad

from ..filters import guided_filter
from ..images import check_image, check_mask, match_batch, size_text


@dataclass(frozen=True)
class MaskUpsampling:
    """Settings of guided mask upsampling; defaults from the authors' code.

    radius: of the guided filter at the first doubling, in pixels; it grows by ``radius_step`` each doubling.
    epsilon: regulariser of the guided filter, in squared 0..1 guide intensity.
    suppress_background: press down the weak, diffuse part of the mask after upsampling (code only, not in the paper).
    block, offset, gamma, margin: of that suppression: side of the Gaussian neighbourhood in pixels (odd), how far below
        its neighbourhood a pixel must lie to count as background, exponent of the fall-off, and how far above the
        mean background the fall-off begins; offset and margin in 0..1.
    """

    radius: int = 1
    radius_step: int = 1
    epsilon: float = 1e-2
    suppress_background: bool = True
    block: int = 15
    offset: float = 5 / 255
    gamma: float = 4.0
    margin: float = 20 / 255

    def __post_init__(self):
        if self.radius < 1 or self.radius_step < 0:
            raise ValueError(
                f"radius is {self.radius} and radius_step {self.radius_step}: use at least 1 and at least 0."
            )
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon}: it must be above 0.")
        if self.block < 3 or self.block % 2 == 0:
            raise ValueError(f"block is {self.block}: use an odd number of pixels, at least 3.")
        if not self.gamma >= 1:
            raise ValueError(f"gamma is {self.gamma}: it must be at least 1.")


def upsample_mask(mask: torch.Tensor, guide: torch.Tensor, settings: MaskUpsampling | None = None) -> torch.Tensor:
    """Bring a coarse soft mask to the size and the edges of ``guide``.

    ``mask``: ``[B, h, w]`` or ``[B, 1, h, w]`` in 0..1, not larger than the guide, of its aspect (a 16x16 attention map
    of a picture that is not square does not have it: the map must be w x h as the model sees the picture).
    ``guide``: ``[B, 3, H, W]`` in 0..1. Batches equal, or 1 against many. Returns ``[B, 1, H, W]`` float32 in 0..1.
    """
    settings = settings or MaskUpsampling()
    guide = check_image(guide, "guide image")
    mask, guide = _check_coarse(mask, guide)
    grey = guide.mean(dim=1, keepdim=True)
    for index, size in enumerate(_scales(tuple(mask.shape[-2:]), tuple(grey.shape[-2:]))):
        radius = settings.radius + index * settings.radius_step
        mask = guided_filter(_lanczos(mask, size), _lanczos(grey, size), radius, settings.epsilon).clamp(0, 1)
    if settings.suppress_background:
        mask = torch.cat([_suppress_background(m[None], settings) for m in mask])
    return mask


def _check_coarse(mask: torch.Tensor, guide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    size = tuple(mask.shape[-2:])
    mask = check_mask(mask, size, mask.shape[0] if mask.ndim > 2 else 1)
    if mask.shape[-2] > guide.shape[-2] or mask.shape[-1] > guide.shape[-1]:
        raise ValueError(
            f"mask is {size_text(mask)}, larger than the guide image {size_text(guide)}: use a larger guide image, "
            "or scale the mask down first."
        )
    # A coarse map is rounded to whole cells, so its aspect may be off by up to one cell a side.
    scale_y, scale_x = guide.shape[-2] / mask.shape[-2], guide.shape[-1] / mask.shape[-1]
    if abs(guide.shape[-2] / scale_x - mask.shape[-2]) > 1 and abs(guide.shape[-1] / scale_y - mask.shape[-1]) > 1:
        raise ValueError(
            f"mask is {size_text(mask)}, guide image is {size_text(guide)}: their shapes differ, so the mask would be "
            "stretched. Crop the guide image or resize the mask to the same shape."
        )
    batch = max(mask.shape[0], guide.shape[0])
    return match_batch(mask, batch, "mask").to(guide.device), match_batch(guide, batch, "guide image")


def _scales(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes after each doubling from ``start`` to ``end``; the last step may be smaller than a doubling."""
    doublings = max(1, math.ceil(math.log2(max(end[0] / start[0], end[1] / start[1])) - 1e-9))
    sizes = [tuple(min(side * 2**i, last) for side, last in zip(start, end, strict=True)) for i in range(1, doublings)]
    return [*sizes, end]


def _lanczos(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize ``[B, 1, H, W]`` with Pillow's Lanczos filter, plane by plane in float32 (antialiased, may overshoot)."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    from PIL import Image

    planes = [
        np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.LANCZOS))
        for plane in x[:, 0].cpu().numpy()
    ]
    return torch.from_numpy(np.stack(planes))[:, None].to(x.device)


def _suppress_background(mask: torch.Tensor, settings: MaskUpsampling) -> torch.Tensor:
    """Adaptive threshold, then v -> t (v / t)^gamma below t = mean background + margin (authors' code, step G)."""
    background = mask <= _local_mean(mask, settings.block) - settings.offset
    level = mask[background].mean() if background.any() else mask.mean()
    # The cap is ours: without it a mask that is white everywhere would be darkened as its own background.
    threshold = torch.minimum(level + settings.margin, mask.max())
    if threshold <= 0:
        return mask
    return torch.where(mask < threshold, threshold * (mask / threshold) ** settings.gamma, mask)


def _local_mean(x: torch.Tensor, side: int) -> torch.Tensor:
    """Gaussian mean over a ``side`` x ``side`` neighbourhood, borders repeated, sigma as OpenCV derives it from it."""
    sigma = 0.3 * ((side - 1) * 0.5 - 1) + 0.8
    position = torch.arange(side, dtype=x.dtype, device=x.device) - side // 2
    kernel = torch.exp(-(position**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    half = side // 2
    padded = pad(x, (half, half, half, half), mode="replicate")
    return conv2d(conv2d(padded, kernel), kernel.transpose(-2, -1))
