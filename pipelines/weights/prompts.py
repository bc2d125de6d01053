"""From prompts to what a UNet is conditioned on, as the stock pipelines of SD1.x, SD2.x and SDXL do it."""

import logging
from collections.abc import Sequence

import torch

logger = logging.getLogger(__name__)


@torch.no_grad()
def encode_prompts(text_encoders: list, tokenizers: list, prompts: list[str]) -> dict[str, torch.Tensor]:
    """``{"prompt": [B, 77, W]}``, with two text encoders (SDXL) also ``"pooled": [B, P]``.

    The last hidden state of one encoder, or the last but one of both and the second one's pooled output. Words beyond
    what the encoder reads are left out with a warning that names the prompt.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts is {prompts!r}: give a list of at least one text.")
    return encode_tokens(text_encoders, prompt_tokens(text_encoders, tokenizers, prompts))


def prompt_tokens(text_encoders: Sequence, tokenizers: Sequence, prompts: list[str]) -> list[torch.Tensor]:
    """Token numbers ``[B, 77]`` of prompts for each text encoder, on its device; warns as ``encode_prompts``."""
    pairs = enumerate(zip(text_encoders, tokenizers, strict=True))
    return [_tokens(encoder, tokenizer, prompts, warn=index == 0) for index, (encoder, tokenizer) in pairs]


def encode_tokens(text_encoders: Sequence, tokens: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same from token numbers ``[B, 77]``, for each text encoder those of its tokenizer; with gradients."""
    if len(text_encoders) == 1:
        return {"prompt": text_encoders[0](tokens[0]).last_hidden_state}
    outputs = [
        encoder(numbers, output_hidden_states=True) for encoder, numbers in zip(text_encoders, tokens, strict=True)
    ]
    return {
        "prompt": torch.cat([output.hidden_states[-2] for output in outputs], dim=-1),
        "pooled": outputs[-1].text_embeds,
    }


def _tokens(encoder, tokenizer, prompts: list[str], warn: bool) -> torch.Tensor:
    length = encoder.config.max_position_embeddings
    if warn:
        for prompt, ids in zip(prompts, tokenizer(list(prompts), verbose=False).input_ids, strict=True):
            if len(ids) > length:
                logger.warning(
                    "The end of this prompt is left out, it has %d tokens and %d fit: %r", len(ids), length, prompt
                )
    return padded_tokens(tokenizer, prompts, length).to(encoder.device)


def padded_tokens(tokenizer, prompts: list[str], length: int) -> torch.Tensor:
    """Token numbers ``[B, length]``, cut or padded as the tokenizer does it."""
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(prompts), **options).input_ids
