"""The model card that is shipped with the embedded models, written from what files and measurements say."""

import json
import math
import shlex
from pathlib import Path

from safetensors import safe_open

from ..configuration import as_arguments
from ..files import write_json, write_text
from ..training.settings import OptimizerSettings, ReportSettings, RunSettings
from .autoencoder import TrainAutoencoder
from .clip import TrainClip
from .components import CONTINUED
from .face_detector import TrainFaceDetector
from .face_embedder import TrainFaceEmbedder
from .text_to_image import TrainTextToImage

BARS = {
    "autoencoder PSNR (dB)": 28.0, "CLIP finds the caption of 32": 0.70, "face verification": 0.97,
    "text to image: expression": 0.75, "text to image: costume": 0.75, "text to image: lighting": 0.75,
    "face detector: faces found": 0.95,
}  # fmt: skip
AT_MOST = {"face detector: landmark error (eye distances)": 0.08}
SHOWN_FACTS = {
    "data": "data", "held_out": "validated on", "ss_seed": "seed", "likeness_revision": "git revision", "date": "date",
}  # fmt: skip
TASKS = {
    "vae": TrainAutoencoder, "text_encoder": TrainClip, "image_encoder": TrainClip, "unet": TrainTextToImage,
    "face_embedder": TrainFaceEmbedder, "face_detector": TrainFaceDetector,
}  # fmt: skip
HEAD = """---
license: apache-2.0
library_name: diffusers
---
# Embedded portrait models

Small models of Stable Diffusion's shape, trained on this pack's procedural portrait world and on nothing else: no
photograph and no real person is in them. They are for trying graphs out, for tests and for learning, not for pictures
of quality. Licence Apache-2.0, as the pack.

This page is written by `python nodes/evaluate_cli.py embedded`; figures are in `metrics.json`.
"""


def write_card(folder: Path, figures: dict[str, float], settings: dict) -> None:
    """Write README.md and metrics.json into ``folder``."""
    write_json(folder / "metrics.json", {"settings": settings, "figures": figures})
    parts = [HEAD, "## Quality on people never seen in training\n", _figures(figures, settings)]
    parts += ["## How they were made\n"]
    parts += [_component(file) for file in sorted(folder.glob("*/*.safetensors"))]
    write_text(folder / "README.md", "\n".join(parts) + "\n")


def read_figures(folder: Path, held_out: str) -> tuple[dict[str, float], dict]:
    """(figures, settings) of a folder with a card, to be written again with some of the figures new.

    Raises ``ValueError`` where it has none, or they were measured on other data than ``held_out``, as the settings
    call it: a table is of one set of people.
    """
    try:
        told = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        figures, settings = told["figures"], told["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} has no figures ({error}): measure it whole, with --measure.") from error
    if settings["held_out"] != held_out:
        raise ValueError(
            f"the figures of {folder} are of {settings['held_out']}, --held-out has {held_out}: give as many."
        )
    return figures, settings


def _figures(figures: dict[str, float], settings: dict) -> str:
    lines = ["| figure | value | aim | reached |", "|---|---|---|---|"]
    for name, value in figures.items():
        text = f"{value:.1%}" if value <= 1 and "distance" not in name else f"{value:.3f}"
        lines.append(f"| {name} | {text} | {' | '.join(_aim(name, value))} |")
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    return "\n".join([*lines, "", f"Measured with: {told}.", ""])


def _aim(name: str, value: float) -> tuple[str, str]:
    """What the figure should be, and whether it is; empty where nothing was aimed at."""
    if name in AT_MOST:
        return f"at most {AT_MOST[name]:g}", "yes" if value <= AT_MOST[name] else "**no**"
    if name in BARS:
        aim = BARS[name]
        return f"{aim:.0%}" if aim <= 1 else f"{aim:g}", "yes" if value >= aim else "**no**"
    return "", ""


def _component(file: Path) -> str:
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
        count = sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    head = f"### {file.parent.name} ({count / 1e6:.2f} million weights, {file.stat().st_size / 2**20:.1f} MiB)\n\n"
    trainings = [_training(TASKS[file.parent.name], facts)]
    while CONTINUED in facts:
        facts = json.loads(facts[CONTINUED])
        trainings.insert(0, _training(TASKS[file.parent.name], facts))
    return head + "\nthen\n\n".join(trainings)


def _training(task: type, facts: dict[str, str]) -> str:
    """One training, from the metadata of its export."""
    told = "\n".join(f"- {name}: {facts[key]}" for key, name in SHOWN_FACTS.items() if key in facts)
    command = training_command(task, json.loads(facts["likeness_settings"]))
    time = (float(facts["ss_training_finished_at"]) - float(facts["ss_training_started_at"])) / 60
    return f"{told}\n- time from start to end: {time:.0f} min\n\n```\n{command}\n```\n"


def training_command(task: type, settings: dict[str, dict]) -> str:
    """The command that repeats a training, from the settings its export keeps; of paths only the last names."""
    sections = {"task": task.Settings, "run": RunSettings, "optimizer": OptimizerSettings, "report": ReportSettings}
    words = [word for name, section in sections.items() for word in as_arguments(section, settings[name])]
    return shlex.join(["python", "nodes/train_cli.py", "train", task.name, *words])
