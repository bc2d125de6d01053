"""Pictures as prompts: an embedding becomes tokens that a UNet of diffusers reads beside those of the text.

``resampler``  from an embedding to tokens (IP-Adapter's and InstantID's projector)
``attention``  the cross-attention that reads them: one more attention beside the text's, added up (Ye et al. 2023)
``adapter``    both together, and how they load from a published file
"""

from .adapter import ImagePromptAdapter, load_image_prompt_adapter
from .attention import DecoupledAttention, ImageAttention, image_prompt
from .resampler import Resampler

__all__ = [
    "DecoupledAttention", "ImageAttention", "ImagePromptAdapter", "Resampler", "image_prompt",
    "load_image_prompt_adapter",
]  # fmt: skip
