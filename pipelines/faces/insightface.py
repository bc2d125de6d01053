"""InsightFace's model packs: SCRFD finds faces, ArcFace embeds them. The packs are for non-commercial research only."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..optional import need
from .backend import BackendSettings, OnStep, quiet
from .face import Face
from .opencv import bgr, embedded_by

# What detects and what embeds, in each pack.
FILES = {
    "antelopev2": ("scrfd_10g_bnkps.onnx", "glintr100.onnx"),
    "buffalo_l": ("det_10g.onnx", "w600k_r50.onnx"),
}
DETECTION_SIZE = (640, 640)
# A face that fills the picture is too large for the detector at 640; smaller it finds it.
CLOSE_UP_SIZE = (256, 256)
LOWEST_SCORE, SURE = 0.1, 0.5


class InsightFaceBackend:
    """A pack in ``models/insightface/models``, on CUDA where onnxruntime has it."""

    name = "insightface"
    licence = "non-commercial research only (InsightFace model packs)"

    @staticmethod
    def has_files(models: Path, pack: str) -> bool:
        """See ``FaceBackend``."""
        try:
            return bool(pack_folder(models / "insightface", pack))
        except ValueError:
            return False

    def __init__(self, settings: BackendSettings):
        root = settings.models / "insightface"
        name = pack_folder(root, settings.pack)
        self.embedder = f"insightface {settings.pack}"
        analysis = need("insightface.app", "insightface").FaceAnalysis
        self.make_face = need("insightface.app.common", "insightface").Face
        providers, self.notes = _providers(settings.device)
        place = root / "models" / name
        try:
            self.app = analysis(
                name=name, root=str(root), allowed_modules=["detection", "recognition"], providers=providers,
                provider_options=[{"device_id": settings.gpu} if each.startswith("CUDA") else {} for each in providers],
            )  # fmt: skip
        except Exception as error:  # onnxruntime's errors share no class, and the pack asserts
            raise ValueError(
                f"the pack in {place} cannot be loaded ({type(error).__name__} {error}): get it again."
            ) from error
        if set(self.app.models) != {"detection", "recognition"}:
            raise ValueError(f"the pack in {place} has only {', '.join(self.app.models)}: get it again.")
        self.app.prepare(-1 if providers[0].startswith("CPU") else 0, det_thresh=LOWEST_SCORE, det_size=DETECTION_SIZE)
        self._note_what_runs(providers)

    def _note_what_runs(self, providers: list[str]) -> None:
        """CUDA can be on offer and still fail to start: onnxruntime then goes on with the CPU."""
        running = self.app.det_model.session.get_providers()[0]
        if running != providers[0]:
            self.notes += (f"insightface: {providers[0]} did not start, {running} is used",)

    def detect(self, images: Tensor, on_step: OnStep = quiet) -> list[list[Face]]:
        """See ``FaceBackend``; landmarks are found."""
        found = []
        for number, image in enumerate(images, 1):
            picture = bgr(image)
            faces = self._seen(picture, DETECTION_SIZE)
            if all(face.score < SURE for face in faces):
                faces = self._seen(picture, CLOSE_UP_SIZE) or faces
            found.append(faces)
            on_step(number, len(images))
        return found

    def _seen(self, picture: np.ndarray, size: tuple[int, int]) -> list[Face]:
        boxes, points = self.app.det_model.detect(picture, input_size=size)
        return [
            Face(tuple(map(float, box[:4])), min(float(box[4]), 1.0), torch.from_numpy(five).float())
            for box, five in zip(boxes, points, strict=True)
            if box[2] > box[0] and box[3] > box[1]
        ]

    def prepare_embedder(self) -> None:
        """See ``FaceBackend``; a pack is loaded whole, so nothing is left to do."""

    def embed(self, images: Tensor, faces: list[list[Face]], on_step: OnStep = quiet) -> list[list[Face]]:
        """See ``FaceBackend``."""
        return embedded_by(self._embedding, images, faces, on_step)

    def _embedding(self, picture: np.ndarray, face: Face) -> np.ndarray:
        points = face.with_landmarks().landmarks.numpy()
        theirs = self.make_face(bbox=np.array(face.box), kps=points, det_score=face.score)
        return self.app.models["recognition"].get(picture, theirs)


def pack_folder(root: Path, pack: str) -> str:
    """Where ``pack`` is below ``root``/models, as InsightFace wants it named.

    The archive of antelopev2 holds a folder of its own name, so that unpacked it lies one level too deep; both places
    are good. Raises ``ValueError`` naming the files that are missing and where they belong.
    """
    if pack not in FILES:
        raise ValueError(f"there is no InsightFace pack {pack!r} here: choose one of {', '.join(FILES)}.")
    for name in (pack, f"{pack}/{pack}"):
        if all((root / "models" / name / file).is_file() for file in FILES[pack]):
            return name
    folder = root / "models" / pack
    missing = [file for file in FILES[pack] if not (folder / file).is_file()]
    raise ValueError(
        f"InsightFace's pack {pack} lacks {' and '.join(missing)}: unpack {pack}.zip so that they lie in {folder}."
    )


def _providers(device: str) -> tuple[list[str], tuple[str, ...]]:
    """onnxruntime's providers for ``device``, and what is to be said about them."""
    offered = need("onnxruntime", "onnxruntime").get_available_providers()
    if device == "cpu":
        return ["CPUExecutionProvider"], ()
    if "CUDAExecutionProvider" in offered:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"], ()
    note = "insightface: onnxruntime has no CUDA here, the CPU is used (onnxruntime-gpu in its place would have it)"
    return ["CPUExecutionProvider"], (note,)
