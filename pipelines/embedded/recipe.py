"""A recipe: commands in an order, each of which makes one thing from those before it.

A recipe is a TOML file with a table for every stage:

    [vae]
    run = "train_cli.py train embedded-autoencoder --data {train} --output {here} --name vae --steps 4500"
    gives = "vae"
    check = ""

``run`` is a command of this pack's scripts. ``{here}`` stands for the stage's own folder, ``{train}`` for what the
stage ``train`` gives, ``{cores}`` for how many cores there are. ``gives``: what of the folder others get; all of it
where it is left out. ``check``: a command that ends with 0 if and only if the stage is finished; where it is left out,
the stage is finished when what it gives is there.
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

FIELDS = ("run", "gives", "check")
PLACEHOLDER = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class Stage:
    """One stage; ``needs``: the stages whose results it takes; ``digest`` tells its command and all before it."""

    name: str
    run: str
    gives: str
    check: str
    needs: tuple[str, ...]
    digest: str

    def folder(self, work: Path) -> Path:
        """Where it works."""
        return work / self.name

    def result(self, work: Path) -> Path:
        """What it gives."""
        return self.folder(work) / self.gives

    def note(self, work: Path) -> Path:
        """The file that tells how it was made."""
        return work / f"{self.name}.json"


def read_recipe(path: Path) -> dict[str, Stage]:
    """The stages of a recipe by name, in order. Raises ``ValueError`` that says which stage is wrong and how."""
    stages: dict[str, Stage] = {}
    for name, table in read_toml(path).items():
        if not isinstance(table, dict) or not table.get("run"):
            raise ValueError(f"{path}: {name!r} is no stage: give a table [{name}] with the command as run = \"...\".")
        if unknown := sorted(set(table) - set(FIELDS)):
            raise ValueError(f"{path}: stage {name!r} has {', '.join(unknown)}: it may have {', '.join(FIELDS)}.")
        run, gives, check = (str(table.get(field, "")) for field in FIELDS)
        needs = _needs(run)
        if missing := [need for need in needs if need not in stages]:
            raise ValueError(
                f"{path}: stage {name!r} takes {{{missing[0]}}}, which no stage before it gives: "
                f"{', '.join(stages) or 'it is the first'}."
            )
        told = json.dumps([run, gives, [stages[need].digest for need in needs]])
        digest = hashlib.sha256(told.encode()).hexdigest()
        stages[name] = Stage(name, run, gives, check, needs, digest)
    if not stages:
        raise ValueError(f"{path} has no stages.")
    return stages


def _needs(run: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in PLACEHOLDER.findall(run) if name not in ("here", "cores")))


def command(text: str, stage: Stage, stages: dict[str, Stage], work: Path) -> list[str]:
    """The words of ``stage.run`` or ``stage.check`` with all that is known put in, the script's name first."""
    known = {"here": str(stage.folder(work)), "cores": str(os.cpu_count() or 1)}
    known |= {name: str(stages[name].result(work)) for name in stage.needs}
    return [PLACEHOLDER.sub(lambda found: known[found[1]], word) for word in shlex.split(text)]


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
        return json.loads(stage.note(work).read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise ValueError(f"{stage.note(work)} is damaged ({error}): delete it; the stage is then looked at.") from None


def write_note(stage: Stage, work: Path, words: list[str], seconds: float, date: str) -> None:
    """Note that a stage is finished, by which command, and how many seconds that took since it was last started."""
    told = {"digest": stage.digest, "command": shlex.join(words), "revision": revision(), "date": date}
    write_json(stage.note(work), {**told, "seconds": round(seconds, 1)})


def is_finished(stage: Stage, work: Path) -> bool:
    """Whether a stage was finished earlier.

    Raises ``ValueError`` where that was with another command, or on something made by another one.
    """
    told = read_note(stage, work)
    if told and told.get("digest") != stage.digest:
        raise ValueError(
            f"{stage.folder(work)} was made with another recipe, or stands on something that was. To make it anew move "
            f"it and {stage.note(work).name} away; to keep both recipes' results use another --output."
        )
    return bool(told) and stage.result(work).exists()
