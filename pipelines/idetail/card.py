"""The card of a trained adapter for the embedded models: what it does on people never seen, and how it was made."""

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ..embedded.card import training_command
from ..evaluation.claims import claims_table, interval
from ..files import atomic_file, write_json, write_text
from .claims import COLUMNS, ClaimsSettings
from .task import TrainConvIn, TrainRelight

TASKS = {"conv_in": TrainConvIn, "relight": TrainRelight}
HEAD = """---
license: apache-2.0
---
# Relighting for the embedded portrait models

IDetail's adapter for the small models that come with this pack, trained on the pack's procedural portrait world and on
nothing else: no photograph and no real person is in it. `relight.safetensors` is a LoRA file with the widened first
convolution in it; `conv_in.safetensors` is what the first stage made.

This page is written by `python nodes/evaluate_cli.py adapter idetail`; all scores are in `metrics.json`.
"""


def ship(files: dict[str, Path], folder: Path, found: dict[str, dict[str, Tensor]], settings: ClaimsSettings) -> None:
    """Copy the trained ``files`` (named as in ``TASKS``) into ``folder`` and write its card and metrics.

    found: scores by row and column, as ``claims.measure`` gives them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        with atomic_file(folder / f"{name}.safetensors") as temporary:
            shutil.copyfile(file, temporary)
    means = {row: {name: interval(columns[name])[0] for name in COLUMNS} for row, columns in found.items()}
    measured = {"people": settings.people, "population": settings.population, "effects": list(settings.effects),
                "sampling_steps": settings.sampling_steps, "guidance_scale": settings.guidance_scale}  # fmt: skip
    write_json(folder / "metrics.json", {"settings": measured, "figures": means})
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured.items())
    parts = [HEAD, "## Quality on people never seen in training\n", claims_table(found, COLUMNS), "",
             f"Measured with: {told}. Mean ± 95 % interval over people.", "", "## How it was made\n"]  # fmt: skip
    parts += [made(folder / f"{name}.safetensors", TASKS[name]) for name in files]
    write_text(folder / "README.md", "\n".join(parts) + "\n")


def made(file: Path, task: type) -> str:
    """How one file came to be, from what it says of itself."""
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    command = training_command(task, json.loads(facts["likeness_settings"]))
    minutes = (float(facts["ss_training_finished_at"]) - float(facts["ss_training_started_at"])) / 60
    lines = [
        f"### {file.stem} ({file.stat().st_size / 2**20:.2f} MiB)\n", f"- data: {facts['data']}",
        f"- seed: {facts['ss_seed']}", f"- git revision: {facts['likeness_revision']}", f"- date: {facts['date']}",
        f"- time from start to end: {minutes:.0f} min\n\n```\n{command}\n```\n",
    ]  # fmt: skip
    return "\n".join(lines)
