"""The files that a user loads, with what is written into them so that it can be told later what they are."""

import json
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

from ..files import sha256_of_file
from .checkpoints import Checkpoint
from .settings import mixed_precision
from .task import Task


def export_checkpoint(
    task: Task, settings, checkpoint: Checkpoint, folder: Path, name: str, averaged: bool = True
) -> list[Path]:
    """Write what the task exports of a checkpoint; its moving average where there is one and ``averaged`` is set."""
    weights = checkpoint.tensors["weights"]
    if averaged:
        weights = checkpoint.tensors.get("ema", weights)
    return task.export(folder, name, weights, training_facts(settings, checkpoint.state, checkpoint.step))


def check_same_file(path: Path, checksum: str, made: str) -> None:
    """Raise ``ValueError`` where ``path`` has another SHA-256 than the file that ``made`` was trained with.

    checksum: empty in runs from before it was kept.
    """
    if checksum and sha256_of_file(path) != checksum:
        raise ValueError(f"{path} is not the file any more that {made} was trained with: put that one back.")


def training_facts(settings, state: dict, step: int) -> dict[str, str]:
    """The facts of a run, by the names that LoRA managers read (``ss_...``), with what the task said of itself.

    state: what the checkpoint of ``step`` holds.
    """
    run, optimizer = settings.run, settings.optimizer
    facts = {
        "ss_output_name": run.name,
        "ss_seed": run.seed,
        "ss_steps": step,
        "ss_max_train_steps": run.steps,
        "ss_learning_rate": optimizer.learning_rate,
        "ss_unet_lr": optimizer.learning_rate,
        "ss_optimizer": optimizer.optimizer,
        "ss_lr_scheduler": optimizer.schedule,
        "ss_lr_warmup_steps": optimizer.warmup_steps,
        "ss_max_grad_norm": optimizer.max_grad_norm,
        "ss_mixed_precision": mixed_precision(run.precision),
        "ss_gradient_checkpointing": run.gradient_checkpointing,
        "ss_gradient_accumulation_steps": run.accumulation,
        "ss_total_batch_size": state["global_batch"],
        "ss_num_train_images": state["examples"],
        "ss_epoch": step // state["steps_per_epoch"],
        "ss_training_started_at": state["progress"]["started"],
        "ss_training_finished_at": time.time(),
        "ss_training_comment": f"Likeness; {state['progress']['bad_steps']} steps skipped as not finite",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "likeness_revision": state["progress"].get("revision", "unknown"),
        "likeness_settings": json.dumps(settings_facts(settings)),
    }
    return {**{name: str(value) for name, value in facts.items()}, **state["description"]}


def revision() -> str:
    """The git revision of this code, marked "-dirty" if it was changed since; "unknown" outside of a git checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def settings_facts(settings) -> dict:
    """All settings as tables, of paths their last names only, as a file keeps them."""
    # A file that is handed on should not tell what its maker's folders are called.
    return {
        section: {name: value.name if isinstance(value, Path) else value for name, value in values.items()}
        for section, values in asdict(settings).items()
    }
