"""The perceiver that turns embeddings into tokens (Jaegle et al. 2021, as IP-Adapter and InstantID build it).

Names of parameters are those of the published files, so their tensors load as they are.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..weights.architectures import HEAD_WIDTH, count


class PerceiverAttention(nn.Module):
    """The tokens look at the embedding and at themselves."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = max(width // HEAD_WIDTH, 1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """What to add to ``latents`` [B, N, width], which see themselves and ``x`` [B, M, width]."""
        x, latents = self.norm1(x), self.norm2(latents)
        keys, values = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(latents), keys, values))
        return self.to_out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def feed_forward(width: int) -> nn.Sequential:
    """A hidden layer four times as wide."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


class Resampler(nn.Module):
    """Embeddings of ``inputs`` numbers to ``tokens`` tokens of ``outputs`` numbers; defaults are InstantID's."""

    def __init__(self, outputs: int, layers: int = 4, width: int = 1280, tokens: int = 16, inputs: int = 512):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.proj_in, self.proj_out = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.norm_out = nn.LayerNorm(outputs)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width), feed_forward(width)]) for _ in range(layers)
        )

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Resampler":
        """The resampler that a published file's tensors are of, with these tensors. Raises ``RuntimeError``."""
        (width, inputs), outputs = tensors["proj_in.weight"].shape, len(tensors["proj_out.weight"])
        with torch.device("meta"):
            made = cls(outputs, count(tensors, "layers.{}."), width, tensors["latents"].shape[1], inputs)
        made.load_state_dict(tensors, assign=True)
        return made

    def forward(self, embeddings: Tensor) -> Tensor:
        """Tokens [B, tokens, outputs] of embeddings [B, inputs], or of M of them each [B, M, inputs]."""
        inputs = self.proj_in.in_features
        if embeddings.shape[-1] != inputs:
            raise ValueError(
                f"the embedding has {embeddings.shape[-1]} numbers, the projector reads {inputs}: take the embedder "
                "that the projector was trained with."
            )
        x = self.proj_in(embeddings if embeddings.ndim == 3 else embeddings[:, None])
        latents = self.latents.expand(len(x), -1, -1)
        for attention, feed in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))
