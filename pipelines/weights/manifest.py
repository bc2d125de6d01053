"""The manifest of external weights: what there is, where it belongs, whether it is there."""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache
from pathlib import Path, PurePosixPath

from ..files import sha256_of_file

MANIFEST = Path(__file__).resolve().parents[2] / "weights_manifest.json"
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class WeightFile:
    """One entry; ``weights_manifest.json`` explains the fields in its own ``fields``."""

    name: str
    purpose: str
    repository: str | None
    url: str | None
    file: str
    revision: str | None
    sha256: str | None
    size: int | None
    licence: str
    commercial_use: bool | None
    methods: tuple[str, ...]
    nodes: tuple[str, ...]
    folder: str
    save_as: str
    unpack: tuple[str, ...]
    source: str

    @property
    def group(self) -> str:
        """What stands before the slash: the files that are of use together only."""
        return self.name.partition("/")[0]

    @property
    def page(self) -> str:
        """Where a person gets the file by hand."""
        return self.url or f"{HUB}/{self.repository}/resolve/{self.revision}/{self.file}"

    @property
    def names(self) -> tuple[str, ...]:
        """The files it becomes: itself, or the members of an archive."""
        return self.unpack or (self.save_as,)


class State(Enum):
    """What is known of a weight on this machine."""

    MISSING = "missing"
    PRESENT = "present"
    VERIFIED = "present, checksum right"
    DAMAGED = "damaged"


def read_manifest(path: Path = MANIFEST) -> list[WeightFile]:
    """All entries. Raises ``ValueError`` naming the entry and the field that is wrong."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of weights ({error}): install the pack again.") from error
    return [_entry(path, entry) for entry in entries]


@cache
def shipped() -> tuple[WeightFile, ...]:
    """The entries of the pack's own manifest, read once: nodes ask for them at every run."""
    return tuple(read_manifest())


def named(name: str) -> WeightFile:
    """The entry of this name in the pack's own manifest, of a group its first. Raises ``ValueError``."""
    return select(shipped(), [name])[0]


def _entry(path: Path, entry: dict) -> WeightFile:
    wanted = {field.name for field in fields(WeightFile)}
    if not isinstance(entry, dict) or set(entry) != wanted:
        name = entry.get("name") if isinstance(entry, dict) else entry
        wrong = sorted(wanted ^ set(entry)) if isinstance(entry, dict) else "no fields"
        raise ValueError(f"{path}: entry {name!r} has missing or unknown fields ({wrong}).")
    names = [entry["save_as"], *entry["unpack"]]
    for name in (entry["folder"], *names):
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or set(name) & set("\\:") or (name in names and "/" in name):
            raise ValueError(f"{path}: entry {entry['name']!r} points outside of the models folder ({name!r}).")
    return WeightFile(**{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})


def select(weights: Sequence[WeightFile], names: Iterable[str]) -> list[WeightFile]:
    """The entries of these names, or of these groups, in the manifest's order; all of them for no name.

    Raises ``ValueError`` for a name that is neither, with the nearest ones.
    """
    names = list(names)
    known = {name for weight in weights for name in (weight.name, weight.group)}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)[:3]
            raise ValueError(f"no weights are called {name!r}: did you mean {', '.join(near)}?")
    return [weight for weight in weights if not names or weight.name in names or weight.group in names]


def destination(weight: WeightFile, models: Path) -> Path:
    """The folder below ``models`` that it goes to."""
    return models / weight.folder


def find(weight: WeightFile, models: Iterable[Path]) -> list[Path] | None:
    """Its files in the first of these models folders that has them all."""
    for root in models:
        paths = [destination(weight, root) / name for name in weight.names]
        if all(path.is_file() for path in paths):
            return paths
    return None


def state(weight: WeightFile, models: Iterable[Path], checksums: bool = False) -> State:
    """What is there: by name and size, with ``checksums`` also by content (which reads the whole file)."""
    paths = find(weight, models)
    if paths is None:
        return State.MISSING
    if weight.unpack:  # the manifest knows the archive, not its members
        return State.PRESENT if all(path.stat().st_size for path in paths) else State.DAMAGED
    size = paths[0].stat().st_size
    if size == 0 or weight.size not in (None, size):
        return State.DAMAGED
    if not checksums or weight.sha256 is None:
        return State.PRESENT
    return State.VERIFIED if sha256_of_file(paths[0]) == weight.sha256 else State.DAMAGED
