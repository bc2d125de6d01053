"""IDetail's two training tasks (paper, section 4; notes 3, 4 and 10).

Stage 1, ``idetail-conv-in``, lets the widened first convolution learn what a clean picture beside the noisy one means.
Stage 2, ``idetail-lora``, trains a LoRA on pairs. Latents, masks and prompts are encoded once, so that a step is work
of the UNet only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..configuration import option
from ..euler import euler_schedule, noise_like
from ..training.base_model_task import BaseModelSettings, BaseModelTask, prompt_source, time_ids_of
from ..training.diffusion import noisy_latents, sample_posterior
from ..training.image_folder import bucket_for, cover_crop
from ..training.lora import add_lora, kohya_tensors, lora_metadata, save_lora
from ..training.settings import DTYPES
from ..training.task import BatchRandom, Example, Scan, Source, Validation
from .adapter import ORDER, conv_in_change, conv_in_tensors, read_adapter, split_adapter, train_conv_in
from .conditioning import ORDERS, STAGE_ONE_INPUTS, latent_mask, relight_input, stage_one_input
from .losses import LossWeights, estimate_clean, noise_loss, relight_losses
from .takes import PAIRINGS, CaptionedFolder, Take, Takes, fitted


@dataclass(frozen=True)
class RelightSettings(BaseModelSettings):
    """What both stages share: model, data, channels."""

    data: Path = option(help="data set of people in many lights, of `dataset_cli.py generate idetail` or "
                        "`generate idetail_portraits`")  # fmt: skip
    held_out: Path | None = option(None, "data set of other people, to validate on (default: the training data)")
    order: str = option(ORDERS[0], "order of the channels", choices=ORDERS, fixed=True)
    caption_dropout: float = option(0.1, "fraction of prompts left empty, so that guidance works", minimum=0,
                                    maximum=1)  # fmt: skip
    validation_pairs: int = option(4, "pairs shown in a validation", minimum=1)
    validation_steps: int = option(25, "sampling steps of validation pictures", minimum=1)
    guidance_scale: float = option(5.0, "classifier-free guidance of validation pictures", minimum=0)


@dataclass(frozen=True)
class ConvInSettings(RelightSettings):
    """Stage 1: the first convolution learns to see the photo."""

    data: Path = option(help="folder of pictures with captions, or a data set as for stage 2")
    stage_one_input: str = option(STAGE_ONE_INPUTS[0], "what the nine channels hold; the paper's words taken literally "
                                  "leave five of them untrained", choices=STAGE_ONE_INPUTS, fixed=True)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RelightLoraSettings(RelightSettings):
    """Stage 2: the LoRA learns to relight."""

    conv_in: Path = option(help="file that idetail-conv-in exported", fixed=True)
    train_conv_in: bool = option(False, "train the first convolution on too; the paper freezes it", fixed=True)
    layers: str = option("idetail", "what gets an adapter", choices=("idetail",), fixed=True)
    rank: int = option(32, "rank of the adapters", minimum=1, fixed=True)
    alpha: float | None = option(None, "the adapter adds alpha / rank times its output (default: the rank)",
                                 minimum=0, fixed=True)  # fmt: skip
    pairing: str = option(PAIRINGS[0], "generated inputs with generated targets, or the photo with them: the baseline "
                          "that fails", choices=PAIRINGS, fixed=True)  # fmt: skip
    people: int | None = option(None, "train on the first so many people of the data (default: all)", minimum=1)
    identity_weight: float = option(LossWeights.identity, "alpha 1: cosine with the input's foreground", minimum=0)
    foreground_weight: float = option(LossWeights.foreground, "alpha 2: smooth L1 in the foreground", minimum=0)
    background_weight: float = option(LossWeights.background, "alpha 3: L1 in the background", minimum=0)
    noise_weight: float = option(LossWeights.noise, "alpha 4: squared error of the noise", minimum=0)
    latest_timestep: int = option(999, "noise levels above this one are not trained", minimum=0, maximum=999)
    signal_weighting: bool = option(False, "weigh the three losses of the clean estimate by the share of signal, which "
                                    "tames the noisiest levels; the paper does not say")  # fmt: skip
    export_dtype: str = option("fp16", "numbers in the exported files", choices=tuple(DTYPES))

    @property
    def weights(self) -> LossWeights:
        """The paper's alphas."""
        return LossWeights(self.identity_weight, self.foreground_weight, self.background_weight, self.noise_weight)


class RelightTask(BaseModelTask):
    """What both stages share; see ``training.task.Task`` for what each method is for."""

    def scan(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Scan:
        self.check_model_path()
        self.takes, held_out = self.open(self.settings.data), self.settings.held_out
        errors = self.takes.read(progress)
        self.held_out = self.takes
        if held_out is not None:
            self.held_out = self.open(held_out)
            errors += self.held_out.read()
        self._shared: dict[tuple[int, str], Source] = {}
        self.shown = spread(self.pairs(self.held_out), self.settings.validation_pairs)
        if not self.shown:
            return Scan([], [*errors, f"{self.held_out.folder} has nothing to show in a validation."], [])
        examples, wrong = self.examples_of(self.takes)
        return Scan(examples, errors + wrong, [])

    def open(self, folder: Path) -> Takes | CaptionedFolder:
        """The takes of a folder, not read yet."""
        return Takes(folder)

    def pairs(self, takes: Takes | CaptionedFolder) -> list[tuple[Take, Take]]:
        """(input, target), all there are."""
        return takes.pairs()

    def examples_of(self, takes: Takes | CaptionedFolder) -> tuple[list[Example], list[str]]:
        """What is trained on, and what is wrong with it."""
        raise NotImplementedError

    def bucket(self, take: Take) -> tuple[int, int]:
        """The size ``(H, W)`` a take is trained at."""
        return bucket_for(take.size, self.settings.resolution, self.settings.bucket_step)

    def source(self, takes: Takes | CaptionedFolder, take: Take, kind: str) -> Source:
        """The take's latents or mask; one object however many pairs use it."""
        if (take.place, kind) not in self._shared:
            height, width = self.bucket(take)
            content = f"{takes.fingerprint} {take.key}"
            self._shared[take.place, kind] = Source(kind, content, f"{height}x{width}", (takes, take))
        return self._shared[take.place, kind]

    def example(self, name: str, take: Take, sources: dict[str, Source]) -> Example:
        """An example of the size of ``take``, with a prompt that may be dropped."""
        bucket = self.bucket(take)
        _, corner = cover_crop(take.size, bucket)
        texts = {"prompt": prompt_source(take.caption), "empty": prompt_source("")}
        return Example(name, bucket, {**sources, **texts}, time_ids_of(take.size, corner, bucket))

    def prompt_of(self, load: Callable[[str], dict[str, Tensor]], draw: torch.Generator) -> dict[str, Tensor]:
        """The prompt's encoding, or now and then the empty one's."""
        dropped = torch.rand(1, generator=draw) < self.settings.caption_dropout
        return load("empty" if dropped else "prompt")

    # ---- models

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        unet = self.load_base(device, dtype)
        # A mask is cut and shrunk, which no weights decide.
        self._hashes["mask"] = "mask"
        self.prepare(unet)
        return unet.to(device)

    def prepare(self, unet: nn.Module) -> None:
        """Widen the frozen UNet, and make trainable what this stage trains."""
        raise NotImplementedError

    def picture(self, source: Source) -> Tensor:
        takes, take = source.payload
        return fitted(takes.files(take)["png"], self.bucket(take))[None]

    @torch.no_grad()
    def encode(self, source: Source) -> dict[str, Tensor]:
        if source.kind != "mask":
            return super().encode(source)
        takes, take = source.payload
        height, width = self.bucket(take)
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
        """Input, result and target side by side ``[3, H, 3 W]``, and the result's error (RMSE) in the foreground."""
        from .pipeline import RelightPipeline

        bucket, files = self.bucket(given), self.held_out.files(given)
        picture, mask = (fitted(files[name], bucket)[None].to(self.device) for name in ("png", "mask.png"))
        target = fitted(self.held_out.files(wanted)["png"], bucket)[None].to(self.device)
        pipeline = RelightPipeline(self.base.vae, None, None, self.unet, euler(self.base.scheduler),
                                   order=self.settings.order)  # fmt: skip
        prompts = self.validation_prompts()
        embedded = tuple(
            {name: tensor.to(self.device, self.unet.dtype) for name, tensor in prompts[text].items()}
            for text in ("", wanted.caption)
        )
        with self.encoders("latents"):
            source = pipeline.encode(picture)
            sigmas, timesteps = euler_schedule(pipeline.scheduler, steps, 1.0, self.device)
            start = noise_like(source, torch.Generator().manual_seed(seed)) * (sigmas[0] ** 2 + 1).sqrt()
            condition = latent_mask(mask, source.shape[-2:]), source
            latent = pipeline.sample(start, sigmas, timesteps, embedded, condition, self.settings.guidance_scale,
                                     lambda done, total: check_stop())  # fmt: skip
            made = pipeline.decode(latent)
        error = ((made - target) * mask).square().sum() / (3 * mask.sum().clamp(min=1))
        return torch.cat([picture, made, target], 3)[0].cpu(), error.sqrt().item()

    def describe(self) -> dict[str, str]:
        return {**self.describe_base(), "data": f"{len(self.takes.list)} takes of {self.takes.folder.name}"}

    def save(self, path: Path, tensors: dict[str, Tensor], facts: dict[str, str], rank: int, alpha: float) -> Path:
        """Write a file with all that LoRA managers, ComfyUI and our own loader read of it."""
        settings = self.settings
        metadata = lora_metadata(
            tensors, title=path.stem, facts=facts, resolution=settings.resolution, rank=rank, alpha=alpha,
            convolutions=True, caption_dropout=settings.caption_dropout,
        )  # fmt: skip
        origin = {name: facts[name] for name in ("data", "date")}
        save_lora(path, tensors, {**metadata, **origin, ORDER: settings.order})
        return path


class TrainConvIn(RelightTask):
    """Stage 1; input and target are one picture, and only the noise counts (paper, section 4.1)."""

    name = "idetail-conv-in"
    Settings = ConvInSettings
    summary = "IDetail, stage 1: a first convolution that sees the photo, for any SD1.5, SD2.1, SDXL or KOALA model"

    def open(self, folder: Path) -> Takes | CaptionedFolder:
        return Takes(folder) if (folder / "dataset.json").exists() else CaptionedFolder(folder)

    def pairs(self, takes: Takes | CaptionedFolder) -> list[tuple[Take, Take]]:
        return [(take, take) for take in takes.list]

    def examples_of(self, takes: Takes | CaptionedFolder) -> tuple[list[Example], list[str]]:
        return [
            self.example(take.key, take, {"source": self.source(takes, take, "latents")}) for take in takes.list
        ], []

    def prepare(self, unet: nn.Module) -> None:
        literal = self.settings.stage_one_input == "literal"
        train_conv_in(unet, self.settings.order, "source" if literal else "noisy")

    def sample(
        self, example: Example, load: Callable[[str], dict[str, Tensor]], draw: torch.Generator
    ) -> dict[str, Tensor]:
        return {**load("source"), **self.prompt_of(load, draw), "time_ids": example.payload}

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
            if self.bucket(given) != self.bucket(wanted):
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
        if order != settings.order:
            raise ValueError(f"--conv-in {settings.conv_in} was trained with the channels {order!r}: set --order so.")
        train_conv_in(unet, order, change=conv_in_change(tensors, unet.conv_in))
        add_lora(unet, settings.layers, settings.rank, self.alpha, self.seed)
        for parameter in (unet.conv_in.change, unet.conv_in.bias_change):
            parameter.requires_grad_(settings.train_conv_in)

    @property
    def alpha(self) -> float:
        """The adapter adds alpha / rank times its output."""
        return float(self.settings.rank if self.settings.alpha is None else self.settings.alpha)

    def sample(
        self, example: Example, load: Callable[[str], dict[str, Tensor]], draw: torch.Generator
    ) -> dict[str, Tensor]:
        latents = {f"{name}_{part}": tensor for name in ("source", "target") for part, tensor in load(name).items()}
        return {**latents, **load("mask"), **self.prompt_of(load, draw), "time_ids": example.payload}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        scheduler, settings = self.base.scheduler, self.settings
        scale = self.base.vae.config.scaling_factor
        # The input as it will be given: the mode of its posterior, without the noise of a draw.
        source = batch["source_mean"] * scale
        target = sample_posterior(batch["target_mean"], batch["target_std"], random) * scale
        noise = random.normal("noise", tuple(target.shape[1:])).to(target.device)
        timesteps = random.integers("timestep", 0, settings.latest_timestep + 1).to(target.device)
        noisy = scheduler.add_noise(target, noise, timesteps)
        given = relight_input(noisy, batch["mask"], source, settings.order)
        estimate = noise_of(self.predict(network, given, timesteps, batch), noisy, timesteps, scheduler)
        signal = scheduler.alphas_cumprod.to(target.device)[timesteps]
        weigh = signal if settings.signal_weighting else None
        clean = estimate_clean(noisy, estimate, signal)
        return relight_losses(estimate, noise, clean, source, target, batch["mask"], settings.weights, weigh)

    def export(self, folder: Path, name: str, weights: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        """One file for any LoRA loader, and the same in two for separate strengths."""
        adapters = {key: tensor for key, tensor in weights.items() if not key.startswith("conv_in.")}
        lora = kohya_tensors(adapters, self.alpha, DTYPES[self.settings.export_dtype])
        if "conv_in.change" in weights:
            first = conv_in_tensors(weights["conv_in.change"].cpu(), weights["conv_in.bias_change"].cpu())
        else:
            first, _ = split_adapter(read_adapter(self.settings.conv_in)[0])
        files = {name: {**first, **lora}, f"{name}_conv_in": first, f"{name}_lora": lora}
        return [
            self.save(folder / f"{title}.safetensors", tensors, facts, self.settings.rank, self.alpha)
            for title, tensors in files.items()
        ]


def noise_of(output: Tensor, noisy: Tensor, timesteps: Tensor, scheduler) -> Tensor:
    """The noise that a network's output means, in float32: the output itself, or of a velocity sqrt(a) v + s x."""
    if scheduler.config.prediction_type == "epsilon":
        return output.float()
    signal = scheduler.alphas_cumprod.to(output.device)[timesteps].reshape(-1, 1, 1, 1)
    return signal.sqrt() * output.float() + (1 - signal).sqrt() * noisy.float()


def euler(scheduler):
    """The Euler scheduler of diffusers on the noise levels of a training scheduler."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler.from_config(scheduler.config)


def spread(items: list, count: int) -> list:
    """``count`` of the items (all, where there are fewer), evenly from the whole list."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]
