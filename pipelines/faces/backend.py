"""What finds and embeds faces: one interface, and the backends by name."""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..images import check_image
from .face import Face, Faces
from .select import ordered

OnStep = Callable[[int, int], None]
DEVICES = ("auto", "cpu", "cuda")
PACKS = ("antelopev2", "buffalo_l")


@dataclass(frozen=True)
class BackendSettings:
    """Where a backend's files are and what it runs on.

    models: ComfyUI's ``models`` folder, or one laid out like it; pack: InsightFace's model pack; device: one of
    ``DEVICES``, "auto" takes CUDA where the backend can use it; gpu: which one of several, for InsightFace.
    """

    models: Path
    pack: str = "antelopev2"
    device: str = "auto"
    gpu: int = 0


class FaceBackend(Protocol):
    """A detector and an embedder.

    name: as in ``BACKENDS``; embedder: name of the space that its embeddings are in; licence: what its weights may be
    used for; notes: what a person should be told of how it runs, such as that it fell back to the CPU.
    """

    name: str
    embedder: str
    licence: str
    notes: tuple[str, ...]

    @staticmethod
    def has_files(models: Path, pack: str) -> bool:
        """True if the folder ``models`` holds what this backend finds faces with."""

    def detect(self, images: Tensor, on_step: OnStep = ...) -> list[list[Face]]:
        """The faces in each of images [B, 3, H, W] in 0..1, without embeddings; ``on_step(done, total)`` may raise."""

    def prepare_embedder(self) -> None:
        """Load what ``embed`` needs. Raises ``ValueError`` where it is missing, before anybody waits for faces."""

    def embed(self, images: Tensor, faces: list[list[Face]], on_step: OnStep = ...) -> list[list[Face]]:
        """The same faces with embeddings. Raises ``ValueError`` where the embedder's weights are missing."""


# By name, so that what a backend needs is imported only where it is used.
BACKENDS = {
    "embedded": (".embedded", "EmbeddedBackend"),
    "opencv": (".opencv", "OpenCvBackend"),
    "insightface": (".insightface", "InsightFaceBackend"),
}


def load_backend(name: str, settings: BackendSettings) -> FaceBackend:
    """A backend of ``BACKENDS``; its notes are logged as warnings.

    Raises ``ValueError`` for other names and where its files are missing.
    """
    if name not in BACKENDS:
        raise ValueError(f"there is no face backend {name!r}: choose one of {', '.join(BACKENDS)}.")
    if settings.device not in DEVICES:
        raise ValueError(f"device of the face backend is {settings.device!r}: choose one of {', '.join(DEVICES)}.")
    backend = backend_class(name)(settings)
    for note in backend.notes:
        logging.warning(note)
    return backend


def backend_class(name: str) -> type[FaceBackend]:
    """The class of a backend of ``BACKENDS``."""
    module, kind = BACKENDS[name]
    return getattr(importlib.import_module(module, __package__), kind)


def quiet(_done: int, _total: int) -> None:
    """Takes progress and says nothing."""


def find_faces(
    backend: FaceBackend | None, images: Tensor, min_score: float = 0.5, order: str = "largest first",
    embed: bool = True, given: list[list[Face]] | None = None, on_step: OnStep = quiet,
) -> Faces:  # fmt: skip
    """The faces of images [B, 3, H, W] in 0..1: detected, or ``given`` by somebody else; embedded where asked for.

    The backend may be None where faces are given and are not to be embedded. Raises ``ValueError`` for images that are
    none, and for what the backend lacks.
    """
    images = check_image(images, "image")
    if embed:
        backend.prepare_embedder()
    found = backend.detect(images, on_step) if given is None else given
    if len(found) != len(images):
        raise ValueError(f"faces are given for {len(found)} pictures, the image is a batch of {len(images)}.")
    found = [[face.with_landmarks() for face in ordered(faces, order, min_score)] for faces in found]
    if embed:
        found = backend.embed(images, found, on_step)
    embedder, licence = (backend.embedder, backend.licence) if embed else (None, "")
    return Faces(tuple(map(tuple, found)), tuple(images.shape[-2:]), embedder, licence)
