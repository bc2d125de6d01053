"""Training the embedded autoencoder (VAE) on crops of portraits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..configuration import option
from ..files import sha256_of_file
from ..training.task import BatchRandom, Example, Validation
from ..weights.diffusers_folder import load_component
from .architectures import AUTOENCODER, autoencoder, build
from .components import DIFFUSERS, begun_with, plain_config, save_component
from .portrait_set import SIDE, DataSettings, PortraitTask, face_weights, without_prefix

SHOWN = 8
LATENT_PARTS = "encoder", "quant_conv"  # what decides about the latents


@dataclass(frozen=True)
class AutoencoderSettings(DataSettings):
    """Autoencoder: data, crops, weights of the losses."""

    crop: int = option(64, "side of the square crops; whole portraits cost four times as much", minimum=16, fixed=True)
    decoder_of: Path | None = option(None, "folder of embedded models: train its VAE's decoder alone, so that what was "
                                     "trained on its latents stays valid", fixed=True)  # fmt: skip
    face: float = option(0.0, "how much more an error inside of the face's box counts", minimum=0)
    features: float = option(0.0, "how much more an error near eyes, brows and mouth counts on top", minimum=0)
    squared: float = option(0.0, "weight of the squared error, which is what PSNR measures", minimum=0)
    edges: float = option(0.5, "weight of the error of the differences between neighbours, for sharpness", minimum=0)
    kl: float = option(5e-4, "weight of the KL divergence to the standard normal", minimum=0)
    spread: float = option(0.1, "weight that holds the latents' standard deviation at 1", minimum=0)


class Autoencode(nn.Module):
    """The autoencoder with its posterior in sight, as one call, so that it can be spread over processes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, and mean and log variance of the posterior; ``noise`` standard normal in latent shape."""
        posterior = self.model.encode(pixels).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latent = mean + torch.exp(0.5 * logvar) * noise
        return self.model.decode(latent).sample.float(), mean, logvar


class TrainAutoencoder(PortraitTask):
    """The task; see ``training.task.Task`` for what each method is for."""

    name = "embedded-autoencoder"
    Settings = AutoencoderSettings
    summary = "the embedded model's VAE (4 channels, factor 8), from a data set of portraits"

    def __init__(self, settings: AutoencoderSettings, seed: int = 0):
        if settings.crop % 8 or settings.crop > SIDE:
            raise ValueError(f"crop is {settings.crop}: give a multiple of 8 up to {SIDE}.")
        super().__init__(settings, seed)

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        if self.settings.decoder_of is None:
            return Autoencode(build(autoencoder, seed=self.seed)).to(device)
        model = load_component(self.settings.decoder_of, "vae", torch.float32)
        self.checksum = sha256_of_file(self.settings.decoder_of / "vae" / DIFFUSERS)
        for part in LATENT_PARTS:
            getattr(model, part).requires_grad_(False)
        return Autoencode(model).to(device)

    def sample(self, example: Example, load: Callable, draw: torch.Generator) -> dict[str, Tensor]:
        picture, side = self.portraits.picture(example.payload), self.settings.crop
        top, left = (int(torch.randint(0, size - side + 1, (1,), generator=draw)) for size in picture.shape[1:])
        truth = self.portraits.truth[example.payload]
        weight = face_weights(truth, self.settings.face, self.settings.features)
        rows, columns = slice(top, top + side), slice(left, left + side)
        return {"pixels": picture[:, rows, columns], "weight": weight[:, rows, columns]}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        pixels, weight = batch["pixels"], batch["weight"] / batch["weight"].mean((1, 2, 3), keepdim=True)
        cells = (AUTOENCODER["latent_channels"], pixels.shape[2] // 8, pixels.shape[3] // 8)
        made, mean, logvar = network(pixels, random.normal("posterior", cells).to(pixels.device))
        losses = {
            "pixels": (weight * (made - pixels).abs()).mean(),
            "squared": self.settings.squared * (weight * (made - pixels).square()).mean(),
            "edges": self.settings.edges * edge_error(made, pixels, weight),
        }
        if self.settings.decoder_of is not None:
            return losses
        return losses | {
            "kl": self.settings.kl * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
            "spread": self.settings.spread * (mean.std() - 1).square(),
        }

    def validate(self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]) -> Validation:
        count = min(64 if steps is None else SHOWN, len(self.held_out))
        errors, images = [], {}
        for index in range(count):
            check_stop()
            picture = self.held_out.picture(index)[None].to(next(network.parameters()).device)
            made = reconstruct(network.model, picture)
            errors.append(((made - picture) / 2).square().mean())
            if index < SHOWN:
                images[f"portrait {index}"] = torch.cat([picture[0], made[0]], 2).cpu() / 2 + 0.5
        psnr = -10 * torch.stack(errors).log10().mean()
        return Validation(images, {"psnr": psnr.item()})

    def describe(self) -> dict[str, str]:
        if self.settings.decoder_of is None:
            return super().describe()
        return {**super().describe(), "decoder_of_sha256": self.checksum}

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        model, tensors, before = autoencoder(), without_prefix(weights, "model."), self.settings.decoder_of
        if before is not None:
            model, facts = begun_with(before, "vae", facts, "decoder_of", "this decoder")
            tensors = {**model.state_dict(), **tensors}
        save_component(folder / "vae", DIFFUSERS, plain_config(model), tensors, facts)


def edge_error(made: Tensor, wanted: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Mean absolute error of the differences between neighbours, down and across.

    weight: [B, 1, H, W] or a number; a difference counts as the mean of its two pixels.
    """
    error = made - wanted
    weight = torch.as_tensor(weight, device=made.device).expand(len(made), 1, *made.shape[2:])
    down, across = (weight[:, :, 1:] + weight[:, :, :-1]) / 2, (weight[..., 1:] + weight[..., :-1]) / 2
    return (down * error.diff(dim=2).abs()).mean() + (across * error.diff(dim=3).abs()).mean()


def reconstruct(model, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in -1..1 through the mode of the posterior and back."""
    return model.decode(model.encode(pictures).latent_dist.mode()).sample.float().clamp(-1, 1)
