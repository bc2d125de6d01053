"""The folder of a data set and its work list: which items are in which shard, and which shards are finished.

``dataset.json`` says what the folder holds and is written first; ``shard-00012.tar`` has the items,
``shard-00012.json`` (its sidecar, written last) their index, the rejects and the checksum; ``shard-00012.failed`` says
why a shard was given up; ``shard-00012.0.lease`` that somebody makes it now.
"""

import hashlib
import json
import platform
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..configuration import fields_of, holds_paths, option, section_as_table
from ..files import TEMPORARY_PREFIX, DiskFullError, write_json
from .sidecar import check_kinds, read_record, read_sidecar

FORMAT = 1
DESCRIPTION = "dataset.json"
# What decides about the content of items, and so about the fingerprint.
CONTENT_KINDS = {"recipe": str, "version": int, "seed": int, "shard_size": int, "settings": dict, "inputs": str}
KINDS = {**CONTENT_KINDS, "fingerprint": str, "total": int, "versions": dict}
PACKAGES = ("torch", "numpy", "pillow", "opencv-python")


class DatasetError(ValueError):
    """The folder does not hold what was asked for; the message says what differs and what to do."""


@dataclass(frozen=True)
class DatasetSettings:
    """What is made. In a folder that has data already only the total may change, and only grow."""

    total: int | None = option(None, "how many items, rejects not counted (default: what the folder was begun "
                               "with, else all of a recipe that has a fixed number, else 1000)", minimum=1)  # fmt: skip
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

    def keys(self, shard: int, sidecar: dict) -> list[str]:
        """The names of the shard's items, but for those that its sidecar says are absent."""
        return [key for key in map(key_of, self.items(shard)) if key not in sidecar["absent"]]

    def tar(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.tar"

    def sidecar(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"

    def failure(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.failed"

    def finished(self, shard: int) -> dict | None:
        """The sidecar of a finished shard; None if there is none, or it is of fewer items than asked for now.

        It may be of more: then the data set has grown since this object was made. Items that it says are absent, for
        there is nothing to make of them, count as made.
        """
        try:
            content = read_sidecar(self.sidecar(shard))
            size = self.tar(shard).stat().st_size
        except (OSError, ValueError):
            return None
        keys = self.keys(shard, content)
        fits = content["fingerprint"] == self.fingerprint and size == content["tar"]["bytes"]
        return content if fits and list(content["items"])[: len(keys)] == keys else None


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
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"{folder} is a file: give a folder for the data set, new or begun before.")
    begun = (folder / DESCRIPTION).exists() and _has_shards(folder)
    old = _read_description(folder) if begun else None
    description = _describe(recipe, settings, old["total"] if begun else None)
    if begun:
        _check_same(folder, old, description)
        if old["versions"] != description["versions"]:
            say(f"Note: {folder} was begun with {old['versions']}, this is {description['versions']}: "
                "new shards may differ in rounding and compression.")  # fmt: skip
        if old["total"] == description["total"]:
            return _from_description(folder, old)
        description["versions"] = old["versions"]
    elif _holds_something_else(folder):
        raise DatasetError(f"{folder} is not empty and holds no data set: choose another folder.")
    _write_description(folder, description)
    return _from_description(folder, description)


def _write_description(folder: Path, description: dict) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / DESCRIPTION, description)
    except DiskFullError:
        raise
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written ({error.strerror}): choose a folder in which you may write.") \
            from error  # fmt: skip


def _holds_something_else(folder: Path) -> bool:
    """True for a folder of other things; what a request to stop or a killed start leaves does not count."""
    if not folder.is_dir() or (folder / DESCRIPTION).exists():
        return False
    return any(path.name != "STOP" and not path.name.startswith(TEMPORARY_PREFIX) for path in folder.iterdir())


def _has_shards(folder: Path) -> bool:
    """False where a run ended before its first shard: then there is nothing yet that other settings could spoil."""
    return any(path.suffix in (".tar", ".json", ".lease") for path in folder.glob("shard-*"))


def _describe(recipe, settings: DatasetSettings, total_before: int | None) -> dict:
    content = _content_of(recipe, settings.seed, settings.shard_size)
    asked = total_before if settings.total is None else settings.total
    total, fingerprint = _total(recipe, asked), _digest(content)
    return {"format": FORMAT, **content, "fingerprint": fingerprint, "total": total, "versions": _versions()}


def fingerprint_of(recipe, seed: int, shard_size: int) -> str:
    """What the fingerprint of a data set made by this recipe, as constructed, has to be."""
    return _digest(_content_of(recipe, seed, shard_size))


def _content_of(recipe, seed: int, shard_size: int) -> dict:
    return {
        "recipe": recipe.name,
        "version": recipe.version,
        "seed": seed,
        "shard_size": shard_size,
        "settings": identity_of(recipe.settings),
        "inputs": recipe.inputs,
    }


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps([FORMAT, content], sort_keys=True).encode()).hexdigest()[:16]


def identity_of(settings) -> dict:
    """The settings that decide about the content, as a table: all but paths, which say where and not what."""
    table = section_as_table(settings)
    return {entry.name: table[entry.name] for entry in fields_of(type(settings)) if not holds_paths(entry)}


def table_of(settings) -> dict:
    """The settings of a recipe as they go into JSON; paths become absolute, so that they hold in other processes."""
    places = {
        entry.name: tuple(path.absolute() for path in value) if isinstance(value, tuple) else value.absolute()
        for entry in fields_of(type(settings))
        if holds_paths(entry) and (value := getattr(settings, entry.name)) is not None
    }
    return section_as_table(replace(settings, **places))


def _total(recipe, asked: int | None) -> int:
    if recipe.count == 0:
        raise DatasetError(f"{recipe.name} has no items at all with these settings: give it something to combine.")
    if recipe.count is not None and asked is not None and asked > recipe.count:
        raise DatasetError(f"--total is {asked}, but {recipe.name} has only {recipe.count} different items with these "
                           "settings: ask for fewer, or give it more to combine.")  # fmt: skip
    if asked is not None:
        return asked
    return 1000 if recipe.count is None else recipe.count


def _versions() -> dict[str, str]:
    # Kernels for other instruction sets round otherwise in the last bit.
    found = {"python": platform.python_version(), "cpu": torch.backends.cpu.get_cpu_capability()}
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
        content = read_record(path, {"format": int})
        if content["format"] != FORMAT:
            raise DatasetError(f"{path} has format {content['format']}, this program reads {FORMAT}: use the version "
                               "of Likeness that made it.")  # fmt: skip
        check_kinds(content, KINDS)
        if min(content["total"], content["shard_size"]) < 1:
            raise ValueError("total and shard_size must be at least 1")
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read ({error}): restore it, or choose a new folder.") from None
    if _digest({name: content[name] for name in CONTENT_KINDS}) != content["fingerprint"]:
        raise DatasetError(f"{path} has been edited: what it says does not fit its fingerprint "
                           f"{content['fingerprint']}. Restore it, or choose a new folder.")  # fmt: skip
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
