"""Training the embedded CLIP: text and image tower by contrast (Radford et al. 2021, section 2.3).

Contrast teaches the text tower only what the image tower sees, and small as that is, it does not see expressions. Words
that make no difference fade from the states that the UNet reads, so the states also have to name the words read so far.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from ..configuration import option
from ..files import sha256_of_file
from ..training.task import BatchRandom, Example, Validation
from ..weights.pretrained import load_pretrained
from ..weights.prompts import padded_tokens
from ..weights.tokenizer import load_tokenizer
from .architectures import TEXT_WIDTH, TOKENS, build, image_encoder, text_encoder
from .components import TRANSFORMERS, continued, plain_config, save_component
from .portrait_set import DataSettings, PortraitTask, batches, shifted, without_prefix
from .vocabulary import learn_vocabulary, read_vocabulary, save_vocabulary

MAX_SCALE = 100.0
CHOICES = 32
# Logit for each unit of cosine when words are named: some twenty directions share a state, so cosines are small.
SHARPNESS = 32.0


@dataclass(frozen=True)
class ClipSettings(DataSettings):
    """CLIP: data, vocabulary, weights of the losses."""

    clip_of: Path | None = option(None, "folder of embedded models: train its CLIP on, with its vocabulary, instead of "
                                  "one from scratch", fixed=True)  # fmt: skip
    vocabulary: int = option(1024, "tokens of the vocabulary that is learnt from the captions, at most",
                             minimum=514, fixed=True)  # fmt: skip
    shift: int = option(8, "portraits are moved by up to so many pixels", minimum=0, maximum=32)
    words: float = option(0.5, "weight with which the text tower has to name the caption's words", minimum=0)


class WordNames(nn.Module):
    """Which words of the vocabulary a state tells of, by its angle to a direction for each of them.

    By the angle, because a linear layer would make do with differences as small as they come.
    """

    def __init__(self, count: int):
        super().__init__()
        self.directions = nn.Parameter(torch.randn(count, TEXT_WIDTH))
        self.offsets = nn.Parameter(torch.full((count,), -4.0))

    def forward(self, states: Tensor) -> Tensor:
        """Logits [..., words] of states [..., D]."""
        return SHARPNESS * normalize(states, dim=-1) @ normalize(self.directions, dim=1).T + self.offsets


class ContrastiveTowers(nn.Module):
    """Both towers, their temperature, and the names of words, as one call."""

    def __init__(self, text, image):
        super().__init__()
        self.text, self.image = text, image
        self.log_scale = nn.Parameter(torch.tensor(2.659))
        self.names = WordNames(text.config.vocab_size)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of pixels [B, 3, H, W] in -1..1 and tokens [N, 77]: scaled cosine similarities [pictures, texts], and the
        logits of the words that the texts' states name, [N, 77, words].
        """
        pictures, read = self.image(pixels).image_embeds.float(), self.text(tokens)
        texts, states = read.text_embeds.float(), read.last_hidden_state.float()
        with torch.autocast(pixels.device.type, enabled=False):
            similarity = normalize(pictures, dim=1) @ normalize(texts, dim=1).T
            return self.log_scale.exp().clamp(max=MAX_SCALE) * similarity, self.names(states)


def naming_error(logits: Tensor, tokens: Tensor) -> Tensor:
    """How badly logits [N, 77, words] name, after every token of texts [N, 77], the words read so far.

    Binary cross-entropy, for each word that is there.
    """
    read = torch.zeros_like(logits).scatter_(2, tokens[..., None], 1.0).cumsum(1).clamp(max=1)
    return binary_cross_entropy_with_logits(logits, read, reduction="sum") / read.sum()


class TrainClip(PortraitTask):
    """The task; see ``training.task.Task`` for what each method is for."""

    name = "embedded-clip"
    Settings = ClipSettings
    summary = "the embedded model's text and image encoders (CLIP), from a data set of portraits"

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        network = self._begin() if self.settings.clip_of is None else self._go_on(self.settings.clip_of)
        self.tokenizer = make_tokenizer(self.vocabulary, self.merges)
        return network.to(device)

    def _begin(self) -> ContrastiveTowers:
        texts = [*self.portraits.captions, *(truth["caption"] for truth in self.portraits.truth)]
        self.vocabulary, self.merges = learn_vocabulary(texts, self.settings.vocabulary)
        text, image = build(text_encoder, len(self.vocabulary), seed=self.seed), build(image_encoder, seed=self.seed)
        return build(ContrastiveTowers, text, image, seed=self.seed)

    def _go_on(self, folder: Path) -> ContrastiveTowers:
        self.vocabulary, self.merges = read_vocabulary(folder / "tokenizer")
        text = load_pretrained(CLIPTextModelWithProjection, folder / "text_encoder")
        image = load_pretrained(CLIPVisionModelWithProjection, folder / "image_encoder")
        file = folder / "text_encoder" / TRANSFORMERS
        self.checksum = sha256_of_file(file)
        network = build(ContrastiveTowers, text, image, seed=self.seed)
        with safe_open(file, "pt") as opened:
            network.log_scale.data.fill_(float((opened.metadata() or {}).get("log_scale", network.log_scale)))
        return network

    def sample(self, example: Example, load: Callable, draw: torch.Generator) -> dict[str, Tensor]:
        index = example.payload
        complete = torch.rand(1, generator=draw) < 0.5
        words = self.portraits.truth[index]["caption"] if complete else self.portraits.captions[index]
        picture, _ = shifted(self.portraits.picture(index), self.settings.shift, draw)
        return {"pixels": picture, "tokens": tokenize(self.tokenizer, [words])[0]}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        similarity, named = network(batch["pixels"], batch["tokens"])
        own = torch.arange(len(similarity), device=similarity.device)
        return {
            "pictures": cross_entropy(similarity, own) / 2, "texts": cross_entropy(similarity.T, own) / 2,
            "words": self.settings.words * naming_error(named, batch["tokens"]),
        }  # fmt: skip

    def validate(
        self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]
    ) -> Validation:
        device, right, seen = next(network.parameters()).device, 0, 0
        for chosen in batches(min(256 if steps is None else CHOICES, len(self.held_out)), CHOICES):
            check_stop()
            texts = [self.held_out.truth[index]["caption"] for index in chosen]
            tokens = tokenize(self.tokenizer, texts).to(device)
            guess = network(self.held_out.pictures(chosen).to(device), tokens)[0].argmax(1).cpu()
            right, seen = right + int((guess == torch.arange(len(guess))).sum()), seen + len(guess)
        return Validation({}, {f"retrieval of {CHOICES}": right / seen})

    def describe(self) -> dict[str, str]:
        words = {"vocabulary": json.dumps(self.vocabulary), "merges": json.dumps(self.merges)}
        begun = {} if self.settings.clip_of is None else {"clip_of_sha256": self.checksum}
        return {**super().describe(), **words, **begun}

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        vocabulary, merges = (json.loads(facts[name]) for name in ("vocabulary", "merges"))
        facts = {name: text for name, text in facts.items() if name not in ("vocabulary", "merges")}
        facts["log_scale"] = str(weights["log_scale"].item())
        if self.settings.clip_of is not None:
            file = self.settings.clip_of / "text_encoder" / TRANSFORMERS
            facts = continued(file, facts, "clip_of", "this CLIP")
        for part, tower, model in (
            ("text", "text_model.", text_encoder(len(vocabulary))), ("image", "vision_model.", image_encoder())
        ):  # fmt: skip
            tensors = with_tower(without_prefix(weights, f"{part}."), tower)
            save_component(folder / f"{part}_encoder", TRANSFORMERS, plain_config(model), tensors, facts)
        save_vocabulary(folder / "tokenizer", vocabulary, merges, TOKENS)


def make_tokenizer(vocabulary: dict[str, int], merges: list[str]):
    """A CLIP tokenizer from a vocabulary in memory, by way of its files, which every transformers reads alike."""
    with tempfile.TemporaryDirectory() as folder:
        save_vocabulary(Path(folder), vocabulary, merges, TOKENS)
        tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = TOKENS
    return tokenizer


def tokenize(tokenizer, texts: list[str]) -> Tensor:
    """Token numbers [B, 77], padded with the end token as SD1 does."""
    return padded_tokens(tokenizer, texts, TOKENS)


def with_tower(weights: dict[str, Tensor], tower: str) -> dict[str, Tensor]:
    """Names as files have them: transformers 5.6 took the level ``tower`` out of the names in memory."""
    return {
        name if name.startswith((tower, "text_projection", "visual_projection")) else tower + name: value
        for name, value in weights.items()
    }
