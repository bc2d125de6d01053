"""LoRA fine-tune of a Stable-Diffusion-family UNet on a folder of pictures with captions."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..configuration import option
from ..weights import load_base_model, model_hash
from .diffusion import diffusion_loss, noisy_latents, sample_posterior
from .image_folder import Picture, bucket_for, cover_crop, load_for_bucket, scan_folder, text_checksum
from .lora import LAYERS, add_lora, kohya_tensors, lora_metadata, save_lora
from .sampling import sample_picture
from .settings import DTYPES
from .task import BatchRandom, Example, Scan, Source, Validation


@dataclass(frozen=True)
class LoraSettings:
    """The LoRA fine-tune: model, data, adapter, validation."""

    model: Path = option(help="SD1.x, SD2.x, SDXL or KOALA: a diffusers folder or a .safetensors file", fixed=True)
    data: Path = option(help="folder of pictures, each with its caption in NAME.txt, or in metadata.jsonl")
    tokenizer: Path | None = option(None, "folder with vocab.json and merges.txt, for single-file models "
                                    "(default: that of a ComfyUI, where one is found)")  # fmt: skip
    prediction_type: str | None = option(None, "where the model does not say it",
                                         choices=("epsilon", "v_prediction"), fixed=True)  # fmt: skip
    resolution: int = option(512, "pictures are trained at about this squared pixels", minimum=8, fixed=True)
    bucket_step: int = option(64, "sides are multiples of this", minimum=8, fixed=True)
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


# Words that different vocabularies and merges split differently.
PROBE = "a photograph of Zoë's great-grandmother, 85mm, f/1.4; golden hour"


class LoraFineTune:
    """The task; see ``task.Task`` for what each method is for."""

    name = "lora"
    Settings = LoraSettings
    summary = "LoRA fine-tune of any SD1.5, SD2.1, SDXL or KOALA model on a folder of captioned pictures"

    def __init__(self, settings: LoraSettings, seed: int = 0):
        self.settings, self.seed = settings, seed
        self._prompts: dict[str, Tensor] | None = None

    # ---- data

    def scan(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Scan:
        if not self.settings.model.exists():
            raise ValueError(f"--model {self.settings.model}: no such file or folder.")
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
            "prompt": _prompt_source(picture.caption or ""),
        }
        if self.settings.flip:
            payload = (picture.path, bucket, True)
            sources["flipped"] = Source("latents", picture.checksum, f"{height}x{width} flipped", payload)
        if self.settings.caption_dropout > 0:
            sources["empty"] = _prompt_source("")
        # SDXL is told how its picture was cut: original size, top left corner, size (Podell et al. 2023, section 2.2).
        _, corner = cover_crop(picture.size, bucket)
        return Example(str(picture.path), bucket, sources, torch.tensor([*picture.size, *corner, *bucket]))

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
        options = {"tokenizer": settings.tokenizer, "prediction_type": settings.prediction_type}
        # The VAE encodes in float32: SDXL's makes NaN in fp16.
        self.base = load_base_model(settings.model, torch.float32, parts=("vae", "text"), **options)
        self.unet = load_base_model(settings.model, dtype, parts=("unet",), **options).unet
        for module in (self.base.vae, *self.base.text_encoders):
            module.requires_grad_(False)
        self._check_model()
        # Before its first use, which changes the state of some tokenizers.
        self._hashes = {"latents": model_hash(self.base.vae), "prompt": self._text_hash()}
        add_lora(self.unet, settings.layers, settings.rank, settings.alpha, self.seed)
        self.device = device
        return self.unet.to(device)

    def _check_model(self) -> None:
        channels, cell = self.unet.config.in_channels, 2 ** (len(self.base.vae.config.block_out_channels) - 1)
        if channels != self.base.vae.config.latent_channels:
            raise ValueError(f"--model {self.settings.model} has a UNet of {channels} input channels, an inpainting or "
                             "edit model: give the text-to-image model it was made from.")  # fmt: skip
        if self.settings.bucket_step % cell:
            raise ValueError(f"--bucket-step is {self.settings.bucket_step}: this model needs a multiple of {cell}.")

    def _text_hash(self) -> str:
        words = [[sorted(tokenizer.get_vocab().items()), tokenizer(PROBE).input_ids, str(tokenizer.special_tokens_map)]
                 for tokenizer in self.base.tokenizers]  # fmt: skip
        return " ".join([*map(model_hash, self.base.text_encoders), text_checksum(json.dumps(words))])

    @contextmanager
    def encoders(self, kind: str) -> Iterator[None]:
        modules = {"latents": [self.base.vae], "prompt": self.base.text_encoders}[kind]
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module in modules:
                module.to("cpu")

    def encoder_hash(self, kind: str) -> str:
        return self._hashes[kind]

    @torch.no_grad()
    def encode(self, source: Source) -> dict[str, Tensor]:
        if source.kind == "prompt":
            return {name: tensor[0].cpu().half() for name, tensor in self.base.encode_prompts([source.payload]).items()}
        path, bucket, flip = source.payload
        image = load_for_bucket(path, bucket, flip).to(self.device)
        posterior = self.base.vae.encode(image * 2 - 1).latent_dist
        return {"mean": posterior.mean[0].cpu(), "std": posterior.std[0].cpu()}

    def release_encoders(self) -> None:
        self._validation_prompts()
        self.base.text_encoders = []

    # ---- training

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        scheduler = self.base.scheduler
        clean = sample_posterior(batch["mean"], batch["std"], random) * self.base.vae.config.scaling_factor
        noisy, noise, timesteps = noisy_latents(clean, random, scheduler)
        prediction = self._predict(network, noisy, timesteps, batch)
        loss = diffusion_loss(prediction, clean, noise, timesteps, scheduler, self.settings.min_snr_gamma)
        return {"diffusion": loss}

    def _predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, batch: dict[str, Tensor]) -> Tensor:
        dtype = self.unet.dtype
        added = None
        if "pooled" in batch:
            added = {"text_embeds": batch["pooled"].to(dtype), "time_ids": batch["time_ids"]}
        return network(noisy.to(dtype), timesteps, batch["prompt"].to(dtype), added_cond_kwargs=added,
                       return_dict=False)[0]  # fmt: skip

    # ---- validation and export

    def validate(self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]) -> Validation:
        settings, prompts = self.settings, self._validation_prompts()
        side = settings.resolution // settings.bucket_step * settings.bucket_step
        pictures = {}
        for text in self._validation_texts():
            check_stop()
            pictures[text] = sample_picture(
                self.base, self.unet, prompts[text], prompts[settings.negative_prompt], (side, side),
                steps or settings.validation_steps, settings.guidance_scale, seed, check_stop,
            )  # fmt: skip
        return Validation(pictures, {})

    def _validation_texts(self) -> list[str]:
        captions = dict.fromkeys(example.sources["prompt"].payload for example in self.examples)
        return list(self.settings.prompts) or list(captions)[: self.settings.validation_captions]

    @torch.no_grad()
    def _validation_prompts(self) -> dict[str, dict[str, Tensor]]:
        if self._prompts is None:
            texts = dict.fromkeys([*self._validation_texts(), self.settings.negative_prompt])
            with self.encoders("prompt"):
                self._prompts = {text: self.base.encode_prompts([text]) for text in texts}
        return self._prompts

    def describe(self) -> dict[str, str]:
        captions = (example.sources["prompt"].payload for example in self.examples)
        tags = Counter(tag for caption in captions for tag in map(str.strip, caption.split(",")) if tag)
        sizes = Counter("{1}x{0}".format(*example.bucket) for example in self.examples)
        return {
            "family": self.base.family,
            "architecture": self.base.architecture,
            "base": self.base.name,
            "licence": self.base.licence or "not stated there",
            "prediction_type": self.base.prediction_type,
            "ss_tag_frequency": json.dumps({self.settings.data.name: tags}),
            "ss_bucket_info": json.dumps({"buckets": sizes}),
        }

    def export(self, folder: Path, name: str, weights: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        settings = self.settings
        tensors = kohya_tensors(weights, settings.alpha, DTYPES[settings.export_dtype])
        path = folder / f"{name}.safetensors"
        save_lora(path, tensors, lora_metadata(tensors, settings, name, facts))
        return [path]


def _prompt_source(text: str) -> Source:
    return Source("prompt", text_checksum(text), "", text)
