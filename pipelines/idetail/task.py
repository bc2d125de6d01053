"""IDetail's two training tasks (paper, section 4; notes 3, 4 and 10).

Stage 1, ``idetail-conv-in``, lets the widened first convolution learn what a clean picture beside the noisy one means.
Stage 2, ``idetail-lora``, trains a LoRA on pairs. Latents, masks and prompts are encoded once, so that a step is work
of the UNet only.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ..euler import euler_schedule, noise_like
from ..files import sha256_of_file
from ..training.base_model_task import BaseModelTask, prompt_source, time_ids_of
from ..training.diffusion import noisy_latents, sample_posterior
from ..training.export import check_same_file
from ..training.image_folder import bucket_for, cover_crop, text_checksum
from ..training.lora import add_lora, kohya_tensors, lora_metadata, save_lora
from ..training.settings import DTYPES
from ..training.task import BatchRandom, Example, Scan, Source, Validation
from ..weights.prompts import prompt_tokens
from ..weights.word_vectors import apart, save_word
from .adapter import ORDER, conv_in_change, conv_in_tensors, read_adapter, split_adapter, train_conv_in
from .conditioning import ORDERS, STAGE_ONE_INPUTS, latent_mask, relight_input, stage_one_input
from .losses import clean_of, noise_loss, noise_of, relight_losses
from .placeholder import UNetWithWord, trained_vectors, unet_weights
from .prompts import PLACEHOLDER
from .settings import ConvInSettings, RelightLoraSettings
from .takes import CaptionedFolder, Take, Takes, fitted


class RelightTask(BaseModelTask):
    """What both stages share; see ``training.task.Task`` for what each method is for."""

    def scan(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Scan:
        self.check_model_path()
        self.takes, held_out = self.open(self.settings.data), self.settings.held_out
        errors, warnings = self.takes.read(progress)
        self.held_out = self.takes
        if held_out is not None:
            self.held_out = self.open(held_out)
            more = self.held_out.read()
            errors, warnings = errors + more[0], warnings + more[1]
        self._shared: dict[tuple, Source] = {}
        self.shown = spread(self.pairs(self.held_out), self.settings.validation_pairs)
        if not self.shown:
            return Scan([], [*errors, f"{self.held_out.folder} has nothing to show in a validation."], warnings)
        examples, wrong = self.examples_of(self.takes)
        small = sum(any(side < wanted for side, wanted in zip(take.size, self.bucket(take.size), strict=True))
                    for take in self.takes.list)  # fmt: skip
        if small:
            warnings.append(f"{small} pictures are smaller than the size they are trained at and get enlarged.")
        return Scan(examples, errors + wrong, warnings)

    def open(self, folder: Path) -> Takes | CaptionedFolder:
        """The takes of a folder, not read yet."""
        return Takes(folder, self.settings.partial)

    def pairs(self, takes: Takes | CaptionedFolder) -> list[tuple[Take, Take]]:
        """(input, target), all there are."""
        return takes.pairs()

    def examples_of(self, takes: Takes | CaptionedFolder) -> tuple[list[Example], list[str]]:
        """What is trained on, and what is wrong with it."""
        raise NotImplementedError

    def bucket(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size ``(H, W)`` that a picture of ``size`` is trained at."""
        return cached_bucket(size, self.settings.resolution, self.settings.bucket_step)

    def source(self, takes: Takes | CaptionedFolder, take: Take, kind: str) -> Source:
        """The take's latents or mask; one object however many pairs use it."""
        key = (id(takes), take.place, kind)
        if key not in self._shared:
            height, width = self.bucket(take.size)
            self._shared[key] = Source(kind, f"{takes.fingerprint} {take.key}", f"{height}x{width}", (takes, take))
        return self._shared[key]

    def example(self, name: str, take: Take, sources: dict[str, Source]) -> Example:
        """An example of the size of ``take``, with a prompt that may be dropped."""
        texts = {"prompt": self.text_source(take.caption), "empty": self.text_source("")}
        return Example(name, self.bucket(take.size), {**sources, **texts}, take.size)

    def text_source(self, text: str) -> Source:
        """The source of a prompt; one object however many pairs use it."""
        return shared_prompt(text)

    def time_ids(self, example: Example) -> Tensor:
        """What SDXL is told of the target."""
        _, corner = cover_crop(example.payload, example.bucket)
        return time_ids_of(example.payload, corner, example.bucket)

    def prompt_of(self, load: Callable[[str], dict[str, Tensor]], draw: torch.Generator) -> dict[str, Tensor]:
        """The prompt's encoding, or now and then the empty one's."""
        dropped = torch.rand(1, generator=draw) < self.settings.caption_dropout
        return load("empty" if dropped else "prompt")

    # ---- models

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        unet = self.load_base(device, dtype)
        # A mask is cut and shrunk to the cells, which no weights decide.
        self._hashes["mask"] = f"mask {self.cell}"
        self.prepare(unet)
        return unet.to(device)

    def prepare(self, unet: nn.Module) -> None:
        """Widen the frozen UNet, and make trainable what this stage trains."""
        raise NotImplementedError

    def picture(self, source: Source) -> Tensor:
        takes, take = source.payload
        return fitted(takes.files(take)["png"], self.bucket(take.size))[None]

    @torch.no_grad()
    def encode(self, source: Source) -> dict[str, Tensor]:
        if source.kind != "mask":
            return super().encode(source)
        takes, take = source.payload
        height, width = self.bucket(take.size)
        mask = fitted(takes.files(take)["mask.png"], (height, width))[None]
        return {"mask": latent_mask(mask, (height // self.cell, width // self.cell))[0]}

    def validation_texts(self) -> list[str]:
        return ["", *(target.caption for _, target in self.shown)]

    # ---- validation and export

    @torch.no_grad()
    def validate(self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]) -> Validation:
        images, errors = {}, []
        for number, (given, wanted) in enumerate(self.shown if steps is None else self.shown[:1]):
            check_stop()
            made, error = self.relit(given, wanted, steps or self.settings.validation_steps, seed, check_stop)
            images[f"{number}: {wanted.caption}"] = made
            errors.append(error)
        return Validation(images, {"foreground_error": sum(errors) / len(errors)})

    def relit(self, given: Take, wanted: Take, steps: int, seed: int, check_stop) -> tuple[Tensor, float]:
        """Input, result and target side by side ``[3, H, 3 W]``, and the result's error (RMSE) in the foreground.

        Where the mask is empty, as in stage 1, the error counts everywhere.
        """
        from .pipeline import RelightPipeline

        bucket, files = self.bucket(given.size), self.held_out.files(given)
        picture, mask = (fitted(files[name], bucket)[None].to(self.device) for name in ("png", "mask.png"))
        target = fitted(self.held_out.files(wanted)["png"], bucket)[None].to(self.device)
        order, shows_mask, shows_photo = self.validation_layout()
        pipeline = RelightPipeline(self.base.vae, None, None, self.unet, euler(self.base.scheduler), order=order)
        prompts = self.validation_prompts()
        embedded = tuple(
            {name: tensor.to(self.device, self.unet.dtype) for name, tensor in prompts[text].items()}
            for text in ("", wanted.caption)
        )
        with self.encoders("latents"):
            source = pipeline.encode(picture)
            sigmas, timesteps = euler_schedule(pipeline.scheduler, steps, 1.0, self.device)
            start = noise_like(source, torch.Generator().manual_seed(seed)) * (sigmas[0] ** 2 + 1).sqrt()
            condition = latent_mask(mask, source.shape[-2:]) * shows_mask, source * shows_photo
            latent = pipeline.sample(start, sigmas, timesteps, embedded, condition, self.settings.guidance_scale,
                                     lambda done, total: check_stop())  # fmt: skip
            made = pipeline.decode(latent)
        counted = mask if mask.any() else torch.ones_like(mask)
        error = ((made - target).square() * counted).sum() / (3 * counted.sum())
        return torch.cat([picture, made, target], 3)[0].cpu(), error.sqrt().item()

    def validation_layout(self) -> tuple[str, bool, bool]:
        """(order of the channels, whether the mask is shown, whether the photo is) in validation."""
        return self.settings.order, True, True

    def describe(self) -> dict[str, str]:
        base = self.describe_base()
        data = f"{len(self.takes.list)} takes of {self.takes.folder.name}{self.takes.made_by()}"
        licences = " and ".join(sorted(self.takes.licences))
        return {**base, "data": data, **({"data_licence": licences} if licences else {})}

    def save(self, path: Path, tensors: dict[str, Tensor], facts: dict[str, str], rank: int, alpha: float) -> Path:
        """Write a file with all that LoRA managers, ComfyUI and our own loader read of it."""
        settings = self.settings
        metadata = lora_metadata(
            tensors, title=path.stem, facts=facts, resolution=settings.resolution, rank=rank, alpha=alpha,
            convolutions=True, caption_dropout=settings.caption_dropout,
        )  # fmt: skip
        origin = {name: facts[name] for name in ("data", "date", "data_licence") if name in facts}
        if "data_licence" in facts:
            metadata["modelspec.license"] += f"; trained on data under: {facts['data_licence']}"
        save_lora(path, tensors, {**metadata, **origin, ORDER: settings.order})
        return path


class TrainConvIn(RelightTask):
    """Stage 1; input and target are one picture, and only the noise counts (paper, section 4.1)."""

    name = "idetail-conv-in"
    Settings = ConvInSettings
    summary = "IDetail, stage 1: a first convolution that sees the photo, for any SD1.5, SD2.1, SDXL or KOALA model"

    def open(self, folder: Path) -> Takes | CaptionedFolder:
        return super().open(folder) if (folder / "dataset.json").exists() else CaptionedFolder(folder)

    def pairs(self, takes: Takes | CaptionedFolder) -> list[tuple[Take, Take]]:
        return [(take, take) for take in takes.list]

    def examples_of(self, takes: Takes | CaptionedFolder) -> tuple[list[Example], list[str]]:
        return [
            self.example(take.key, take, {"source": self.source(takes, take, "latents")}) for take in takes.list
        ], []

    def prepare(self, unet: nn.Module) -> None:
        literal = self.settings.stage_one_input == "literal"
        train_conv_in(unet, self.settings.order, "source" if literal else "noisy")

    def validation_layout(self) -> tuple[str, bool, bool]:
        if self.settings.stage_one_input == STAGE_ONE_INPUTS[0]:
            return self.settings.order, False, True
        # Literally, the noisy latent stands where stage 2 has the source, and nothing else is shown.
        return next(order for order in ORDERS if order != self.settings.order), False, False

    def sample(
        self, example: Example, load: Callable[[str], dict[str, Tensor]], draw: torch.Generator
    ) -> dict[str, Tensor]:
        return {**load("source"), **self.prompt_of(load, draw), "time_ids": self.time_ids(example)}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        scheduler, settings = self.base.scheduler, self.settings
        clean = sample_posterior(batch["mean"], batch["std"], random) * self.base.vae.config.scaling_factor
        noisy, noise, timesteps = noisy_latents(clean, random, scheduler)
        given = stage_one_input(noisy, clean, settings.order, settings.stage_one_input)
        output = self.predict(network, given, timesteps, batch)
        return {"noise": noise_loss(noise_of(output, noisy, timesteps, scheduler), noise)}

    def export(self, folder: Path, name: str, weights: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        tensors = conv_in_tensors(weights["conv_in.change"].cpu(), weights["conv_in.bias_change"].cpu())
        rank = len(tensors["lora_unet_conv_in.lora_down.weight"])
        return [self.save(folder / f"{name}.safetensors", tensors, facts, rank, rank)]


class TrainRelight(RelightTask):
    """Stage 2."""

    name = "idetail-lora"
    Settings = RelightLoraSettings
    summary = "IDetail, stage 2: a LoRA that relights portraits from a prompt and keeps the person"

    def examples_of(self, takes: Takes | CaptionedFolder) -> tuple[list[Example], list[str]]:
        examples, errors = [], []
        for given, wanted in takes.pairs(self.settings.pairing, self.settings.people):
            if self.bucket(given.size) != self.bucket(wanted.size):
                errors.append(f"{given.key} and {wanted.key} of {takes.folder} differ in shape: {given.size} and "
                              f"{wanted.size}.")  # fmt: skip
                continue
            sources = {"source": self.source(takes, given, "latents"), "target": self.source(takes, wanted, "latents"),
                       "mask": self.source(takes, given, "mask")}  # fmt: skip
            examples.append(self.example(f"{given.key} -> {wanted.key}", wanted, sources))
        return examples, errors

    def prepare(self, unet: nn.Module) -> None:
        settings = self.settings
        tensors, order = read_adapter(settings.conv_in)
        self.conv_in_checksum = sha256_of_file(settings.conv_in)
        if order != settings.order:
            raise ValueError(f"--conv-in {settings.conv_in} was trained with the channels {order!r}: set --order so.")
        train_conv_in(unet, order, change=conv_in_change(tensors, unet.conv_in))
        add_lora(unet, settings.layers, settings.rank, self.alpha, self.seed)
        for parameter in (unet.conv_in.change, unet.conv_in.bias_change):
            parameter.requires_grad_(settings.train_conv_in)

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        unet = super().load(device, dtype)
        if not self.settings.learn_placeholder:
            return unet
        self._hashes["tokens"], self.dtype = self._hashes["prompt"], dtype
        self.speaking = UNetWithWord(unet, self.base.text_encoders, self.base.tokenizers).to(device)
        return self.speaking

    def text_source(self, text: str) -> Source:
        return shared_tokens(text) if self.settings.learn_placeholder else shared_prompt(text)

    @torch.no_grad()
    def encode(self, source: Source) -> dict[str, Tensor]:
        if source.kind != "tokens":
            return super().encode(source)
        tokens = prompt_tokens(self.base.text_encoders, self.base.tokenizers, [apart(PLACEHOLDER, source.payload)])
        return {f"tokens_{number}": numbers[0].cpu() for number, numbers in enumerate(tokens)}

    def relit(self, *given) -> tuple[Tensor, float]:
        if not self.settings.learn_placeholder:
            return super().relit(*given)
        # The trainer prepares the whole network for mixed precision, not the UNet in it.
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return super().relit(*given)

    def validation_prompts(self) -> dict[str, dict[str, Tensor]]:
        if not self.settings.learn_placeholder:
            return super().validation_prompts()
        return {text: self.speaking.encode(text) for text in dict.fromkeys(self.validation_texts())}

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if not self.settings.learn_placeholder:
            return super().predict(network, noisy, timesteps, batch)
        tokens = [batch[name] for name in sorted(batch) if name.startswith("tokens_")]
        return network(noisy.to(self.unet.dtype), timesteps, tokens, batch["time_ids"])

    @property
    def alpha(self) -> float:
        """The adapter adds alpha / rank times its output."""
        return float(self.settings.rank if self.settings.alpha is None else self.settings.alpha)

    def sample(
        self, example: Example, load: Callable[[str], dict[str, Tensor]], draw: torch.Generator
    ) -> dict[str, Tensor]:
        latents = {f"{name}_{part}": tensor for name in ("source", "target") for part, tensor in load(name).items()}
        return {**latents, **load("mask"), **self.prompt_of(load, draw), "time_ids": self.time_ids(example)}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        scheduler, settings = self.base.scheduler, self.settings
        scale = self.base.vae.config.scaling_factor
        # The input as it will be given: the mode of its posterior, without the noise of a draw.
        source = batch["source_mean"] * scale
        target = sample_posterior(batch["target_mean"], batch["target_std"], random) * scale
        noisy, noise, timesteps = noisy_latents(target, random, scheduler, settings.latest_timestep)
        given = relight_input(noisy, batch["mask"], source, settings.order)
        output = self.predict(network, given, timesteps, batch)
        estimate = noise_of(output, noisy, timesteps, scheduler)
        signal = scheduler.alphas_cumprod.to(target.device)[timesteps]
        weigh = signal if settings.signal_weighting else None
        clean = clean_of(output, noisy, timesteps, scheduler)
        return relight_losses(estimate, noise, clean, source, target, batch["mask"], settings.weights, weigh)

    def export(self, folder: Path, name: str, weights: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        """One file for any LoRA loader, the same in two for separate strengths, and a learnt placeholder's."""
        vectors, weights = trained_vectors(weights), unet_weights(weights)
        adapters = {key: tensor for key, tensor in weights.items() if not key.startswith("conv_in.")}
        lora = kohya_tensors(adapters, self.alpha, DTYPES[self.settings.export_dtype])
        if "conv_in.change" in weights:
            first = conv_in_tensors(weights["conv_in.change"].cpu(), weights["conv_in.bias_change"].cpu())
        else:
            first = self.frozen_conv_in(facts)
        files = {name: {**first, **lora}, f"{name}_conv_in": first, f"{name}_lora": lora}
        made = [
            self.save(folder / f"{title}.safetensors", tensors, facts, self.settings.rank, self.alpha)
            for title, tensors in files.items()
        ]
        if vectors:
            made.append(folder / f"{name}_placeholder.safetensors")
            save_word(made[-1], facts["family"], vectors, facts)
        return made

    def describe(self) -> dict[str, str]:
        return {**super().describe(), "conv_in_sha256": self.conv_in_checksum}

    def frozen_conv_in(self, facts: dict[str, str]) -> dict[str, Tensor]:
        """The first convolution that was trained with. Raises ``ValueError`` where the file is another one now."""
        path = self.settings.conv_in
        tensors, _ = read_adapter(path)
        check_same_file(path, facts.get("conv_in_sha256", ""), "this LoRA")
        return split_adapter(tensors)[0]


def euler(scheduler):
    """The Euler scheduler of diffusers on the noise levels of a training scheduler."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler.from_config(scheduler.config)


cached_bucket = cache(bucket_for)
shared_prompt = cache(prompt_source)


@cache
def shared_tokens(text: str) -> Source:
    """The source of a prompt's token numbers, for text encoders that take part in training."""
    return Source("tokens", text_checksum(text), "", text)


def spread(items: list, count: int) -> list:
    """``count`` of the items (all, where there are fewer), evenly from the whole list."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]
