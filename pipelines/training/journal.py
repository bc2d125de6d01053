"""The log of a run: TensorBoard always, Weights & Biases on request, validation pictures as files."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import pad

from ..configuration import as_tables
from ..images import save_image, to_uint8
from ..optional import need
from .task import Validation


class Journal:
    """Numbers and pictures by step."""

    def __init__(self, accelerator: Accelerator, output: Path, settings, step: int):
        """step: where the run goes on; TensorBoard drops what an earlier, killed part of it logged after that."""
        self.accelerator, self.output = accelerator, output
        trackers, options = ["tensorboard"], {"tensorboard": {"purge_step": step}}
        if settings.report.wandb_project:
            need("wandb", "wandb")
            trackers.append("wandb")
            options["wandb"] = {"name": settings.run.name, "dir": str(output)}
        accelerator.project_configuration.logging_dir = str(output)
        accelerator.log_with = trackers
        flat = {
            f"{section}.{name}": value if isinstance(value, (int, float, str, bool)) else str(value)
            for section, values in as_tables(settings).items()
            for name, value in values.items()
        }
        accelerator.init_trackers(settings.report.wandb_project or "logs", flat, options)

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Log numbers of one step."""
        self.accelerator.log(values, step=step)

    def validation(self, validation: Validation, step: int) -> None:
        """Log a validation, and write its pictures, in one row, to ``samples``."""
        self.numbers({f"validation/{name}": value for name, value in validation.scores.items()}, step)
        if not validation.images:
            return
        row = in_a_row([image.float().cpu() for image in validation.images.values()])
        folder = self.output / "samples"
        folder.mkdir(exist_ok=True)
        save_image(row, folder / f"step-{step:08d}.png")
        for tracker in self.accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation/images": to_uint8(row)[None]}, step=step, **options)

    def close(self) -> None:
        """Write what is still in memory."""
        self.accelerator.end_training()


def in_a_row(images: list[Tensor]) -> Tensor:
    """Pictures ``[3, H, W]`` side by side, lower ones with black below: data of mixed shapes has several heights."""
    height = max(image.shape[-2] for image in images)
    return torch.cat([pad(image, (0, 0, 0, height - image.shape[-2])) for image in images], dim=-1)
