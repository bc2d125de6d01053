"""The folder of a data set and its work list: which items are in which shard, and which shards are finished.

``dataset.json`` says what the folder holds and is written first; ``shard-00012.tar`` has the items,
``shard-00012.json`` (its sidecar, written last) their index, the rejects and the checksum; ``shard-00012.failed`` says
why a shard was given up; ``shard-00012.0.lease`` that somebody makes it now.
"""

import hashlib
import json
import platform
from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..configuration import as_tables, option
from ..files import write_json

FORMAT = 1
DESCRIPTION = "dataset.json"
PACKAGES = ("torch", "numpy", "pillow", "opencv-python")


class DatasetError(ValueError):
    """The folder does not hold what was asked for; the message says what differs and what to do."""


@dataclass(frozen=True)
class DatasetSettings:
    """What is made. In a folder that has data already only the total may change, and only grow."""

    total: int | None = option(None, "how many items, rejects not counted (default: 1000, or all of a recipe that "
                               "has a fixed number)", minimum=1)  # fmt: skip
    shard_size: int = option(
        500, "items a shard; a stopped run makes its unfinished shards anew, so choose some minutes of work", minimum=1
    )
    seed: int = option(0, "another seed is another data set of the same kind")


@dataclass(frozen=True)
class Dataset:
    """The work list of one folder: item i of ``total`` belongs to shard i // ``shard_size``."""

    folder: Path
    recipe: str
    total: int
    shard_size: int
    seed: int
    fingerprint: str  # of all that decides about the content of an item

    @property
    def shards(self) -> range:
        return range(-(-self.total // self.shard_size))

    def items(self, shard: int) -> range:
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.total))

    def tar(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.tar"

    def sidecar(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"

    def failure(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.failed"

    def finished(self, shard: int) -> dict | None:
        """The sidecar of a finished shard; None if there is none, or it is of fewer items than asked for now."""
        try:
            content = json.loads(self.sidecar(shard).read_text(encoding="utf-8"))
            fits = (
                content["fingerprint"] == self.fingerprint
                and list(content["items"]) == [key_of(item) for item in self.items(shard)]
                and self.tar(shard).stat().st_size == content["tar"]["bytes"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return content if fits else None


def key_of(item: int) -> str:
    """The name of an item inside the tar file."""
    return f"{item:09d}"


def open_dataset(folder: str | Path) -> Dataset:
    """The data set in ``folder``. Raises ``DatasetError`` where there is none."""
    return _from_description(Path(folder), _read_description(Path(folder)))


def prepare_dataset(folder: str | Path, recipe, settings: DatasetSettings, say=print) -> Dataset:
    """Begin a data set in ``folder``, or go on with the one that is there, also to a larger total.

    recipe: constructed from ``recipe.settings``. Raises ``DatasetError`` if the folder holds something else.
    """
    folder = Path(folder)
    description = _describe(recipe, settings)
    if (folder / DESCRIPTION).exists() and _has_shards(folder):
        old = _read_description(folder)
        _check_same(folder, old, description)
        if old["versions"] != description["versions"]:
            say(f"Note: {folder} was begun with {old['versions']}, this is {description['versions']}: "
                "new shards may differ in rounding and compression.")  # fmt: skip
        if old["total"] == description["total"]:
            return _from_description(folder, old)
        description["versions"] = old["versions"]
    elif folder.is_dir() and any(folder.iterdir()) and not (folder / DESCRIPTION).exists():
        raise DatasetError(f"{folder} is not empty and holds no data set: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DESCRIPTION, description)
    return _from_description(folder, description)


def _has_shards(folder: Path) -> bool:
    """False where a run ended before its first shard: then there is nothing yet that other settings could spoil."""
    return any(path.suffix in (".tar", ".json", ".lease") for path in folder.glob("shard-*"))


def _describe(recipe, settings: DatasetSettings) -> dict:
    content = {
        "recipe": recipe.name,
        "version": recipe.version,
        "seed": settings.seed,
        "shard_size": settings.shard_size,
        "settings": identity_of(recipe.settings),
        "inputs": recipe.inputs,
    }
    digest = hashlib.sha256(json.dumps([FORMAT, content], sort_keys=True).encode()).hexdigest()
    return {
        "format": FORMAT,
        **content,
        "fingerprint": digest[:16],
        "total": _total(recipe, settings.total),
        "versions": _versions(),
    }


def identity_of(settings) -> dict:
    """The settings that decide about the content, as a table: all but paths, which say where and not what."""
    table = table_of(settings)
    return {entry.name: table[entry.name] for entry in fields(settings) if not _is_path(entry.type)}


def table_of(settings) -> dict:
    """The settings of a recipe as they go into JSON; paths become absolute, so that they hold in other processes."""
    places = {
        entry.name: Path(value).absolute()
        for entry in fields(settings)
        if _is_path(entry.type) and (value := getattr(settings, entry.name)) is not None
    }
    return as_tables(_Holder(replace(settings, **places)))["settings"]


@dataclass(frozen=True)
class _Holder:
    settings: object


def _is_path(annotation) -> bool:
    return annotation is Path or Path in getattr(annotation, "__args__", ())


def _total(recipe, asked: int | None) -> int:
    if recipe.count is not None and asked is not None and asked > recipe.count:
        raise DatasetError(f"--total is {asked}, but {recipe.name} has only {recipe.count} different items with these "
                           "settings: ask for fewer, or give it more to combine.")  # fmt: skip
    return asked or recipe.count or 1000


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _read_description(folder: Path) -> dict:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise DatasetError(f"{folder} holds no data set (no {DESCRIPTION}): give the folder that generate wrote to.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read ({error}): restore it, or choose a new folder.") from None
    if content.get("format") != FORMAT:
        raise DatasetError(f"{path} has format {content.get('format')!r}, this program reads {FORMAT}: use the version "
                           "of Likeness that made it.")  # fmt: skip
    return content


def _from_description(folder: Path, content: dict) -> Dataset:
    return Dataset(folder, **{name: content[name] for name in ("recipe", "total", "shard_size", "seed", "fingerprint")})


def _check_same(folder: Path, old: dict, new: dict) -> None:
    differing = [
        f"{name}: {old[name]!r} there, {new[name]!r} asked for"
        for name in ("recipe", "version", "seed", "shard_size")
        if old[name] != new[name]
    ]
    if old["recipe"] == new["recipe"]:
        names = sorted(old["settings"].keys() | new["settings"].keys())
        before, now = old["settings"], new["settings"]
        differing += [
            f"{name}: {before.get(name)!r} there, {now.get(name)!r} asked for"
            for name in names
            if before.get(name) != now.get(name)
        ]
        if old["inputs"] != new["inputs"]:
            differing.append("the files that the recipe reads have changed")
    if differing:
        raise DatasetError(f"{folder} holds a data set of other settings: {'; '.join(differing)}. "
                           "Ask for the same, or choose another folder.")  # fmt: skip
    if new["total"] < old["total"]:
        raise DatasetError(f"{folder} was asked for {old['total']} items before, now for {new['total']}: a data set "
                           "can grow but not shrink. Choose another folder.")  # fmt: skip
