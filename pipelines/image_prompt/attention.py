"""Decoupled cross-attention: the text's attention as it is, and one of the image tokens added (IP-Adapter, eq. 5)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

CROSS = ".attn2."


def cross_attention_layers(unet) -> dict[str, tuple[int, int]]:
    """(width of the layer, width of the context) of a UNet's cross-attention layers, by its processors' names."""
    layers = {f"{name}.processor": module for name, module in unet.named_modules() if f"{name}.".endswith(CROSS)}
    return {name: tuple(layers[name].to_k.weight.shape) for name in unet.attn_processors if name in layers}


class ImageAttention(nn.Module):
    """Keys and values of image tokens, a pair of projections for every cross-attention layer of a UNet."""

    def __init__(self, unet):
        super().__init__()
        layers = cross_attention_layers(unet)
        self.layers = list(layers)
        self.keys, self.values = (
            nn.ModuleList(nn.Linear(context, width, bias=False) for width, context in layers.values()) for _ in "kv"
        )

    @classmethod
    def of(cls, tensors: dict[str, Tensor], unet) -> "ImageAttention":
        """With the tensors of a published file, under the names of the UNet's processors. Raises ``RuntimeError``."""
        with torch.device("meta"):
            made = cls(unet)
        places = {f"{layer}.to_{part[0]}_ip.weight": f"{part}.{number}.weight"
                  for number, layer in enumerate(made.layers) for part in ("keys", "values")}  # fmt: skip
        made.load_state_dict({places[name]: tensor for name, tensor in tensors.items()}, assign=True)
        return made

    def forward(self, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Keys and values [B, N, width] of tokens [B, N, context] for every layer by its processor's name."""
        pairs = zip(self.layers, self.keys, self.values, strict=True)
        return {layer: (keys(tokens), values(tokens)) for layer, keys, values in pairs}


class DecoupledAttention:
    """Attention processor: softmax(q k'/sqrt d) v of the text plus ``scale`` times the same of the image tokens.

    keys, values: [rows, N, width] for the rows of the batch that the UNet is called with.
    """

    def __init__(self, keys: Tensor, values: Tensor, scale: float):
        self.keys, self.values, self.scale = keys, values, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **unused):
        """Attention of ``hidden_states`` [rows, pixels, width] to the prompts [rows, tokens, context]."""
        if attention_mask is not None:
            raise ValueError("image prompts do not go with attention masks of the text: leave the mask out.")
        if len(hidden_states) != len(self.keys):
            raise ValueError(f"{len(self.keys)} image prompts for {len(hidden_states)} rows: give one for each row.")
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        out = attend(attn.heads, q, k, v)
        if self.scale:
            out = out + self.scale * attend(attn.heads, q, self.keys, self.values)
        return attn.to_out[1](attn.to_out[0](out))


def attend(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of several heads: [rows, queries, width] to [rows, tokens, width]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@contextmanager
def image_prompt(unet, attention: ImageAttention, tokens: Tensor, scale: float) -> Iterator[None]:
    """``unet`` reads image tokens [rows, N, context] in this block; its own processors are back afterwards.

    Keys and values are computed once, for however many steps run inside. Raises ``ValueError`` for a UNet that
    somebody else has changed already.
    """
    processors = unet.attn_processors
    foreign = {type(processors[layer]).__name__ for layer in attention.layers
               if not isinstance(processors[layer], (AttnProcessor, AttnProcessor2_0))}  # fmt: skip
    if foreign:
        raise ValueError(
            f"the UNet has attention processors of the kind {', '.join(sorted(foreign))}, whose work an image prompt "
            "cannot keep: unload them, or call unet.set_default_attn_processor()."
        )
    pairs = attention(tokens)
    try:
        ours = {layer: DecoupledAttention(*pair, scale) for layer, pair in pairs.items()}
        unet.set_attn_processor({**processors, **ours})
        yield
    finally:
        unet.set_attn_processor(processors)
