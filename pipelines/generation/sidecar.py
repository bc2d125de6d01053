"""The JSON files of a data set, read with distrust: whatever is in them, the answer is a record or a ``ValueError``."""

import json
from pathlib import Path

from .recipe import EXTENSION

KINDS = {"fingerprint": str, "tar": dict, "kept": int, "rejected": int, "rejects": list, "items": dict}
TAR_KINDS = {"name": str, "bytes": int, "sha256": str}
REJECT_KINDS = {"item": int, "attempt": int, "reason": str}


def read_record(path: Path, kinds: dict[str, type]) -> dict:
    """The object in a JSON file that has at least these keys, with values of these types."""
    content = json.loads(path.read_text(encoding="utf-8"))
    check_kinds(content, kinds)
    return content


def check_kinds(content, kinds: dict[str, type]) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"it holds {str(content)[:40]!r} where an object is expected")
    for name, kind in kinds.items():
        value = content.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {str(value)[:40]!r}, not {kind.__name__}")


def read_sidecar(path: Path) -> dict:
    """A shard's sidecar, as ``shard`` writes it. Raises ``OSError``, or ``ValueError`` saying what is wrong."""
    content = read_record(path, KINDS)
    check_kinds(content["tar"], TAR_KINDS)
    for reject in content["rejects"]:
        check_kinds(reject, REJECT_KINDS)
    for key, files in content["items"].items():
        check_kinds(files, {})
        for extension, place in files.items():
            _check_place(key, extension, place)
    content.setdefault("absent", [])
    check_kinds(content, {"absent": list})
    return content


def _check_place(key: str, extension: str, place) -> None:
    # Extensions become names of files and folders when the data set is exported.
    if not EXTENSION.fullmatch(extension):
        raise ValueError(f"item {key} has the extension {extension!r}: allowed are letters, digits, _, - and single .")
    if not (isinstance(place, list) and len(place) == 2 and all(type(part) is int and part >= 0 for part in place)):
        raise ValueError(f"item {key} has {extension} at {place!r}, not at [offset, size]")
