"""Faces in pictures: who is where, cut out and put back.

``face``       one face, the faces of a batch, and the identity that embeddings stand for
``backend``    the interface of detectors and embedders, and ``load_backend``; each in a file of its own: ``embedded``
               (``cascade``), ``opencv``, ``insightface``
``interchange``  faces that ComfyUI's own nodes found
``select``     which faces are meant
``align``, ``crop``  crops by landmarks or box, and back; ``draw`` for looking
``identity_file``  identities as safetensors
"""

from .align import align_faces
from .backend import BACKENDS, BackendSettings, FaceBackend, find_faces, load_backend
from .crop import crop_faces, paste_faces
from .face import CropSettings, Face, Faces, Identity, identity_of
from .identity_file import load_identity, save_identity
from .select import CHOICES, ORDERS, choose

__all__ = [
    "BACKENDS", "CHOICES", "ORDERS", "BackendSettings", "CropSettings", "Face", "FaceBackend", "Faces", "Identity",
    "align_faces", "choose", "crop_faces", "find_faces", "identity_of", "load_backend", "load_identity", "paste_faces",
    "save_identity",
]  # fmt: skip
