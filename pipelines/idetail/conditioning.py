"""How the photo enters the UNet: nine channels instead of four (paper, figure 4; notes 2 and 10).

The order is that of inpainting models, noisy latent, mask, source latent: so a merged model is recognised by stock
loaders, and ComfyUI's part of it is ``noise_concat = [mask, source]``.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

ORDERS = ("noisy,mask,source", "source,mask,noisy")
# What stage 1 shows the widened network; "literal": the noised picture where stage 2 has the source, and zeros else.
STAGE_ONE_INPUTS = ("source given", "literal")


def slots(order: str, latent_channels: int = 4) -> dict[str, slice]:
    """Where each part lies among the channels. Raises ``ValueError`` for an unknown order."""
    if order not in ORDERS:
        raise ValueError(f"channel order is {order!r}: use one of {', '.join(map(repr, ORDERS))}.")
    places, start = {}, 0
    for part in order.split(","):
        width = 1 if part == "mask" else latent_channels
        places[part] = slice(start, start + width)
        start += width
    return places


def relight_input(noisy: Tensor, mask: Tensor, source: Tensor, order: str = ORDERS[0]) -> Tensor:
    """What the UNet sees, ``[B, 2C+1, h, w]``; noisy, source ``[B, C, h, w]`` scaled latents, mask ``[B, 1, h, w]``.

    ``noisy`` is scaled as the UNet wants it; the source is not noisy, so it stays as it is.
    """
    parts = {"noisy": noisy, "mask": mask.to(noisy.dtype), "source": source.to(noisy.dtype)}
    slots(order, noisy.shape[1])
    return torch.cat([parts[part] for part in order.split(",")], 1)


def stage_one_input(noisy: Tensor, source: Tensor, order: str, kind: str) -> Tensor:
    """What the UNet sees in stage 1, where input and target are one picture and the mask is empty.

    "source given": the layout of stage 2 with an empty mask. "literal" (paper, section 4.1): the noised latent in the
    source's place and five channels of zeros, whose weights then learn nothing.
    """
    if kind not in STAGE_ONE_INPUTS:
        raise ValueError(f"stage 1 input is {kind!r}: use one of {', '.join(map(repr, STAGE_ONE_INPUTS))}.")
    empty = torch.zeros_like(noisy[:, :1])
    if kind == "literal":
        return relight_input(torch.zeros_like(noisy), empty, noisy, order)
    return relight_input(noisy, empty, source, order)


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A soft mask ``[B, 1, H, W]`` in 0..1 at the latent's ``size`` ``(h, w)``: bilinear, antialiased, in float32."""
    return interpolate(mask.float(), size=tuple(size), mode="bilinear", antialias=True).clamp(0, 1)
