"""Checkpoints that are whole or not there, and are checked before they are trusted.

A checkpoint is a folder ``step-00000300`` with weights, optimiser, state, and ``complete.json``, written last, with the
checksum of every file. It is filled under another name and renamed when all of it is on the disk.
"""

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import REMOVE_PATIENCE, atomic_folder, remove_leftovers, replace, sha256_of_file, write_json

log = logging.getLogger(__name__)
MANIFEST = "complete.json"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or none can be used; the message says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    """tensors: named sets of tensors; objects: plain containers of tensors and numbers; state: JSON."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    objects: dict[str, Any]
    state: dict


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def clean(self) -> None:
        """Remove what killed processes left half-written; only for whoever holds the run's lock."""
        remove_leftovers(self.folder, nobody_else_writes=True)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write, read back and check a checkpoint, and only then remove the ones beyond ``keep``.

        Raises ``DiskFullError`` or ``CheckpointError``; the earlier checkpoints then remain as they are.
        """
        path = self._path(checkpoint.step)
        if path.exists():
            if not problems(path):
                return path
            self._remove(checkpoint.step)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(path) as folder:
            _write(folder, checkpoint)
        found = problems(path)
        if found:
            raise CheckpointError(f"{path} was written but reads back wrong ({'; '.join(found)}): check the disk.")
        self._prune(checkpoint.step)
        return path

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, good or bad, oldest first."""
        names = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.folder.glob("step-*"))
        return sorted(int(name[1]) for name in names if name)

    def load(self, step: int | None = None) -> Checkpoint | None:
        """The checkpoint of ``step``, else the newest good one; None where there are none at all.

        Damaged ones are passed over with a warning. Raises ``CheckpointError`` when all are, or that of ``step`` is.
        """
        if step is not None and step not in self.steps():
            kept = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}: kept are {kept}.")
        steps = [step] if step is not None else self.steps()[::-1]
        for number in steps:
            path = self._path(number)
            found = problems(path)
            if not found:
                return _read(path)
            log.warning("%s is damaged (%s): trying the one before.", path, "; ".join(found))
        if not steps:
            return None
        raise CheckpointError(
            f"no good checkpoint among {', '.join(self._path(number).name for number in steps)} in {self.folder}: "
            "restore one from a backup, or start in another output folder."
        )

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _prune(self, newest: int) -> None:
        # Later ones were damaged, or the run would have gone on from there: they do not count as kept.
        for step in [step for step in self.steps() if step <= newest][: -self.keep]:
            try:
                self._remove(step)
            except OSError as error:
                log.warning("The new checkpoint is good and the training goes on, but an old one stays: %s", error)

    def _remove(self, step: int) -> None:
        # Under another name first: a kill halfway must not leave a folder that looks like a checkpoint.
        doomed = self.folder / f".part-0-{self._path(step).name}"
        replace(self._path(step), doomed, REMOVE_PATIENCE)  # little: with every checkpoint it is tried again
        shutil.rmtree(doomed, ignore_errors=True)


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint folder; empty when every file has its recorded size and checksum."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        entries = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return [f"no {MANIFEST}" if path.exists() else "it does not exist"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} is unreadable"]
    found = []
    for name, (size, checksum) in entries.items():
        file = path / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != size:
            found.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
        elif sha256_of_file(file) != checksum:
            found.append(f"{name} has another checksum than when it was written")
    return found


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    for name, tensors in checkpoint.tensors.items():
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
                  folder / f"{name}.safetensors")  # fmt: skip
    for name, value in checkpoint.objects.items():
        torch.save(value, folder / f"{name}.pt")
    state = {"step": checkpoint.step, **checkpoint.state}
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    files = {
        file.name: {"size": file.stat().st_size, "sha256": sha256_of_file(file)} for file in sorted(folder.iterdir())
    }
    write_json(folder / MANIFEST, {"files": files, "torch": torch.__version__})


def _read(path: Path) -> Checkpoint:
    # Read as bytes, not mapped: on Windows a mapped file can be neither replaced nor removed.
    tensors = {file.stem: load_tensors(file.read_bytes()) for file in path.glob("*.safetensors")}
    objects = {file.stem: torch.load(file, map_location="cpu", weights_only=True) for file in path.glob("*.pt")}
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(state.pop("step"), tensors, objects, state)


def load_parameters(trained: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> None:
    """Copy saved weights into parameters. Raises ``CheckpointError`` where names or shapes differ."""
    shapes = {name: value.shape for name, value in trained.items()}
    odd = sorted({*shapes.items()} ^ {(name, tensor.shape) for name, tensor in weights.items()}, key=str)
    if odd:
        raise CheckpointError(f"the checkpoint is of another network ({odd[0][0]} differs): choose another --output.")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
