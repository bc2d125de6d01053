"""Encodings kept on disk, by what was encoded and by which weights; shared between runs and processes."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import atomic_file, remove_leftovers
from .task import Source, Task


class TensorCache:
    """One safetensors file for each source.

    A damaged file counts as missing, so it is made again; a changed encoder has other keys, so nothing goes stale.
    """

    def __init__(self, folder: Path, encoder_hashes: dict[str, str]):
        """encoder_hashes: for each kind of source the checksum of what encodes it."""
        self.folder, self._hashes = folder, encoder_hashes

    def path(self, source: Source) -> Path:
        """Where the encoding of this source lies."""
        text = "\x1f".join([source.kind, self._hashes[source.kind], source.content, source.detail])
        key = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def load(self, source: Source) -> dict[str, Tensor]:
        """The encoding. Raises ``ValueError`` where it is missing or damaged."""
        path = self.path(source)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path}, the cached {source.kind} of {source.content[:12]}, cannot be read ({error}): start again, "
                "what is missing is encoded anew."
            ) from error

    def missing(self, sources: Iterable[Source]) -> list[Source]:
        """Those without a readable entry, each once, in their order."""
        return [source for source in dict.fromkeys(sources) if not _readable(self.path(source))]

    def store(self, source: Source, tensors: dict[str, Tensor]) -> None:
        """Write one entry. Raises ``ValueError`` for values that are not finite, ``DiskFullError`` without room."""
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"the encoder made NaN or infinite {name} of it: use a VAE that is made for fp32.")
        path = self.path(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        if _readable(path):  # by now: another run fills the same cache
            return
        try:
            with atomic_file(path) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        except PermissionError:  # Windows: that run reads the entry already
            if not _readable(path):
                raise


def _readable(path: Path) -> bool:
    # Opening compares the header with the length of the file; reading all of a large cache would take minutes.
    try:
        with safe_open(path, "pt") as file:
            return bool(file.keys())
    except (OSError, SafetensorError):
        return False


def clean_cache(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for part in folder.glob("??"):
        remove_leftovers(part)


def fill_cache(
    cache: TensorCache, task: Task, sources: Iterable[Source], check_stop: Callable[[], None],
    progress: Callable[[int, int], None],
) -> list[tuple[Source, str]]:  # fmt: skip
    """Encode what the cache lacks. Returns the sources that could not be encoded, each with the reason.

    ``check_stop`` is called before each one and may raise; what was encoded until then stays.
    """
    missing, failures, done = cache.missing(sources), [], 0
    for kind in dict.fromkeys(source.kind for source in missing):
        with task.encoders(kind):
            for source in (source for source in missing if source.kind == kind):
                check_stop()
                try:
                    cache.store(source, task.encode(source))
                except ValueError as error:
                    failures.append((source, str(error)))
                done += 1
                progress(done, len(missing))
    return failures
