"""Image-space optimisation: pull an edited image towards the structure, and if asked the colours, of its source."""

from collections.abc import Callable

import torch
from torch.nn.functional import max_pool2d

from ..images import check_mask, match_pair
from .chroma import color_change
from .losses import intensity
from .settings import StructureSettings
from .structure import intensity_change

# Far outside 0..1 but far from overflow: a descent that gets here will not come back.
_DIVERGED = 100.0


@torch.no_grad()
def preserve_structure(
    edited: torch.Tensor,
    source: torch.Tensor,
    mask: torch.Tensor | None = None,
    settings: StructureSettings | None = None,
    on_iteration: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Momentum descent of W_s L_SPL + W_c L_CPL from ``edited``, K steps (paper, section 3; authors' code).

    ``edited``, ``source``: ``[B, 3, H, W]`` in 0..1, the same size, batches equal or 1 against many; sides of at least
    2r+1 pixels. ``mask``: ``[B, H, W]`` or ``[B, 1, H, W]`` in 0..1, any size of the same aspect: 1 where structure is
    kept, 0 where the edit is free; both images are multiplied by it. ``on_iteration(done, total)`` may raise to stop.
    Returns float32 ``[B, 3, H, W]`` in 0..1 on ``edited``'s device. Each image's result is independent of its batch.
    Raises ``ValueError`` for images or masks that do not fit, and if the weights make the descent diverge.
    """
    settings = settings or StructureSettings()
    edited, source = match_pair(edited, source, settings.window, ("edited image", "source image"))
    source = source.to(edited.device)
    if mask is not None:
        mask = prepare_mask(mask, tuple(edited.shape[-2:]), edited.shape[0], settings.mask_dilation).to(edited.device)
    change = 0
    if settings.structure_weight > 0:
        counter = _Counter(on_iteration, settings.iterations * edited.shape[0])
        change = intensity_change(intensity(edited), intensity(source), mask, settings, counter)
    if settings.color_weight > 0:
        change = color_change(edited, source, mask, settings).add_(change)
    result = edited + change
    low, high = result.aminmax()
    if not max(-low, high) < _DIVERGED:  # also true for NaN
        raise ValueError(
            f"the optimisation diverged with structure_weight {settings.structure_weight:g}, color_weight "
            f"{settings.color_weight:g}, learning_rate {settings.learning_rate:g}, momentum {settings.momentum:g}: "
            "lower the weights (defaults 10000 and 1000) or the learning rate."
        )
    return result.clamp_(0, 1)


def prepare_mask(mask: torch.Tensor, size: tuple[int, int], batch: int, dilation: int) -> torch.Tensor:
    """Check a region mask, bring it to ``size`` ``(H, W)`` and ``batch``, grow it by ``dilation`` pixels."""
    mask = check_mask(mask, size, batch)
    if dilation:
        side = 2 * dilation + 1
        rows = max_pool2d(mask, (side, 1), stride=1, padding=(dilation, 0))
        mask = max_pool2d(rows, (1, side), stride=1, padding=(0, dilation))
    return mask


class _Counter:
    """Counts iterations for a progress callback ``(done, total)``."""

    def __init__(self, callback, total: int):
        self.callback, self.total, self.done = callback, total, 0

    def __call__(self) -> None:
        self.done += 1
        if self.callback is not None:
            self.callback(self.done, self.total)
