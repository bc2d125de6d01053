"""A folder of pictures with captions, and the sizes they are trained at."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import sha256_of_file
from ..images import IMAGE_EXTENSIONS, from_uint8, open_picture

OTHER_EXTENSIONS = {".heic", ".heif", ".avif", ".gif", ".jxl", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw"}
CAPTION_EXTENSIONS = (".txt", ".caption")
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Picture:
    """A decodable picture: size ``(H, W)`` upright, checksum of the file; no caption is None."""

    path: Path
    size: tuple[int, int]
    checksum: str
    caption: str | None


@dataclass(frozen=True)
class FolderScan:
    """All pictures that can be used, and all that cannot, each with path and reason."""

    pictures: list[Picture]
    errors: list[str]
    warnings: list[str]


def scan_folder(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> FolderScan:
    """Decode every picture below ``folder``, find its caption: NAME.txt beside it, or ``metadata.jsonl``.

    ``metadata.jsonl`` has lines with ``file_name`` (from its own folder) and ``text``. What a line names under another
    key (``mask_file_name``, as ``export-folder`` writes) only goes with a picture, and is passed over. Finds files that
    do not decode, captions without a picture, pictures that are there twice, and formats that are not read.
    ``progress`` may raise.
    """
    if not folder.is_dir():
        return FolderScan([], [f"{folder}: no such folder. Give the folder with the pictures."], [])
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    table, companions, errors = _read_metadata(files)
    candidates = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS and path not in companions]
    pictures = []
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(_decode, candidates)
        for number, (path, (found, error)) in enumerate(zip(candidates, decoded, strict=True), 1):
            _or_cancel(pool, progress, number, len(candidates))
            if error:
                errors.append(error)
                continue
            try:
                pictures.append(Picture(path, *found, _caption(path, table)))
            except (OSError, UnicodeDecodeError) as bad:
                errors.append(f"the caption of {path} cannot be read ({bad}): save it as UTF-8 text.")
    if not candidates:
        errors.append(f"{folder} has no pictures ({', '.join(sorted(IMAGE_EXTENSIONS))}).")
    warnings = [*_duplicates(pictures), *_lonely_captions(files, candidates, table), *_other_formats(files)]
    return FolderScan(pictures, errors, warnings)


def _or_cancel(pool: ThreadPoolExecutor, progress: Callable[[int, int], None], done: int, total: int) -> None:
    try:
        progress(done, total)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _other_formats(files: list[Path]) -> list[str]:
    others = [path for path in files if path.suffix.lower() in OTHER_EXTENSIONS]
    shown = ", ".join(path.name for path in others[:5]) + (", ..." if len(others) > 5 else "")
    return [f"{len(others)} pictures are not read: {shown}. Save them as PNG or JPEG."] if others else []


def _decode(path: Path):
    try:
        picture = open_picture(path)
        return ((picture.height, picture.width), sha256_of_file(path)), None
    except (ValueError, OSError) as error:
        return None, str(error)


def _caption(path: Path, table: dict[Path, str]) -> str | None:
    for extension in CAPTION_EXTENSIONS:
        beside = path.with_suffix(extension)
        if beside.is_file():
            return " ".join(beside.read_text(encoding="utf-8-sig").split())
    return table.get(path)


def _read_metadata(files: Iterable[Path]) -> tuple[dict[Path, str], set[Path], list[str]]:
    """Captions by picture, files that only go with a picture (masks, sources), and what is wrong."""
    table, companions, errors = {}, set(), []
    for path in files:
        if path.name != METADATA:
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as bad:
            errors.append(f"{path} cannot be read ({bad}): save it as UTF-8 text.")
            continue
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line) if line.strip() else None
                if entry is not None:
                    table[path.parent / entry["file_name"]] = " ".join(entry["text"].split())
                    companions |= {path.parent / entry[key] for key in entry if key.endswith("_file_name")}
            except (ValueError, KeyError, TypeError, AttributeError):
                errors.append(f'{path}, line {number}: expected {{"file_name": "...", "text": "..."}}.')
    return table, companions - set(table), errors


def _duplicates(pictures: list[Picture]) -> list[str]:
    first: dict[str, Path] = {}
    return [
        f"{picture.path} is the same file as {first[picture.checksum]}."
        for picture in pictures
        if first.setdefault(picture.checksum, picture.path) != picture.path
    ]


def _lonely_captions(files: list[Path], pictures: list[Path], table: dict[Path, str]) -> list[str]:
    named = {path.with_suffix("") for path in pictures}
    lonely = [path for path in files if path.suffix in CAPTION_EXTENSIONS and path.with_suffix("") not in named]
    missing = sorted(set(table) - set(pictures))
    return [f"{path} has no picture." for path in lonely] + [f"{path}, in {METADATA}, is missing." for path in missing]


def bucket_for(size: tuple[int, int], resolution: int, step: int) -> tuple[int, int]:
    """The training size ``(H, W)`` nearest in shape to ``size``.

    Sides are multiples of ``step`` from half to twice the resolution, and none could grow by a step without the area
    becoming more than resolution^2.
    """
    aspect = size[0] / size[1]

    def distance(bucket: tuple[int, int]) -> tuple[float, int]:
        return round(abs(math.log(bucket[0] / bucket[1] / aspect)), 9), -bucket[0] * bucket[1]

    return min(buckets(resolution, step), key=distance)


@functools.cache
def buckets(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    """All training sizes ``(H, W)`` of a resolution."""
    if resolution < step:
        raise ValueError(f"resolution is {resolution}, smaller than bucket_step {step}: raise one or lower the other.")
    low, high = max(step, resolution // 2 // step * step), 2 * resolution // step * step

    def other_side(side: int) -> int:
        return min(resolution**2 // side // step * step, high)

    shapes = ((other_side(width), width) for width in range(low, high + 1, step))
    return tuple((height, width) for height, width in shapes if height >= low and other_side(height) == width)


def cover_crop(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(size ``(H, W)`` to resize to so that it covers ``bucket``, top left corner of the central crop)."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    resized = tuple(max(side, round(length * scale)) for side, length in zip(bucket, size, strict=True))
    return resized, tuple((length - side) // 2 for length, side in zip(resized, bucket, strict=True))


def load_for_bucket(path: Path, bucket: tuple[int, int], flip: bool = False) -> torch.Tensor:
    """The picture resized (Lanczos) and cropped around its centre to ``bucket``: ``[1, 3, H, W]`` in 0..1."""
    import numpy as np
    from PIL import Image

    picture = open_picture(path)
    (height, width), (top, left) = cover_crop((picture.height, picture.width), bucket)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    picture = picture.crop((left, top, left + bucket[1], top + bucket[0]))
    image = from_uint8(np.asarray(picture))
    return image.flip(-1) if flip else image


def text_checksum(text: str) -> str:
    """Key of a caption."""
    return hashlib.sha256(text.encode()).hexdigest()
