"""Training the embedded autoencoder (VAE) on crops of portraits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..configuration import option
from ..training.task import BatchRandom, Example, Validation
from .architectures import AUTOENCODER, autoencoder, build
from .components import DIFFUSERS, plain_config, save_component
from .portrait_set import SIDE, DataSettings, PortraitTask, without_prefix

SHOWN = 8


@dataclass(frozen=True)
class AutoencoderSettings(DataSettings):
    """Autoencoder: data, crops, weights of the losses."""

    crop: int = option(64, "side of the square crops; whole portraits cost four times as much", minimum=16, fixed=True)
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
        return Autoencode(build(autoencoder, seed=self.seed)).to(device)

    def sample(self, example: Example, load: Callable, draw: torch.Generator) -> dict[str, Tensor]:
        picture, side = self.portraits.picture(example.payload), self.settings.crop
        top, left = (int(torch.randint(0, size - side + 1, (1,), generator=draw)) for size in picture.shape[1:])
        return {"pixels": picture[:, top : top + side, left : left + side]}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        pixels = batch["pixels"]
        cells = (AUTOENCODER["latent_channels"], pixels.shape[2] // 8, pixels.shape[3] // 8)
        made, mean, logvar = network(pixels, random.normal("posterior", cells).to(pixels.device))
        return {
            "pixels": (made - pixels).abs().mean(),
            "edges": self.settings.edges * edge_error(made, pixels),
            "kl": self.settings.kl * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
            "spread": self.settings.spread * (mean.std() - 1).square(),
        }

    def validate(
        self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]
    ) -> Validation:
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

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        config = plain_config(autoencoder())
        save_component(folder / "vae", DIFFUSERS, config, without_prefix(weights, "model."), facts)


def edge_error(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbours, down and across."""
    error = made - wanted
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def reconstruct(model, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in -1..1 through the mode of the posterior and back."""
    return model.decode(model.encode(pictures).latent_dist.mode()).sample.float().clamp(-1, 1)
