"""From faces to rows of embeddings, one each picture."""

import torch
from torch import Tensor

from ..faces import Face, FaceBackend, Faces, find_faces


def face_vectors(backend: FaceBackend, images: Tensor) -> Tensor:
    """Embedding [B, D] of the largest face in each of images [B, 3, H, W] in 0..1; NaN where there is none."""
    return vectors_of(find_faces(backend, images))


def vectors_of(faces: Faces) -> Tensor:
    """Embedding [B, D] of the first face of each picture; NaN where there is none, [B, 1] where no picture has one.

    Raises ``ValueError`` for faces without embeddings.
    """
    first = [found[0] if found else None for found in faces.images]
    if any(face is not None and face.embedding is None for face in first):
        raise ValueError("the faces have no embeddings: switch embeddings on where they are detected.")
    width = next((len(face.embedding) for face in first if face is not None), 1)
    return torch.stack([_vector(face, width) for face in first])


def _vector(face: Face | None, width: int) -> Tensor:
    return torch.full((width,), torch.nan) if face is None else face.embedding.float()
