"""Training the embedded text-to-image UNet on the latents of portraits."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ..configuration import option
from ..files import sha256_of_file
from ..training.diffusion import diffusion_loss, noisy_latents, sample_posterior
from ..training.image_folder import text_checksum
from ..training.sampling import sample_picture
from ..training.task import BatchRandom, Example, Source, Validation
from ..weights import BaseModel
from ..weights.diffusers_folder import load_component
from ..weights.tokenizer import load_tokenizer
from .architectures import SCHEDULE, build, unet
from .components import DIFFUSERS, begun_with, plain_config, save_component
from .portrait_set import DataSettings, PortraitTask, face_weights

PROMPTS = (
    "a portrait of a laughing person dressed as Santa Claus in studio light",
    "a portrait of a shocked person with curly ginger hair in a blue shirt in red and blue light",
    "a portrait of an angry old person with a full beard in a golden royal costume with a crown at golden hour",
    "a portrait of a crying person dressed as a white sheep in a garden with colourful flowers",
    "a photo of a <c> with dramatic window grill shadow on the face",
    "a portrait of a calm person with long blond hair dressed as a red flower before mountains at sunset",
)  # fmt: skip


@dataclass(frozen=True)
class TextToImageSettings(DataSettings):
    """Text to image: data, and the frozen models it stands on."""

    autoencoder: Path = option(help="folder that embedded-autoencoder exported", fixed=True)
    clip: Path = option(help="folder that embedded-clip exported", fixed=True)
    unet_of: Path | None = option(None, "folder of embedded models: train its UNet on, instead of one from scratch",
                                  fixed=True)  # fmt: skip
    face: float = option(0.0, "how much more an error in the cells of the face counts", minimum=0)
    features: float = option(0.0, "how much more an error in the cells of eyes, brows and mouth counts on top",
                             minimum=0)  # fmt: skip
    caption_dropout: float = option(0.1, "fraction of captions left empty, for classifier-free guidance", minimum=0,
                                    maximum=1)  # fmt: skip
    min_snr_gamma: float = option(5.0, "weigh noise levels by min-SNR; 0: off", minimum=0)
    guidance_scale: float = option(4.0, "classifier-free guidance of validation pictures", minimum=0)
    validation_steps: int = option(25, "sampling steps of validation pictures", minimum=1)


class TrainTextToImage(PortraitTask):
    """The task; see ``training.task.Task`` for what each method is for."""

    name = "embedded-text-to-image"
    Settings = TextToImageSettings
    summary = "the embedded model's UNet (SD1.5's blocks in small), from a data set of portraits"

    def sources(self, index: int) -> dict[str, Source]:
        content = text_checksum(f"{self.portraits.reader.dataset.fingerprint} {self.portraits.keys[index]}")
        return {
            "latents": Source("latents", content, payload=index),
            "prompt": _prompt(self.portraits.captions[index]),
            "empty": _prompt(""),
        }

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        folder = self.settings.clip
        text = load_component(folder, "text_encoder", torch.float32).eval()
        vae = load_component(self.settings.autoencoder, "vae", torch.float32)
        if self.settings.unet_of is None:
            network = build(unet, seed=self.seed)
        else:
            network = load_component(self.settings.unet_of, "unet", torch.float32)
            self.checksum = sha256_of_file(self.settings.unet_of / "unet" / DIFFUSERS)
        network.to(device)
        self.base = BaseModel(
            "sd1", "stable-diffusion-v1", "embedded", "Apache-2.0", network, vae.eval(), [text],
            [load_tokenizer(folder / "tokenizer")], DDPMScheduler(**SCHEDULE),
        )  # fmt: skip
        self.device = device
        return network

    @contextmanager
    def encoders(self, kind: str) -> Iterator[None]:
        encoder = self.base.vae if kind == "latents" else self.base.text_encoders[0]
        encoder.to(self.device)
        try:
            yield
        finally:
            encoder.to("cpu")

    def encoder_hash(self, kind: str) -> str:
        if kind == "latents":
            return sha256_of_file(self.settings.autoencoder / "vae" / DIFFUSERS)
        tokens = sha256_of_file(self.settings.clip / "tokenizer" / "vocab.json")
        return sha256_of_file(self.settings.clip / "text_encoder" / "model.safetensors") + tokens

    @torch.no_grad()
    def encode(self, source: Source) -> dict[str, Tensor]:
        if source.kind == "prompt":
            return {"prompt": self.base.encode_prompts([source.payload])["prompt"][0].cpu()}
        picture = self.portraits.picture(source.payload)[None].to(self.device)
        posterior = self.base.vae.encode(picture).latent_dist
        return {"mean": posterior.mean[0].cpu(), "std": posterior.std[0].cpu()}

    def sample(self, example: Example, load: Callable, draw: torch.Generator) -> dict[str, Tensor]:
        empty = torch.rand(1, generator=draw) < self.settings.caption_dropout
        truth = self.portraits.truth[example.payload]
        weight = face_weights(truth, self.settings.face, self.settings.features, cell=8)
        return {**load("latents"), **load("empty" if empty else "prompt"), "weight": weight}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        clean = sample_posterior(batch["mean"], batch["std"], random) * self.base.vae.config.scaling_factor
        noisy, noise, timesteps = noisy_latents(clean, random, self.base.scheduler)
        predicted = network(noisy, timesteps, encoder_hidden_states=batch["prompt"]).sample
        gamma, weight = self.settings.min_snr_gamma, batch["weight"]
        return {"noise": diffusion_loss(predicted, clean, noise, timesteps, self.base.scheduler, gamma, weight)}

    def validate(
        self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]
    ) -> Validation:
        prompts = PROMPTS if steps is None else PROMPTS[:1]
        with self.encoders("prompt"):
            texts = [self.base.encode_prompts([prompt]) for prompt in ("", *prompts)]
        images = {}
        for number, (prompt, positive) in enumerate(zip(prompts, texts[1:], strict=True)):
            images[prompt] = sample_picture(
                self.base, network, positive, texts[0], (128, 128), steps or self.settings.validation_steps,
                self.settings.guidance_scale, seed + number, check_stop,
            )  # fmt: skip
        return Validation({name: image.cpu() for name, image in images.items()}, {})

    def describe(self) -> dict[str, str]:
        hashes = {kind: self.encoder_hash(kind) for kind in ("latents", "prompt")}
        described = {**super().describe(), "encoders": json.dumps(hashes)}
        return described if self.settings.unet_of is None else {**described, "unet_of_sha256": self.checksum}

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        network, before = unet(), self.settings.unet_of
        if before is not None:
            network, facts = begun_with(before, "unet", facts, "unet_of", "this UNet")
        save_component(folder / "unet", DIFFUSERS, plain_config(network), weights, facts)


def _prompt(text: str) -> Source:
    return Source("prompt", text_checksum(text), payload=text)
