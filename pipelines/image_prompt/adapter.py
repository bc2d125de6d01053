"""An image-prompt adapter, whole: projector and attention, from a published file."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..weights.checks import check_weights
from ..weights.published import split_instantid
from .attention import ImageAttention
from .resampler import Resampler


class ImagePromptAdapter(nn.Module):
    """From embeddings to tokens (``projector``) and from tokens into the UNet (``attention``, see ``image_prompt``)."""

    def __init__(self, projector: Resampler, attention: ImageAttention):
        super().__init__()
        self.projector, self.attention = projector, attention

    def tokens(self, embeddings: Tensor, guided: bool = True) -> Tensor:
        """Tokens [B, N, W] of embeddings [B, D]; guided: [2B, N, W], those of the unconditional rows first.

        Those are what the projector makes of zeros, as InstantID has it, and not zeros.
        """
        embeddings = embeddings.to(self.projector.latents)
        blank = [torch.zeros_like(embeddings)] if guided else []
        return self.projector(torch.cat([*blank, embeddings]))


def load_image_prompt_adapter(path: Path, unet) -> ImagePromptAdapter:
    """InstantID's ``ip-adapter.bin`` (or a file of its layout) for this UNet of diffusers, on its device.

    Raises ``ValueError`` for a missing or damaged file, and where names or shapes do not fit the UNet.
    """
    projector, attention = split_instantid(path, unet)
    adapter = ImagePromptAdapter(Resampler.of(projector), ImageAttention.of(attention, unet))
    check_weights(adapter, f"the image-prompt adapter {path}")
    return adapter.to(unet.device, unet.dtype).requires_grad_(False).eval()
