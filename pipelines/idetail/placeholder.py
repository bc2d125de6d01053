"""IDetail with a placeholder that is learnt: UNet and text encoders as one network (notes 10)."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..weights.prompts import encode_tokens
from ..weights.word_vectors import encode_with_word, spelled_vectors, word_read_as
from .prompts import PLACEHOLDER


class UNetWithWord(nn.Module):
    """A UNet with the frozen text encoders that it is conditioned on, which read the placeholder as ``vectors``.

    vectors: parameters ``[N, W]`` float32 for each text encoder, at first those that spell the word, so that training
    begins where plain text is. All in one module, so that it can be spread over processes.
    """

    def __init__(self, unet: nn.Module, text_encoders: Sequence[nn.Module], tokenizers: Sequence):
        super().__init__()
        self.unet, self.text_encoders, self.tokenizers = unet, nn.ModuleList(text_encoders), tokenizers
        first = spelled_vectors(text_encoders, tokenizers, PLACEHOLDER)
        self.vectors = nn.ParameterList(nn.Parameter(given) for given in first)

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Sequence[Tensor], time_ids: Tensor) -> Tensor:
        """The UNet's output for ``noisy`` ``[B, C, h, w]``.

        tokens: of the prompts, ``[B, 77]`` for each text encoder; time_ids ``[B, 6]`` is what SDXL is told, others not.
        """
        with word_read_as(PLACEHOLDER, self.vectors, self.text_encoders, self.tokenizers):
            found = {name: made.to(self.unet.dtype) for name, made in encode_tokens(self.text_encoders, tokens).items()}
        added = {"text_embeds": found["pooled"], "time_ids": time_ids} if "pooled" in found else None
        return self.unet(noisy, timesteps, found["prompt"], added_cond_kwargs=added, return_dict=False)[0]

    def encode(self, text: str) -> dict[str, Tensor]:
        """What the UNet is conditioned on for one prompt, as ``encode_prompts``, with the vectors as they are now."""
        return encode_with_word(PLACEHOLDER, self.vectors, self.text_encoders, self.tokenizers, [text])

    def enable_gradient_checkpointing(self) -> None:
        """As that of diffusers' models."""
        self.unet.enable_gradient_checkpointing()


def trained_vectors(weights: dict[str, Tensor]) -> list[Tensor]:
    """The vectors among trained weights by parameter name, in the order of the text encoders; none in other runs."""
    return [weights[name] for name in sorted(weights) if name.startswith("vectors.")]


def unet_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained weights of the UNet by its own names, whether it was trained with a word or alone."""
    return {name.removeprefix("unet."): made for name, made in weights.items() if not name.startswith("vectors.")}
