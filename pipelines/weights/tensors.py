"""Tensors of weight files in any published form: safetensors, or pickles that are converted once and never run."""

import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import atomic_file

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
ORIGIN = "converted_from"  # in the metadata of a conversion: size and time of its source

logger = logging.getLogger(__name__)


def load_tensors(path: Path, convert: bool = True) -> dict[str, Tensor]:
    """All tensors of a file by name, on the CPU; of nested dictionaries and lists with dots between the names.

    A pickle is read as data only (``weights_only``): one that would call anything else is refused and nothing of it
    runs. With ``convert`` its tensors are kept beside it as NAME.safetensors, which the next call reads instead while
    the pickle is unchanged.

    Raises ``ValueError`` for a file that is missing, damaged, of another kind, or unsafe.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: `python nodes/weights_cli.py list` says what there is to download.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix.lower() not in PICKLES:
        raise ValueError(f"{path} is no weight file (.safetensors, {', '.join(sorted(PICKLES))}): give another one.")
    converted = path.with_name(f"{path.name}.safetensors")
    if convert and _origin(converted) == _stamp(path):
        return _read_safetensors(converted)
    tensors = _read_pickle(path)
    if convert:
        _keep(tensors, converted, path)
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not fully downloaded ({error}): get it again.") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of bytes that are no pickle anything can come
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused is None:
            kind = type(error).__name__
            raise ValueError(f"{path} is damaged or no file of torch ({kind}): get it again.") from error
        raise ValueError(
            f"{path} holds more than tensors ({refused[1]}) and was refused, nothing in it ran. Get it as "
            ".safetensors, or have its publisher save the tensors alone."
        ) from None  # torch's text tells how to switch the protection off
    tensors = dict(_flat(content)) if isinstance(content, Mapping) else {}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name ({type(content).__name__}): give a state dict.")
    return tensors


def _flat(content: Mapping, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield from _flat(dict(enumerate(value)), f"{prefix}{name}.")


def _stamp(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _origin(converted: Path) -> str | None:
    """The stamp of the pickle that a file was converted from; None for any other file, and for none."""
    try:
        with safe_open(converted, framework="pt") as file:
            return (file.metadata() or {}).get(ORIGIN)
    except (SafetensorError, OSError):
        return None


def _keep(tensors: dict[str, Tensor], converted: Path, source: Path) -> None:
    if converted.is_file() and _origin(converted) is None:
        logger.warning("%s is there and no conversion of %s: it stays, and the pickle is read.", converted, source)
        return
    # Tensors that share memory in a pickle cannot do so in safetensors.
    alone = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_file(converted) as temporary:
            save_file(alone, temporary, metadata={"format": "pt", ORIGIN: _stamp(source)})
    except (OSError, SafetensorError) as error:
        logger.warning("%s could not be kept as safetensors (%s): it is read as a pickle each time.", source, error)
