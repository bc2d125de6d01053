"""Checks a data set down to every byte, and finds all that is wrong before it says so."""

import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from ..files import remove, sha256_of_file
from .dataset import Dataset, key_of
from .recipe import decode
from .sidecar import read_sidecar


def verify_dataset(dataset: Dataset, on_shard: Callable[[int], None] = lambda shard: None) -> dict[int, list[str]]:
    """What is wrong in the shards that have a sidecar, by shard; empty if nothing is. Unfinished ones are no fault.

    Checked are the fingerprint, size and SHA-256 of the tar file, its item keys and their order, that the index finds
    every file, that every picture, text, JSON and npz can be decoded, and that no tar file is left over.
    ``on_shard`` is called before each shard and may raise to stop.
    """
    problems = {}
    for shard in dataset.shards:
        on_shard(shard)
        found = verify_shard(dataset, shard) if dataset.sidecar(shard).exists() else []
        if found:
            problems[shard] = found
    return {**problems, **_find_strays(dataset)}


def _find_strays(dataset: Dataset) -> dict[int, list[str]]:
    names = [re.fullmatch(r"shard-(\d+)\.tar", path.name) for path in sorted(dataset.folder.glob("shard-*.tar"))]
    return {
        int(name[1]): [f"{name[0]} is beyond the {len(dataset.shards)} shards of this data set: remove it"]
        for name in names
        if name and int(name[1]) not in dataset.shards
    }


def repair(dataset: Dataset, shards) -> None:
    """Forget these shards, so that ``generate`` makes them anew."""
    for shard in shards:
        remove(dataset.sidecar(shard))


def verify_shard(dataset: Dataset, shard: int) -> list[str]:
    """All that is wrong with one shard that has a sidecar."""
    try:
        sidecar = read_sidecar(dataset.sidecar(shard))
    except (OSError, ValueError) as error:
        return [f"its sidecar cannot be read ({error})"]
    problems, facts, tar = _check_counts(dataset, shard, sidecar), sidecar["tar"], dataset.tar(shard)
    if sidecar["fingerprint"] != dataset.fingerprint:
        problems.append(f"it was made with other settings ({sidecar['fingerprint']}, not {dataset.fingerprint})")
    if facts["name"] != tar.name:
        problems.append(f"its sidecar is of {facts['name']}")
    if not tar.is_file():
        return [*problems, f"{tar.name} is missing"]
    if tar.stat().st_size != facts["bytes"]:
        problems.append(f"{tar.name} has {tar.stat().st_size} bytes instead of {facts['bytes']}")
    elif sha256_of_file(tar) != facts["sha256"]:
        problems.append(f"{tar.name} has changed (SHA-256 differs)")
    return problems + _check_members(tar, sidecar["items"])


def _check_counts(dataset: Dataset, shard: int, sidecar: dict) -> list[str]:
    problems, items = [], dataset.items(shard)
    expected, listed = dataset.keys(shard, sidecar), list(sidecar["items"])
    # Fewer, but the first of them: it was finished before the data set grew, and is made anew.
    if not (listed or sidecar["absent"]) or listed != expected[: len(listed)]:
        problems.append(f"its sidecar lists {len(listed)} items, not the {len(expected)} from {key_of(items[0])} "
                        f"to {key_of(items[-1])}")  # fmt: skip
    if sidecar["kept"] != len(sidecar["items"]) or sidecar["rejected"] != len(sidecar["rejects"]):
        problems.append("its sidecar's counts of items kept or rejected do not add up")
    if any(reject["item"] not in items or reject["attempt"] < 0 for reject in sidecar["rejects"]):
        problems.append("its sidecar lists rejects of items that are not its own")
    return problems


def _check_members(tar_path: Path, index: dict[str, dict]) -> list[str]:
    """Read the tar file itself, from front to back, and hold what is found against the index."""
    problems, found = [], []
    try:
        with tarfile.open(tar_path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                found.append((key, extension, [member.offset_data, member.size]))
                problems += _check_member(extension, member.name, tar.extractfile(member).read())
    except (tarfile.TarError, OSError, EOFError) as error:
        problems.append(f"{tar_path.name} is no complete tar file ({error})")
    listed = [(key, extension, place) for key, files in index.items() for extension, place in files.items()]
    if found != listed:
        problems.append(f"{tar_path.name} holds {len(found)} files, which are not the {len(listed)} of its sidecar")
    return problems


def _check_member(extension: str, name: str, data: bytes) -> list[str]:
    try:
        decode(extension, data)
    except Exception as error:  # each format's reader has its own ways to fail
        return [f"{name} cannot be decoded ({type(error).__name__}: {error})"]
    return []
