"""Identities as safetensors files: the embeddings, and in the metadata what made them."""

from pathlib import Path

from ..optional import need
from ..weights.checks import save_finite
from .face import Identity

FORMAT, VERSION = "likeness-identity", "1"


def save_identity(identity: Identity, path: str | Path, overwrite: bool = False) -> None:
    """Write an identity, whole or not at all. Raises ``FileExistsError`` where a file is there already."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another name, or say that it may be overwritten.")
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "format": FORMAT, "format_version": VERSION, "embedder": identity.embedder, "licence": identity.licence,
        "count": str(len(identity.embeddings)),
    }  # fmt: skip
    save_finite(path, {"embeddings": identity.embeddings.contiguous()}, facts, "detect the face again")


def load_identity(path: str | Path) -> Identity:
    """Read what ``save_identity`` wrote. Raises ``ValueError`` for a missing file and for any other."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Save an identity first.")
    try:
        with need("safetensors", "safetensors").safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except Exception as error:  # SafetensorError is no stable name
        raise ValueError(f"{path} is no safetensors file ({error}): choose a file of Save Identity.") from None
    if facts.get("format") != FORMAT or set(tensors) != {"embeddings"} or tensors["embeddings"].ndim != 2:
        raise ValueError(f"{path} holds no identity: choose a file that Save Identity wrote.")
    if facts.get("format_version") != VERSION:
        raise ValueError(f"{path} is an identity of format {facts.get('format_version')}, this pack reads {VERSION}.")
    if not facts.get("embedder") or facts.get("count") != str(len(tensors["embeddings"])):
        raise ValueError(f"{path} names no embedder or a wrong number of embeddings: save it again.")
    return Identity(tensors["embeddings"], facts["embedder"], facts.get("licence", ""))
