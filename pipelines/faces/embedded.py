"""The backend that needs no download: the embedded face detector for the portrait world, scikit-image's cascade for
photographs, and the embedded face embedder."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..files import sha256_of_file
from ..weights.pretrained import load_pretrained
from .align import align_faces, template
from .backend import BackendSettings, OnStep, quiet
from .cascade import Cascade, without_overlap
from .crop import shrunk
from .face import Face
from .portrait_world import find_portrait_faces

# From this score on the detector of the portrait world, which has never seen a photograph, is believed. Nearly all
# renders get more; of some thirty photographs and drawings that it was tried on, only a face got as much.
SURE = 0.8


class EmbeddedBackend:
    """Faces of the portrait world with their landmarks; of photographs boxes of upright and leaning frontal faces, and
    landmarks estimated from them; embeddings for the portrait world.

    Both detectors look at every picture: the faces that the embedded one is sure of count, and those that the cascade
    finds elsewhere. The embedder was trained on rendered people, so on photographs its embeddings tell people apart
    only roughly.
    """

    name = "embedded"
    licence = "Apache-2.0"

    @staticmethod
    def has_files(models: Path, pack: str) -> bool:
        """See ``FaceBackend``; these come with the pack."""
        return True

    def __init__(self, settings: BackendSettings):
        self.cascade = Cascade()
        wants_gpu, has_gpu = settings.device != "cpu", torch.cuda.is_available()
        self.device = torch.device("cuda" if wants_gpu and has_gpu else "cpu")
        asked_in_vain = settings.device == "cuda" and not has_gpu
        self.notes = ("embedded: torch has no CUDA here, the CPU is used",) if asked_in_vain else ()

    @cached_property
    def embedder(self) -> str:
        # Trained anew it is another space, so the weights are part of the name.
        return f"embedded face embedder {sha256_of_file(shipped('face_embedder') / 'model.safetensors')[:8]}"

    def detect(self, images: Tensor, on_step: OnStep = quiet) -> list[list[Face]]:
        """See ``FaceBackend``. Raises ``ValueError`` where the detector's weights are missing."""
        network, found = self._detector, []
        for number, image in enumerate(images, 1):
            sure = [face for face in find_portrait_faces(network, image, self.device) if face.score >= SURE]
            found.append([face.with_landmarks() for face in without_overlap([*sure, *self.cascade.detect(image)])])
            on_step(number, len(images))
        return found

    def prepare_embedder(self) -> None:
        """See ``FaceBackend``."""
        _ = self._network

    @torch.no_grad()
    def embed(self, images: Tensor, faces: list[list[Face]], on_step: OnStep = quiet) -> list[list[Face]]:
        """See ``FaceBackend``."""
        from ..embedded.architectures import FACE_SIZE
        from ..embedded.face_embedder import embed

        network, embedded = self._network, []
        for number, own in enumerate(faces):
            crops = [_aligned(images[number : number + 1], face, FACE_SIZE) for face in own]
            vectors = embed(network, torch.cat(crops).to(self.device) * 2 - 1) if own else []
            embedded.append([face.embedded(vector) for face, vector in zip(own, vectors, strict=True)])
            on_step(number + 1, len(faces))
        return embedded

    @cached_property
    def _network(self):
        folder = shipped("face_embedder")
        from transformers import ConvNextModel

        return load_pretrained(ConvNextModel, folder).to(self.device)

    @cached_property
    def _detector(self):
        folder = shipped("face_detector")
        from ..embedded.face_detector import load_face_detector

        return load_face_detector(folder).to(self.device)


def shipped(component: str) -> Path:
    """The folder of an embedded model. Raises ``ValueError`` where its weights are missing."""
    from ..embedded import SHIPPED

    folder = SHIPPED / component
    if not (folder / "model.safetensors").is_file():
        name, less = component.replace("_", " "), "switch embeddings off, " if component == "face_embedder" else ""
        raise ValueError(
            f"the embedded {name} has no weights ({folder / 'model.safetensors'} is missing): {less}choose another "
            "backend, or install the pack again, whole."
        )
    return folder


def _aligned(image: Tensor, face: Face, size: int) -> Tensor:
    """The crop [1, 3, size, size] as the embedder was trained with it, of an image [1, 3, H, W] of any size."""
    points = face.with_landmarks().landmarks[None]
    eyes_apart = float((points[0, 1] - points[0, 0]).norm())
    picture, factor = shrunk(image, eyes_apart / float((template(size)[1] - template(size)[0]).norm()))
    return align_faces(picture, points * factor.cpu(), size)
