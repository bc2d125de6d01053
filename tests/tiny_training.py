"""A LoRA run small enough to be started, killed and started again dozens of times."""

import os
import struct
from pathlib import Path

import torch
from comfyui_environment import load_script

load_script("pack").load_pack()

import skimage.data  # noqa: E402
from likeness.pipelines.configuration import build_settings  # noqa: E402
from likeness.pipelines.stop import StopRequest  # noqa: E402
from likeness.pipelines.training import Trainer, settings_class  # noqa: E402
from likeness.pipelines.training.lora_task import LoraFineTune  # noqa: E402
from PIL import Image  # noqa: E402

SETTINGS = {
    "task": {"resolution": 32, "bucket_step": 16, "rank": 4, "alpha": 2.0, "layers": "all", "prompts": ["a face"],
             "validation_captions": 0, "validation_steps": 2, "export_dtype": "fp32"},
    "run": {"steps": 8, "batch_size": 2, "precision": "fp32", "save_every": 4, "ema_decay": 0.9, "seed": 3},
    "optimizer": {"learning_rate": 1e-3},
    "report": {"validate_every": 0, "log_every": 100},
}  # fmt: skip


def write_portraits(folder: Path, count: int = 8) -> Path:
    """Crops of a photograph, the last ones of another shape, each with a caption."""
    folder.mkdir(parents=True)
    photo = Image.fromarray(skimage.data.astronaut())
    for number in range(count):
        left, height = 100 + 8 * number, 200 if number < count - 3 else 380
        photo.crop((left, 10, left + 200, 10 + height)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"portrait, number {number}")
    return folder


def tiny_settings(world: Path, output: Path, **changes):
    """Settings of a run on ``world`` (``base`` and ``photos``); changes are ``section__name=value``."""
    given = {"task": {"model": str(world / "base"), "data": str(world / "photos")}, "run": {"output": str(output)}}
    for key, value in changes.items():
        section, name = key.split("__")
        given.setdefault(section, {})[name] = value
    return build_settings(settings_class(LoraFineTune), SETTINGS, given)


def tiny_trainer(settings, stop: StopRequest | None = None) -> Trainer:
    """The trainer of these settings, silent."""
    torch.set_num_threads(1)
    task = LoraFineTune(settings.task, settings.run.seed)
    return Trainer(task, settings, stop, say=lambda text: None)


class WatchedStop(StopRequest):
    """Notes in a file, outside of the trainer's own records, how many steps were done at each poll."""

    def __init__(self, folder: Path, ledger: Path):
        super().__init__(folder)
        self.trainer: Trainer | None = None
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT)

    @property
    def requested(self) -> bool:
        if self.trainer is not None and hasattr(self.trainer, "optimizer"):
            os.pwrite(self._ledger, struct.pack("<q", self.trainer.progress.step), 0)
        return super().requested


def train_in_child(world: Path, output: Path, ledger: Path, **changes) -> None:
    """What a process does that is meant to be killed."""
    settings = tiny_settings(world, output, **changes)
    stop = WatchedStop(settings.run.output, ledger)
    stop.trainer = tiny_trainer(settings, stop)
    stop.trainer.run()


def steps_noted(ledger: Path) -> int:
    """Steps that were done when the file was last written; -1 if it never was."""
    content = ledger.read_bytes() if ledger.exists() else b""
    return struct.unpack("<q", content)[0] if len(content) == 8 else -1
