"""The settings every task shares; a task adds a section of its own."""

from dataclasses import dataclass, make_dataclass
from pathlib import Path

import torch

from ..configuration import SettingsError, option

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def mixed_precision(precision: str) -> str:
    """What accelerate, and kohya's metadata after it, call a precision."""
    return "no" if precision == "fp32" else precision


@dataclass(frozen=True)
class RunSettings:
    """How long, how large, where to."""

    output: Path = option(help="folder of this run: checkpoints, samples, logs, exports; an existing run goes on")
    name: str = option("likeness", "name of the exported files")
    seed: int = option(0, "seed of everything random", minimum=0, maximum=2**63 - 1, fixed=True)
    steps: int = option(1000, "optimiser steps in all", minimum=1)
    batch_size: int = option(1, "samples a process takes at once", minimum=1)
    accumulation: int = option(1, "micro-batches a step", minimum=1)
    precision: str = option("bf16", "arithmetic of the network", choices=tuple(DTYPES), fixed=True)
    gradient_checkpointing: bool = option(False, "save memory, cost about a third more time")
    save_every: int = option(500, "steps from one checkpoint to the next", minimum=1)
    keep: int = option(2, "checkpoints to keep; the older ones go once a newer one is verified", minimum=1)
    export_every: int = option(0, "steps between exports; 0: only at the end", minimum=0)
    cache: Path | None = option(None, "folder of encoded data, may be shared by runs (default: OUTPUT/cache)")
    loader_threads: int = option(2, "threads that read the cache ahead", minimum=1)
    skip_bad: bool = option(False, "leave bad files out, after listing them, instead of ending")
    max_bad_steps: int = option(10, "end after so many steps in a row whose loss or gradient is not finite", minimum=1)
    ema_decay: float = option(0.0, "exponential moving average of the weights; 0: none", minimum=0, maximum=1,
                              fixed=True)  # fmt: skip

    def __post_init__(self):
        if not self.name or set(self.name) & set('/\\:*?"<>|'):
            raise SettingsError(f"name in [run] is {self.name!r}: give a plain name for files, without folders.")


@dataclass(frozen=True)
class OptimizerSettings:
    """How the weights move."""

    optimizer: str = option("adamw", "adamw8bit needs bitsandbytes", choices=("adamw", "adamw8bit"), fixed=True)
    learning_rate: float = option(1e-4, "top of the schedule", minimum=0)
    schedule: str = option("cosine", "after the warm-up: fall to 0, or stay", choices=("cosine", "constant", "linear"))
    warmup_steps: int = option(0, "steps of linear rise from 0", minimum=0)
    weight_decay: float = option(0.01, "decoupled weight decay", minimum=0)
    beta1: float = option(0.9, "decay of the first moment", minimum=0, maximum=1)
    beta2: float = option(0.999, "decay of the second moment", minimum=0, maximum=1)
    epsilon: float = option(1e-8, "floor of the second moment's root", minimum=0)
    max_grad_norm: float = option(1.0, "longer gradients are shortened to this; 0: never", minimum=0)


@dataclass(frozen=True)
class ReportSettings:
    """What is shown on the way."""

    validate_every: int = option(250, "steps between validations; 0: only at the end", minimum=0)
    validation_seed: int = option(1, "seed of the validation, the same each time", minimum=0,
                                 maximum=2**63 - 1)  # fmt: skip
    log_every: int = option(10, "steps between lines in the log (TensorBoard, in OUTPUT/logs)", minimum=1)
    wandb_project: str | None = option(None, "also send the log to this project at Weights & Biases")


def settings_class(task_class: type) -> type:
    """The settings of a whole run of this task: sections run, optimizer, report and task."""
    sections = {
        "task": task_class.Settings, "run": RunSettings, "optimizer": OptimizerSettings, "report": ReportSettings,
    }  # fmt: skip
    return make_dataclass(f"{task_class.__name__}Run", sections.items(), frozen=True)
