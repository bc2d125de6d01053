"""What a recipe is, and how the things it returns become files."""

import io
import json
import re
from typing import Protocol, TypeAlias

import torch

from ..images import to_uint8

# By extension of the file: a picture [3, H, W] or [1, H, W] in 0..1 (becomes a PNG), a text, an object for JSON, named
# arrays (for npz), or the bytes of the file.
Content: TypeAlias = torch.Tensor | str | dict | list | bytes
PNG_COMPRESSION = 6
PICTURES = ("png", "jpg", "jpeg", "webp")
# "png", "source.png": they become names of files and folders, so nothing that leads out of a folder.
EXTENSION = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class Rejected(Exception):
    """This attempt is not good enough; the engine notes why and makes the next one.

    The message is the reason. Reasons are counted, so keep numbers out of them, and name the setting that decides:
    "crop too flat (--min-contrast)".
    """


class Absent(Exception):
    """There is no such item, whatever the seed: its shard is finished without it.

    For a recipe that cannot tell its ``count`` before it has looked closely. The message is the reason, as above.
    """


class Recipe(Protocol):
    """How to make one item of a data set.

    The constructor is cheap: it checks its settings and raises ``ValueError`` saying what to change. Models are loaded
    at the first ``make`` and kept. ``make`` may depend on nothing but its arguments and the settings.
    """

    name: str
    summary: str  # one line for list-recipes
    version: int  # raise it when the same settings come to give other items
    Settings: type  # a frozen dataclass with fields made by ``configuration.option``

    settings: object
    count: int | None  # how many different items there are; None: as many as asked for
    uses_device: bool  # False if all is done on the CPU: workers are then counted by cores; may be left out
    inputs: str  # a digest of the files the recipe reads, "" where it reads none: other input is another data set

    def __init__(self, settings, device: str): ...

    def advice(self) -> str:
        """What to tell who has it made on a CPU, "" for nothing; may be left out."""

    def parameters(self, item: int, seed: int) -> dict:
        """What to make as item number ``item``, fit for JSON; ``seed`` is another one at each attempt."""

    def make(self, parameters: dict, seed: int) -> dict[str, Content]:
        """The files of one item by extension ("png", "source.png", "txt", "json", "npz"), or raise ``Rejected``,
        or ``Absent``."""


def encode(extension: str, content: Content) -> bytes:
    """The bytes of a file; the same content gives the same bytes. Raises ``ValueError`` where they do not go together.

    Text is UTF-8 without a final newline, JSON is in one line with sorted keys.
    """
    if isinstance(content, bytes):
        return content
    kind = extension.rsplit(".", 1)[-1]
    if isinstance(content, torch.Tensor) and kind == "png":
        return _encode_png(extension, content)
    if isinstance(content, (dict, list)) and kind == "json":
        return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    if isinstance(content, dict) and kind == "npz":
        return _encode_npz(content)
    if isinstance(content, str) and kind not in ("png", "json", "npz"):
        return content.encode()
    raise ValueError(f"a recipe returned a {type(content).__name__} as {extension!r}: see Content in recipe.py.")


def _encode_png(extension: str, image: torch.Tensor) -> bytes:
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3) or not torch.isfinite(image).all():
        raise ValueError(f"a recipe returned {tuple(image.shape)} as {extension!r}: expected finite [3 or 1, H, W].")
    pixels = to_uint8(image.float())
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels if image.shape[0] == 3 else pixels[..., 0])
    picture.save(buffer, format="PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


def _encode_npz(arrays: dict) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(arrays[name]) for name in sorted(arrays)})
    return buffer.getvalue()


def decode(extension: str, data: bytes):
    """The inverse of ``encode``: pictures as [3 or 1, H, W] in 0..1, other kinds as text where they are, else as bytes.

    Raises whatever the format's reader raises on broken data.
    """
    kind = extension.rsplit(".", 1)[-1]
    if kind in PICTURES:
        return _decode_image(data)
    if kind == "json":
        return json.loads(data)
    if kind == "npz":
        import numpy as np

        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return data.decode() if kind in ("txt", "cls") else data


def _decode_image(data: bytes) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        pixels = np.asarray(picture if picture.mode == "L" else picture.convert("RGB")).copy()
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1).float() / 255
