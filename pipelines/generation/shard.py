"""From items to a shard: a tar file whose bytes follow from the settings alone, and its sidecar."""

import tarfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from ..files import TEMPORARY_PREFIX, atomic_file, remove, sha256_of_file, write_json
from ..randomness import seed_of
from .dataset import Dataset, key_of
from .recipe import EXTENSION, Absent, Recipe, Rejected, encode


class RecipeFailed(Exception):
    """The recipe raised an error, which is the cause of this one: no fault of the shard's files or their disk."""


class OutOfAttempts(Exception):
    """An item was rejected too often; the message counts the reasons and says what to change."""


def make_shard(
    dataset: Dataset,
    shard: int,
    recipe: Recipe,
    max_attempts: int,
    on_attempt: Callable[[int, int], None],
    before_publishing: Callable[[], None] = lambda: None,
) -> None:
    """Write tar file and sidecar of ``shard``; on any exception nothing is left behind.

    ``on_attempt(item, rejects so far)`` is called before every attempt and may raise to stop, ``before_publishing``
    before the files get their names. Raises ``OutOfAttempts``, ``DiskFullError``, ``RecipeFailed``.
    """
    tar_path, rejects, index, absent = dataset.tar(shard), [], {}, []
    _remove_leftovers(tar_path)
    with atomic_file(tar_path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for item in dataset.items(shard):
                files = _make_item(dataset, item, recipe, max_attempts, rejects, on_attempt)
                if files is None:
                    absent.append(key_of(item))
                else:
                    index[key_of(item)] = _add_item(tar, key_of(item), files)
        before_publishing()
        facts = {"name": tar_path.name, "bytes": temporary.stat().st_size, "sha256": sha256_of_file(temporary)}
        # A shard that grows has a sidecar already, which must not outlive the tar file it describes.
        remove(dataset.sidecar(shard))
    sidecar = {"fingerprint": dataset.fingerprint, "tar": facts, "kept": len(index), "rejected": len(rejects)}
    lacks = {"absent": absent} if absent else {}
    write_json(dataset.sidecar(shard), {**sidecar, **lacks, "rejects": rejects, "items": index})


def _make_item(
    dataset: Dataset, item: int, recipe: Recipe, max_attempts: int, rejects: list, on_attempt
) -> dict[str, bytes] | None:
    """The encoded files of an item by extension, None where there is no such item.

    Every item has a "json" that tells how to make it again.
    """
    reasons = Counter()
    for attempt in range(max_attempts):
        on_attempt(item, len(rejects))
        try:
            return _try_item(dataset, item, attempt, recipe)
        except Rejected as rejected:
            reasons[str(rejected)] += 1
            rejects.append({"item": item, "attempt": attempt, "reason": str(rejected)})
        except Absent as absent:
            rejects.append({"item": item, "attempt": attempt, "reason": str(absent)})
            return None
        except Exception as error:
            raise RecipeFailed(f"item {item}, attempt {attempt}") from error
    tally = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    raise OutOfAttempts(
        f"item {item} was rejected {max_attempts} times ({tally}). Start again with a larger --max-attempts; or begin "
        "a new folder with looser settings, those that the reasons name; or do without this shard (--partial)."
    )


def _try_item(dataset: Dataset, item: int, attempt: int, recipe: Recipe) -> dict[str, bytes]:
    seed = seed_of(dataset.seed, recipe.name, item, attempt)
    parameters = recipe.parameters(item, seed)
    files = recipe.make(parameters, seed)
    origin = {"item": item, "attempt": attempt, "seed": seed, "parameters": parameters}
    files = {**files, "json": {**files.get("json", {}), **origin}}
    return {extension: encode(extension, content) for extension, content in files.items()}


def _add_item(tar: tarfile.TarFile, key: str, files: dict[str, bytes]) -> dict[str, list[int]]:
    """Append the files in sorted order; returns where each one's bytes are: [offset, size] by extension."""
    places = {}
    for extension in sorted(files):
        if not EXTENSION.fullmatch(extension):
            raise ValueError(f"a recipe returned a file named {extension!r}: letters, digits, _, - and single dots "
                             "between them are allowed.")  # fmt: skip
        header = tarfile.TarInfo(f"{key}.{extension}")  # its defaults are constant: time 0, user 0, mode 644
        header.size = len(files[extension])
        places[extension] = [tar.offset + tarfile.BLOCKSIZE, header.size]
        tar.addfile(header, BytesIO(files[extension]))
    return places


def _remove_leftovers(tar_path: Path) -> None:
    """What a killed worker, here or on another machine, left of this shard: whoever has the lease may remove it."""
    for leftover in tar_path.parent.glob(f"{TEMPORARY_PREFIX}*-{tar_path.stem}.*"):
        remove(leftover)
