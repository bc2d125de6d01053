"""Training the embedded CLIP: text and image tower by contrast (Radford et al. 2021, section 2.3)."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ..configuration import option
from ..training.task import BatchRandom, Example, Validation
from ..weights.prompts import padded_tokens
from ..weights.tokenizer import load_tokenizer
from .architectures import TOKENS, build, image_encoder, text_encoder
from .components import TRANSFORMERS, plain_config, save_component
from .portrait_set import DataSettings, PortraitTask, batches, shifted, without_prefix
from .vocabulary import learn_vocabulary, save_vocabulary

MAX_SCALE = 100.0
CHOICES = 32


@dataclass(frozen=True)
class ClipSettings(DataSettings):
    """CLIP: data and vocabulary."""

    vocabulary: int = option(1024, "tokens of the vocabulary that is learnt from the captions, at most",
                             minimum=514, fixed=True)  # fmt: skip
    shift: int = option(8, "portraits are moved by up to so many pixels", minimum=0, maximum=32)


class ContrastiveTowers(nn.Module):
    """Both towers and their temperature, as one call."""

    def __init__(self, text, image):
        super().__init__()
        self.text, self.image = text, image
        self.log_scale = nn.Parameter(torch.tensor(2.659))

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Scaled cosine similarities [pictures, texts] of pixels [B, 3, H, W] in -1..1 and tokens [N, 77]."""
        pictures = normalize(self.image(pixels).image_embeds.float(), dim=1)
        texts = normalize(self.text(tokens).text_embeds.float(), dim=1)
        with torch.autocast(pixels.device.type, enabled=False):
            return self.log_scale.exp().clamp(max=MAX_SCALE) * pictures @ texts.T


class TrainClip(PortraitTask):
    """The task; see ``training.task.Task`` for what each method is for."""

    name = "embedded-clip"
    Settings = ClipSettings
    summary = "the embedded model's text and image encoders (CLIP), from a data set of portraits"

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        texts = [*self.portraits.captions, *(truth["caption"] for truth in self.portraits.truth)]
        self.vocabulary, self.merges = learn_vocabulary(texts, self.settings.vocabulary)
        self.tokenizer = make_tokenizer(self.vocabulary, self.merges)
        text = build(text_encoder, len(self.vocabulary), seed=self.seed)
        return ContrastiveTowers(text, build(image_encoder, seed=self.seed)).to(device)

    def sample(self, example: Example, load: Callable, draw: torch.Generator) -> dict[str, Tensor]:
        index = example.payload
        complete = torch.rand(1, generator=draw) < 0.5
        words = self.portraits.truth[index]["caption"] if complete else self.portraits.captions[index]
        picture, _ = shifted(self.portraits.picture(index), self.settings.shift, draw)
        return {"pixels": picture, "tokens": tokenize(self.tokenizer, [words])[0]}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        similarity = network(batch["pixels"], batch["tokens"])
        own = torch.arange(len(similarity), device=similarity.device)
        return {"pictures": cross_entropy(similarity, own) / 2, "texts": cross_entropy(similarity.T, own) / 2}

    def validate(
        self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]
    ) -> Validation:
        device, right, seen = next(network.parameters()).device, 0, 0
        for chosen in batches(min(256 if steps is None else CHOICES, len(self.held_out)), CHOICES):
            check_stop()
            texts = [self.held_out.truth[index]["caption"] for index in chosen]
            tokens = tokenize(self.tokenizer, texts).to(device)
            guess = network(self.held_out.pictures(chosen).to(device), tokens).argmax(1).cpu()
            right, seen = right + int((guess == torch.arange(len(guess))).sum()), seen + len(guess)
        return Validation({}, {f"retrieval of {CHOICES}": right / seen})

    def describe(self) -> dict[str, str]:
        words = {"vocabulary": json.dumps(self.vocabulary), "merges": json.dumps(self.merges)}
        return {**super().describe(), **words}

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        vocabulary, merges = (json.loads(facts[name]) for name in ("vocabulary", "merges"))
        facts = {name: text for name, text in facts.items() if name not in ("vocabulary", "merges")}
        facts["log_scale"] = str(weights["log_scale"].item())
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
