"""A data set as a plain folder of pictures and captions, as trainers of others read it."""

import json
from collections.abc import Callable
from pathlib import Path

from ..files import atomic_folder, remove_leftovers
from .dataset import DatasetError
from .reader import DatasetReader
from .recipe import PICTURES


def export_folder(
    reader: DatasetReader, target: str | Path, on_item: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write ``000000012.png``, ``000000012.txt`` and ``metadata.jsonl`` to the new folder ``target``, all at once.

    Further files go into folders of their own, under the same names: ``source.png`` to ``source/000000012.png``. The
    metadata has a line an item: "file_name" and "source_file_name" of its pictures, "text", and what its JSON says.
    ``on_item(done, total)`` may raise to stop. Raises ``DatasetError`` if ``target`` has content, ``DiskFullError``.
    """
    target = Path(target)
    if target.is_symlink():
        raise DatasetError(f"{target} is a symbolic link: name the folder it points to, or a new one.")
    if target.exists():
        if not target.is_dir() or any(target.iterdir()):
            raise DatasetError(f"{target} exists and is not empty: remove it, or choose another folder.")
        target.rmdir()
    remove_leftovers(target.parent)
    with atomic_folder(target) as folder, open(folder / "metadata.jsonl", "w", encoding="utf-8", newline="\n") as lines:
        for index in range(len(reader)):
            on_item(index, len(reader))
            line = _export_item(folder, *reader.read_bytes(index))
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _export_item(folder: Path, key: str, files: dict[str, bytes]) -> dict:
    """Write the files of one item, and return its line of metadata."""
    line = {}
    for extension, data in sorted(files.items()):
        *subfolder, kind = extension.split(".")
        if extension == "json":
            line.update(json.loads(data))
            continue
        name = "/".join([*subfolder, f"{key}.{kind}"])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        if extension == "txt":
            line["text"] = data.decode()
        elif kind in PICTURES:
            line["_".join([*subfolder, "file_name"])] = name
    return line
