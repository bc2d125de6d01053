"""Photos that a recipe reads: a folder of them, and what tells it from another one."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ..files import sampled_checksum
from ..images import IMAGE_EXTENSIONS


def find_photos(folder: Path) -> list[Path]:
    """All pictures of ``folder`` and its subfolders, by name, but for hidden ones.

    Raises ``ValueError`` saying what to change.
    """
    if not folder.is_dir():
        raise ValueError(f"--photos is {folder}: no such folder.")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file())
    # By the parts of their names, because Windows would sort paths without regard to capitals: items tell photos by
    # their place in this list, which has to be the same everywhere.
    photos = sorted((path for path in found if not _is_hidden(path.relative_to(folder))),
                    key=lambda path: path.relative_to(folder).parts)  # fmt: skip
    if not photos:
        kinds = ", ".join(IMAGE_EXTENSIONS)
        raise ValueError(
            f"--photos is {folder}: neither it nor its subfolders have a file that ends in {kinds}, hidden ones aside."
        )
    for name in (str(photo.relative_to(folder)) for photo in photos):
        if name.encode(errors="replace").decode() != name:
            raise ValueError(f"--photos has a file named {name!r}, which is no UTF-8: rename it, items tell its name.")
    return photos


def _is_hidden(name: Path) -> bool:
    # Among them what macOS puts beside photos on other drives and into archives: ._photo.jpg, which is no picture.
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def digest_of(folder: Path, files: Sequence[Path]) -> str:
    """What tells ``files`` from others, quickly: of those below ``folder`` path and size, which do for photos.

    Of others, which are weights, name and ``sampled_checksum``: models of one shape have all names and sizes in common.
    """
    lines = [
        f"{file.relative_to(folder).as_posix()} {file.stat().st_size}"
        if file.is_relative_to(folder)
        else f"{file.name} {sampled_checksum(file)}"
        for file in files
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
