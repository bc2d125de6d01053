"""The log of a run: TensorBoard always, Weights & Biases on request, validation pictures as files."""

from pathlib import Path

import torch
from accelerate import Accelerator

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
        row = torch.cat([image.float().cpu() for image in validation.images.values()], dim=-1)
        folder = self.output / "samples"
        folder.mkdir(exist_ok=True)
        save_image(row, folder / f"step-{step:08d}.png")
        for tracker in self.accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation/images": to_uint8(row)[None]}, step=step, **options)

    def close(self) -> None:
        """Write what is still in memory."""
        self.accelerator.end_training()
