"""SPL optimisation as the paper describes it: autograd through the losses, momentum descent on all pixels.

The truth that the shipped optimiser is tested and timed against, and the place to read what it computes. It works in
whatever precision it is given; tests give it float64.
"""

import torch

from .losses import color_loss, structure_loss
from .settings import REFERENCE_PIXELS, StructureSettings


def running_mean(x: torch.Tensor, radius: int) -> torch.Tensor:
    """Truncated window mean by running sums along rows and columns, the way the authors' code takes it."""

    def window(values: torch.Tensor, dim: int) -> torch.Tensor:
        total = values.cumsum(dim)
        last = total.narrow(dim, -1, 1)
        padded = torch.cat([torch.zeros_like(last)] * (radius + 1) + [total] + [last] * radius, dim)
        length = values.shape[dim]
        return padded.narrow(dim, 2 * radius + 1, length) - padded.narrow(dim, 0, length)

    def box(values: torch.Tensor) -> torch.Tensor:
        return window(window(values, -2), -1)

    return box(x) / box(torch.ones_like(x[:1, :1]))


def preserve_structure_by_autograd(
    edited: torch.Tensor, source: torch.Tensor, mask: torch.Tensor | None, settings: StructureSettings
) -> torch.Tensor:
    """K steps of v <- momentum v + gradient, x <- x - lr v on the image in -1..1 (paper, section 3; authors' code).

    ``edited``, ``source``: ``[B, 3, H, W]`` in 0..1; ``mask``: ``[B, 1, H, W]`` in 0..1, multiplies both images.
    Returns the image ``[B, 3, H, W]``, not clamped.
    """
    mask = torch.ones_like(edited[:, :1]) if mask is None else mask
    per_image = edited.shape[-2] * edited.shape[-1] / REFERENCE_PIXELS
    target = mask * source
    x = (edited * 2 - 1).requires_grad_(True)
    optimizer = torch.optim.SGD([x], lr=settings.learning_rate, momentum=settings.momentum)
    for _ in range(settings.iterations):
        optimizer.zero_grad()
        image = mask * (x + 1) / 2
        structure = structure_loss(image, target, settings.radius, settings.epsilon, running_mean)
        color = color_loss(image, target)
        loss = settings.structure_weight * structure + settings.color_weight * color
        (per_image * loss.sum()).backward()
        x.grad.nan_to_num_(nan=0.0)
        optimizer.step()
    return (x.detach() + 1) / 2
