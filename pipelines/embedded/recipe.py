"""A recipe: commands in an order, each of which makes one thing from those before it.

A recipe is a TOML file with a table for every stage:

    [vae]
    run = "train_cli.py train embedded-autoencoder --data {train} --output {here} --name vae --steps 4500"
    gives = "vae"

``run`` is a command of this pack's scripts, its paths written with slashes. ``{here}`` stands for the stage's own
folder, ``{train}`` for what the stage ``train`` gives, ``{cores}`` for how many cores there are. ``gives``: what of the
folder others get; all of it where it is left out. ``done``: what is there only when the stage is finished; what it
gives where it is left out. ``check``: a command that ends with 0 if and only if the stage is finished, for those where
no file tells.
"""

import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..configuration import read_toml
from ..files import write_json
from ..training.export import revision

FIELDS = ("run", "gives", "done", "check")
NAME, PLACEHOLDER = re.compile(r"[A-Za-z]\w*"), re.compile(r"\{(\w+)\}")
KNOWN = ("here", "cores")


@dataclass(frozen=True)
class Stage:
    """One stage; ``needs``: the stages whose results it takes; ``digest`` tells its command and all before it."""

    name: str
    run: tuple[str, ...]
    check: tuple[str, ...]
    gives: str
    done: str
    needs: tuple[str, ...]
    digest: str

    def folder(self, work: Path) -> Path:
        """Where it works."""
        return work / self.name

    def result(self, work: Path) -> Path:
        """What it gives."""
        return self.folder(work) / self.gives

    def proof(self, work: Path) -> Path:
        """What is there only when it is finished."""
        return self.folder(work) / (self.done or self.gives)

    def note(self, work: Path) -> Path:
        """The file that tells by which recipe it is made."""
        return work / f"{self.name}.json"


def read_recipe(path: Path) -> dict[str, Stage]:
    """The stages of a recipe by name, in order. Raises ``ValueError`` that says which stage is wrong and how."""
    stages: dict[str, Stage] = {}
    for name, table in read_toml(path).items():
        try:
            stages[name] = _stage(name, table, stages)
        except ValueError as error:
            raise ValueError(f"{path}: stage {name!r} {error}") from None
    if not stages:
        raise ValueError(f"{path} has no stages.")
    return stages


def _stage(name: str, table: dict, stages: dict[str, Stage]) -> Stage:
    if not NAME.fullmatch(name) or name in KNOWN:
        raise ValueError(f"has no name for a folder: use letters, digits and _, and none of {', '.join(KNOWN)}.")
    if not isinstance(table, dict) or not table.get("run"):
        raise ValueError(f'is none: give a table [{name}] with its command as run = "...".')
    if unknown := sorted(set(table) - set(FIELDS)):
        raise ValueError(f"has {', '.join(unknown)}: it may have {', '.join(FIELDS)}.")
    if wrong := [field for field, value in table.items() if not isinstance(value, str)]:
        raise ValueError(f"has {wrong[0]} = {table[wrong[0]]!r}: give a text.")
    try:
        run, check = (tuple(shlex.split(table.get(field, ""))) for field in ("run", "check"))
    except ValueError as error:
        raise ValueError(f"has a command that cannot be split into words ({error}).") from None
    if not run:
        raise ValueError("has an empty command.")
    found = dict.fromkeys(name for word in (*run, *check) for name in PLACEHOLDER.findall(word))
    needs = tuple(need for need in found if need not in KNOWN)
    if missing := [need for need in needs if need not in stages]:
        before = ", ".join(stages) or "it is the first"
        raise ValueError(f"takes {{{missing[0]}}}, which no stage before it gives: {before}.")
    told = json.dumps([run, table.get("gives", ""), [stages[need].digest for need in needs]])
    digest = hashlib.sha256(told.encode()).hexdigest()
    return Stage(name, run, check, table.get("gives", ""), table.get("done", ""), needs, digest)


def command(words: tuple[str, ...], stage: Stage, stages: dict[str, Stage], work: Path) -> list[str]:
    """``stage.run`` or ``stage.check`` with all that is known put in; the script's name comes first."""
    known = {"here": str(stage.folder(work)), "cores": str(_cores())}
    known |= {name: str(stages[name].result(work)) for name in stage.needs}
    return [PLACEHOLDER.sub(lambda found: known[found[1]], word) for word in words]


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_needs(names: list[str], stages: dict[str, Stage]) -> list[Stage]:
    """The stages ``names``, or all, and what they need, in order. Raises ``ValueError`` for an unknown name."""
    if unknown := [name for name in names if name not in stages]:
        raise ValueError(f"there is no stage {unknown[0]!r}: the recipe has {', '.join(stages)}.")
    wanted = set(names or stages)
    for stage in reversed(stages.values()):
        if stage.name in wanted:
            wanted |= set(stage.needs)
    return [stage for stage in stages.values() if stage.name in wanted]


def read_note(stage: Stage, work: Path) -> dict:
    """What ``write_note`` wrote about a stage, empty if nothing. Raises ``ValueError`` where that is damaged."""
    try:
        told = json.loads(stage.note(work).read_text(encoding="utf-8"))
        _ = told["digest"]  # every note has one
        return told
    except OSError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{stage.note(work)} is damaged ({error}): delete it; the stage is then looked at.") from None


def write_note(stage: Stage, work: Path, words: list[str], seconds: float | None = None, date: str = "") -> None:
    """Note by which command a stage is made; when it is finished also when, and how long its last go took."""
    told = {"digest": stage.digest, "command": shlex.join(words), "revision": revision()}
    write_json(stage.note(work), told if seconds is None else {**told, "date": date, "seconds": round(seconds, 1)})


def is_finished(stage: Stage, work: Path) -> bool:
    """Whether a stage was finished earlier.

    Raises ``ValueError`` where it was made or begun with another command, or on something made by another one.
    """
    told = read_note(stage, work)
    if told and told["digest"] != stage.digest:
        raise ValueError(
            f"{stage.folder(work)} was made with another recipe, or stands on something that was. To make it anew move "
            f"it and {stage.note(work).name} away; to keep both recipes' results use another --output."
        )
    return "seconds" in told and stage.proof(work).exists()
