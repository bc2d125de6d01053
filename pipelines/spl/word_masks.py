"""Masks from words: where a model looks when it reads a word of the prompt.

SPL paper, algorithm 2 (notes 5, steps B-H): attention maps averaged over steps, heads and layers, each word's map
divided by its maximum and cut at a threshold, the words joined, the result brought to the picture's edges.
"""

import math
import re

import torch

from ..masks import MaskUpsampling, upsample_mask
from .prompts import PromptTokens

# 16x16, the size the paper uses for SD1.5; never asked to be smaller, so that small models give useful masks too.
_SMALLEST_LIMIT = 16 * 16


def map_limit(latent: tuple[int, int]) -> int:
    """Most tokens that an attention map may have to be taken, for a UNet on latents of ``latent`` cells (H, W).

    A quarter of the latent's side, rounded up: 16x16 for SD1.5 at 512, 32x32 for SDXL at 1024 (paper), 24x24 for SD2.1
    at 768; 16x16 for models on smaller latents.
    """
    return max(_SMALLEST_LIMIT, math.ceil(latent[0] / 4) * math.ceil(latent[1] / 4))


def attention_maps(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(q k' / sqrt(d)) over heads' mean; ``q``, ``k``: ``[B, tokens, heads * d]``. Float32 ``[B, Nq, Nk]``."""
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return ((q / q.shape[-1] ** 0.5) @ k.transpose(-2, -1)).softmax(dim=-1).mean(dim=1)


def joint_attention_maps(q: torch.Tensor, k: torch.Tensor, text: int) -> torch.Tensor:
    """What picture tokens pay of their attention to text tokens, where one attention holds both (Flux; the paper's).

    ``q``, ``k``: ``[B, heads, text + picture tokens, d]``, rotated; the first ``text`` tokens are the text's. Head by
    head, because a map of all is large. Float32 ``[B, picture tokens, text]``.
    """
    total = 0
    for head in range(q.shape[1]):
        scores = q[:, head, text:].float() @ k[:, head].float().transpose(-2, -1) / q.shape[-1] ** 0.5
        total = total + scores.softmax(dim=-1)[..., :text]
    return total / q.shape[1]


class MapRecorder:
    """Averages attention maps of one size over layers and steps.

    limit: most image tokens of a map to be taken. The largest size within it is kept; if a model has none, the
        smallest there is.
    """

    def __init__(self, limit: int):
        self.limit, self.size, self._sum, self._count = limit, None, None, 0

    def wants(self, size: tuple[int, int]) -> bool:
        """Whether maps of ``size`` (H, W) are still of use; ask before computing any."""
        return self.size is None or self._rank(size) >= self._rank(self.size)

    def add(self, maps: torch.Tensor, size: tuple[int, int]) -> None:
        """Add maps ``[B, H * W, tokens]``."""
        if not self.wants(size):
            return
        if size != self.size:
            self.size, self._sum, self._count = size, 0, 0
        self._sum = self._sum + maps.float()
        self._count += 1

    def mean(self) -> torch.Tensor:
        """Average of what was added, ``[B, tokens, H, W]``."""
        if not self._count:
            raise ValueError("no attention map was recorded: this model has no attention between picture and prompt.")
        return (self._sum / self._count).transpose(1, 2).unflatten(-1, self.size)

    def _rank(self, size: tuple[int, int]) -> tuple[bool, int]:
        tokens = size[0] * size[1]
        return (True, tokens) if tokens <= self.limit else (False, -tokens)


def split_words(words: str) -> list[str]:
    """The words a person has listed, by commas or spaces; ``ValueError`` if there is none."""
    found = [word for word in re.split(r"[,\s]+", words) if word]
    if not found:
        raise ValueError("words is empty: name at least one word of the prompt.")
    return found


def words_mask(
    maps: torch.Tensor, prompt: PromptTokens, words: list[str], threshold: float, soft: bool = False
) -> torch.Tensor:
    """Where any of ``words`` is seen: ``[B, H, W]``, 0 or 1, or with ``soft`` the joined maps themselves in 0..1.

    ``maps``: ``[B, tokens, H, W]``, of ``prompt`` (repeated prompts count once). A word of several tokens has the mean
    of their maps.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold is {threshold}: use a value from 0 to below 1.")
    copies = maps.shape[1] // prompt.length
    maps = maps[:, : copies * prompt.length].unflatten(1, (copies, prompt.length)).sum(dim=1)
    each = torch.stack([maps[:, prompt.positions(word)].mean(dim=1) for word in words])
    each = each / each.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(each.dtype).tiny)
    return each.amax(dim=0) if soft else (each > threshold).any(dim=0).to(each.dtype)


def edge_mask(sides: list[tuple[torch.Tensor, torch.Tensor]], upsampling: MaskUpsampling | None = None) -> torch.Tensor:
    """Union of coarse masks, each snapped to the edges of its own picture (notes 5.E-H).

    ``sides``: (mask ``[B, h, w]``, guide ``[B, 3, H, W]`` in 0..1) of the source, or of source and target. Returns
    ``[B, 1, H, W]`` in 0..1.
    """
    masks = [upsample_mask(mask, guide, upsampling) for mask, guide in sides]
    return torch.stack(masks).amax(dim=0)
