"""OpenCV's permissively licensed pair: YuNet finds faces (Wu et al. 2023), SFace embeds them (Zhong et al. 2021)."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..images import to_uint8
from ..optional import need
from .backend import BackendSettings, OnStep, quiet
from .cascade import without_overlap
from .face import Face

# Below ComfyUI's models.
DETECTOR = "likeness/yunet/face_detection_yunet_2023mar.onnx"
RECOGNISER = "likeness/sface/face_recognition_sface_2021dec.onnx"
# YuNet learnt faces of 10 to 300 pixels: the smaller view shows it those that fill the picture, the larger small ones.
SIDES = (320, 1280)
LOWEST_SCORE = 0.1


class OpenCvBackend:
    """YuNet and SFace on the CPU, from a file each in ``models/likeness/yunet`` and ``sface``."""

    name = "opencv"
    embedder = "opencv sface_2021dec"
    licence = "Apache-2.0"

    @staticmethod
    def has_files(models: Path, pack: str) -> bool:
        """See ``FaceBackend``."""
        return (models / DETECTOR).is_file()

    def __init__(self, settings: BackendSettings):
        self.cv2 = need("cv2", "opencv-python")
        self.models = settings.models
        asked_in_vain = settings.device == "cuda"
        self.notes = ("opencv: its builds for Python run on the CPU, the CPU is used",) if asked_in_vain else ()
        self.detector = self._load(DETECTOR, self.cv2.FaceDetectorYN.create, (320, 320))
        self.detector.setScoreThreshold(LOWEST_SCORE)

    @cached_property
    def recogniser(self):
        return self._load(RECOGNISER, self.cv2.FaceRecognizerSF.create)

    def _load(self, name: str, create: Callable, *options):
        """What OpenCV makes of a file, from its content: on Windows it opens no path beyond ASCII."""
        file, nothing = self.models / name, np.empty(0, np.uint8)
        if not file.is_file():
            raise ValueError(f"the opencv face backend needs {file.name}: put it into {file.parent}.")
        content = np.frombuffer(file.read_bytes(), np.uint8)
        for source in (("onnx", content, nothing), (str(file), "")):  # the first is unknown to OpenCV before 4.11
            try:
                return create(*source, *options)
            except (self.cv2.error, TypeError) as error:  # TypeError of 4.8, which knows no other call
                reason = error
        raise ValueError(f"{file} cannot be loaded ({reason}): get the file again.")

    def detect(self, images: Tensor, on_step: OnStep = quiet) -> list[list[Face]]:
        """See ``FaceBackend``; landmarks are found."""
        found = []
        for number, image in enumerate(images, 1):
            picture = bgr(image)
            longest = max(picture.shape[:2])
            sides = sorted({min(side, longest) for side in SIDES})
            found.append(without_overlap([face for side in sides for face in self._seen(picture, side)]))
            on_step(number, len(images))
        return found

    def _seen(self, picture: np.ndarray, side: int) -> list[Face]:
        """The faces in a picture [H, W, 3] uint8 BGR that is looked at with its longer side of ``side`` pixels."""
        scale = side / max(picture.shape[:2])
        size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
        small = self.cv2.resize(picture, size, interpolation=self.cv2.INTER_AREA) if scale < 1 else picture
        self.detector.setInputSize(size)
        rows = self.detector.detect(small)[1]
        return [_face(row, scale) for row in ([] if rows is None else rows) if row[2] > 0 and row[3] > 0]

    def prepare_embedder(self) -> None:
        """See ``FaceBackend``."""
        _ = self.recogniser

    def embed(self, images: Tensor, faces: list[list[Face]], on_step: OnStep = quiet) -> list[list[Face]]:
        """See ``FaceBackend``."""
        return embedded_by(self._embedding, images, faces, on_step)

    def _embedding(self, picture: np.ndarray, face: Face) -> np.ndarray:
        points = face.with_landmarks().landmarks.flatten().numpy()
        row = np.array([*face.box[:2], face.width, face.height, *points, face.score], np.float32)[None]
        return self.recogniser.feature(self.recogniser.alignCrop(picture, row))


def _face(row: np.ndarray, scale: float) -> Face:
    """One row of YuNet: x, y, width, height, five points from the picture's left eye on, score."""
    x, y, width, height = (float(value) / scale for value in row[:4])
    points = torch.from_numpy(row[4:14].reshape(5, 2).copy()).float() / scale
    return Face((x, y, x + width, y + height), min(max(float(row[14]), 0.0), 1.0), points)


def bgr(image: Tensor) -> np.ndarray:
    """One image [3, H, W] in 0..1 as OpenCV has them: uint8 [H, W, 3], blue first."""
    return np.ascontiguousarray(to_uint8(image)[..., ::-1])


def embedded_by(
    embedding: Callable[[np.ndarray, Face], np.ndarray], images: Tensor, faces: list[list[Face]], on_step: OnStep
) -> list[list[Face]]:
    """The faces of images [B, 3, H, W] in 0..1 with what ``embedding(picture as OpenCV has it, face)`` gives."""
    embedded = []
    for number, (image, own) in enumerate(zip(images, faces, strict=True), 1):
        picture = bgr(image) if own else None
        embedded.append([face.embedded(embedding(picture, face)) for face in own])
        on_step(number, len(faces))
    return embedded
