"""Reading a data set: item by item in order, or any item by its number, without any package for it.

``webdataset`` reads the same tar files; this reader knows, too, which shards are finished and where each file lies, so
a trainer can draw items in any order.
"""

from collections.abc import Container, Iterator
from pathlib import Path

from .dataset import DatasetError, open_dataset
from .recipe import decode


class DatasetReader:
    """A sequence of items, each a dict: "__key__", and the decoded files by extension (see ``recipe.decode``).

    With ``partial`` the items of finished shards only, else a data set that is not finished raises ``DatasetError``.
    Safe to use from several processes: nothing is held open.
    """

    def __init__(self, folder: str | Path, partial: bool = False):
        self.dataset = open_dataset(folder)
        self._places: list[tuple[Path, str, dict[str, list[int]]]] = []
        unfinished = []
        for shard in self.dataset.shards:
            sidecar = self.dataset.finished(shard)
            if sidecar is None:
                unfinished.append(shard)
            else:
                tar = self.dataset.tar(shard)
                self._places += [(tar, key, sidecar["items"][key]) for key in self.dataset.keys(shard, sidecar)]
        if unfinished and not partial:
            raise DatasetError(
                f"{folder}: {len(unfinished)} of {len(self.dataset.shards)} shards are not finished (the first is "
                f"{unfinished[0]}): run generate again, or take the finished ones with --partial, "
                "where the command has it."
            )

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[dict]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict:
        return {"__key__": self.key(index), **self.files(index)}

    def key(self, index: int) -> str:
        """The name of an item."""
        return self._places[index][1]

    def files(self, index: int, only: Container[str] | None = None) -> dict:
        """The decoded files of an item by extension, all or only some.

        Raises ``DatasetError`` for one that is damaged.
        """
        key, files = self.read_bytes(index, only)
        return {extension: self._decoded(key, extension, data) for extension, data in files.items()}

    def _decoded(self, key: str, extension: str, data: bytes):
        try:
            return decode(extension, data)
        except Exception as error:  # each format's reader has its own ways to fail
            raise self.damage(key, extension, f"{type(error).__name__}: {error}") from error

    def damage(self, key: str, extension: str, reason: str) -> DatasetError:
        """The error for a file that is not what was written, with the mend."""
        folder = self.dataset.folder
        return DatasetError(f"{folder}: {extension} of item {key} is damaged ({reason}). To mend it: python "
                            f"nodes/dataset_cli.py verify {folder} --repair, then generate again.")  # fmt: skip

    def read_bytes(
        self, index: int, only: Container[str] | None = None, most: int | None = None
    ) -> tuple[str, dict[str, bytes]]:
        """Key and undecoded files of an item; only those of some extensions, and at most so many bytes of each."""
        tar, key, places = self._places[index]
        files = {}
        with open(tar, "rb") as file:
            for extension, (offset, size) in places.items():
                if only is None or extension in only:
                    file.seek(offset)
                    files[extension] = file.read(size if most is None else min(size, most))
        return key, files
