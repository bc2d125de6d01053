"""LoRA fine-tune of a Stable-Diffusion-family UNet on a folder of pictures with captions."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..configuration import option
from .base_model_task import BaseModelSettings, BaseModelTask, prompt_source, time_ids_of
from .diffusion import diffusion_loss, noisy_latents, sample_posterior
from .image_folder import Picture, bucket_for, cover_crop, load_for_bucket, scan_folder
from .lora import LAYERS, add_lora, kohya_tensors, lora_metadata, save_lora
from .sampling import sample_picture
from .settings import DTYPES
from .task import BatchRandom, Example, Scan, Source, Validation


@dataclass(frozen=True)
class LoraSettings(BaseModelSettings):
    """The LoRA fine-tune: model, data, adapter, validation."""

    missing_captions: str = option("error", "a picture without a caption is ...", choices=("error", "empty"))
    flip: bool = option(False, "also train mirrored pictures; not for asymmetric subjects such as faces", fixed=True)
    caption_dropout: float = option(0.0, "fraction of captions left empty, for classifier-free guidance", minimum=0,
                                    maximum=1)  # fmt: skip
    layers: str = option("attention", "what gets an adapter", choices=LAYERS, fixed=True)
    rank: int = option(16, "rank of the adapters", minimum=1, fixed=True)
    alpha: float = option(16.0, "the adapter adds alpha / rank times its output", minimum=0, fixed=True)
    min_snr_gamma: float = option(0.0, "weigh noise levels by min-SNR; 5 is usual, 0: off", minimum=0)
    prompts: tuple[str, ...] = option((), "validation prompts, one picture each (default: captions of the data)")
    validation_captions: int = option(4, "how many captions of the data serve where no prompts are given", minimum=0)
    negative_prompt: str = option("", "what validation pictures should not show")
    validation_steps: int = option(20, "sampling steps of validation pictures", minimum=1)
    guidance_scale: float = option(5.0, "classifier-free guidance of validation pictures", minimum=0)
    export_dtype: str = option("fp16", "numbers in the exported file", choices=tuple(DTYPES))


class LoraFineTune(BaseModelTask):
    """The task; see ``task.Task`` for what each method is for."""

    name = "lora"
    Settings = LoraSettings
    summary = "LoRA fine-tune of any SD1.5, SD2.1, SDXL or KOALA model on a folder of captioned pictures"

    # ---- data

    def scan(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Scan:
        self.check_model_path()
        found = scan_folder(self.settings.data, progress)
        errors, examples, enlarged = list(found.errors), [], 0
        for picture in found.pictures:
            if picture.caption is None and self.settings.missing_captions == "error":
                errors.append(f"{picture.path} has no caption: write {picture.path.with_suffix('.txt').name}, "
                              "or set --missing-captions empty.")  # fmt: skip
                continue
            bucket = bucket_for(picture.size, self.settings.resolution, self.settings.bucket_step)
            enlarged += picture.size[0] < bucket[0] or picture.size[1] < bucket[1]
            examples.append(self._example(picture, bucket))
        warnings = list(found.warnings)
        if enlarged:
            warnings.append(f"{enlarged} pictures are smaller than the size they are trained at and get enlarged.")
        self.examples = examples
        return Scan(examples, errors, warnings)

    def _example(self, picture: Picture, bucket: tuple[int, int]) -> Example:
        height, width = bucket
        sources = {
            "latents": Source("latents", picture.checksum, f"{height}x{width}", (picture.path, bucket, False)),
            "prompt": prompt_source(picture.caption or ""),
        }
        if self.settings.flip:
            payload = (picture.path, bucket, True)
            sources["flipped"] = Source("latents", picture.checksum, f"{height}x{width} flipped", payload)
        if self.settings.caption_dropout > 0:
            sources["empty"] = prompt_source("")
        _, corner = cover_crop(picture.size, bucket)
        return Example(str(picture.path), bucket, sources, time_ids_of(picture.size, corner, bucket))

    def sample(
        self, example: Example, load: Callable[[str], dict[str, Tensor]], draw: torch.Generator
    ) -> dict[str, Tensor]:
        flip, drop = torch.rand(2, generator=draw).tolist()
        latents = load("flipped" if self.settings.flip and flip < 0.5 else "latents")
        prompt = load("empty" if drop < self.settings.caption_dropout else "prompt")
        return {**latents, **prompt, "time_ids": example.payload}

    # ---- models

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        settings = self.settings
        add_lora(self.load_base(device, dtype), settings.layers, settings.rank, settings.alpha, self.seed)
        return self.unet.to(device)

    def picture(self, source: Source) -> Tensor:
        return load_for_bucket(*source.payload)

    # ---- training

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        scheduler = self.base.scheduler
        clean = sample_posterior(batch["mean"], batch["std"], random) * self.base.vae.config.scaling_factor
        noisy, noise, timesteps = noisy_latents(clean, random, scheduler)
        prediction = self.predict(network, noisy, timesteps, batch)
        loss = diffusion_loss(prediction, clean, noise, timesteps, scheduler, self.settings.min_snr_gamma)
        return {"diffusion": loss}

    # ---- validation and export

    def validate(self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]) -> Validation:
        settings, prompts = self.settings, self.validation_prompts()
        side = settings.resolution // settings.bucket_step * settings.bucket_step
        pictures = {}
        for text in self._shown_texts():
            check_stop()
            pictures[text] = sample_picture(
                self.base, self.unet, prompts[text], prompts[settings.negative_prompt], (side, side),
                steps or settings.validation_steps, settings.guidance_scale, seed, check_stop,
            )  # fmt: skip
        return Validation(pictures, {})

    def validation_texts(self) -> list[str]:
        return [*self._shown_texts(), self.settings.negative_prompt]

    def _shown_texts(self) -> list[str]:
        captions = dict.fromkeys(example.sources["prompt"].payload for example in self.examples)
        return list(self.settings.prompts) or list(captions)[: self.settings.validation_captions]

    def describe(self) -> dict[str, str]:
        captions = (example.sources["prompt"].payload for example in self.examples)
        tags = Counter(tag for caption in captions for tag in map(str.strip, caption.split(",")) if tag)
        sizes = Counter("{1}x{0}".format(*example.bucket) for example in self.examples)
        return {
            **self.describe_base(),
            "ss_tag_frequency": json.dumps({self.settings.data.name: tags}),
            "ss_bucket_info": json.dumps({"buckets": sizes}),
        }

    def export(self, folder: Path, name: str, weights: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        settings = self.settings
        tensors = kohya_tensors(weights, settings.alpha, DTYPES[settings.export_dtype])
        path = folder / f"{name}.safetensors"
        metadata = lora_metadata(
            tensors, title=name, facts=facts, resolution=settings.resolution, rank=settings.rank, alpha=settings.alpha,
            convolutions=settings.layers != "attention", caption_dropout=settings.caption_dropout,
            min_snr_gamma=settings.min_snr_gamma,
        )  # fmt: skip
        save_lora(path, tensors, metadata)
        return [path]
