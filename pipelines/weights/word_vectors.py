"""A word with learnt token vectors in place of those that spell it (textual inversion, Gal et al. 2022), and its file.

The word keeps the number of its tokens, so whoever reads it with the vectors and whoever puts these into a prompt
(``embedding:name`` in ComfyUI) conditions the UNet alike.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .checks import save_finite
from .prompts import encode_prompts

# What the vectors of a family's text encoders are called in a file.
KEYS = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g")}


def word_tokens(tokenizer, word: str) -> Tensor:
    """The token numbers ``[N]`` of a word, without start and end."""
    return torch.tensor(tokenizer(word).input_ids[1:-1])


def spelled_vectors(text_encoders: Sequence, tokenizers: Sequence, word: str) -> list[Tensor]:
    """The vectors ``[N, W]`` that the word's tokens have, for every text encoder; float32 copies."""
    return [
        encoder.get_input_embeddings().weight[word_tokens(tokenizer, word)].detach().float().clone()
        for encoder, tokenizer in zip(text_encoders, tokenizers, strict=True)
    ]


def apart(word: str, text: str) -> str:
    """The text with spaces around the word, so that no tokenizer takes it together with a comma after it."""
    return text.replace(word, f" {word} ")


@contextmanager
def word_read_as(word: str, vectors: Sequence[Tensor], text_encoders: Sequence, tokenizers: Sequence) -> Iterator[None]:
    """Block in which the text encoders read the word as ``vectors``, ``[N, W]`` for each of them.

    In texts it has to stand ``apart``. Gradients reach the vectors. Raises ``ValueError`` where they are not as many,
    or as wide, as the word's own.
    """
    with ExitStack() as hooks:
        for encoder, tokenizer, given in zip(text_encoders, tokenizers, vectors, strict=True):
            embedding, pattern = encoder.get_input_embeddings(), word_tokens(tokenizer, word)
            wanted = (len(pattern), embedding.weight.shape[1])
            if tuple(given.shape) != wanted:
                raise ValueError(
                    f"the vectors of {word!r} are {tuple(given.shape)}, this model's text encoder spells it with "
                    f"{wanted}: give a file that was trained on this kind of model."
                )
            hook = embedding.register_forward_hook(partial(_put_in_place, pattern=pattern, vectors=given))
            hooks.callback(hook.remove)
        yield


def encode_with_word(
    word: str, vectors: Sequence[Tensor], text_encoders: Sequence, tokenizers: Sequence, prompts: Sequence[str]
) -> dict[str, Tensor]:
    """As ``encode_prompts``, with the word read as ``vectors``."""
    with word_read_as(word, vectors, text_encoders, tokenizers):
        return encode_prompts(text_encoders, tokenizers, [apart(word, prompt) for prompt in prompts])


def _put_in_place(embedding, inputs: tuple, output: Tensor, pattern: Tensor, vectors: Tensor) -> Tensor:
    rows, starts = _places(inputs[0], pattern)
    columns = starts[:, None] + torch.arange(len(pattern), device=starts.device)
    new = vectors.to(output).expand(len(rows), *vectors.shape)
    return output.index_put((rows[:, None].expand_as(columns), columns), new)


def _places(tokens: Tensor, pattern: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, first columns) of the pattern in tokens ``[B, L]``."""
    windows = tokens.unfold(1, len(pattern), 1)
    return (windows == pattern.to(tokens.device)).all(-1).nonzero(as_tuple=True)


def save_word(path: Path, family: str, vectors: Sequence[Tensor], metadata: dict[str, str]) -> None:
    """Write an embedding file for the text encoders of ``family`` ("sd1", "sd2", "sdxl"), whole or not at all."""
    tensors = {key: given.detach().cpu().float() for key, given in zip(KEYS[family], vectors, strict=True)}
    save_finite(path, tensors, metadata, "train with a lower --learning-rate")


def read_word(path: Path, family: str) -> list[Tensor]:
    """The vectors in an embedding file. Raises ``ValueError`` where it has none for ``family``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        return [tensors[key] for key in KEYS[family]]
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"{path} holds no vectors for the text encoders of {family} ({error}): give a file that idetail-lora "
            "exported with --learn-placeholder for such a model."
        ) from error
