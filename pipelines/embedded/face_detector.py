"""Training the embedded face detector: a small network that answers, for every cell of a grid, whether the middle of a
face is there, and if so where its box and its landmarks are (as Zhou et al. 2019, Objects as Points, with every cell
near the middle answering)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from ..configuration import option
from ..faces.cascade import box_overlap
from ..faces.face import Face
from ..faces.portrait_world import STRIDE, find_portrait_faces
from ..images import from_uint8, to_uint8
from ..training.task import BatchRandom, Example, Validation
from .architectures import build, face_backbone
from .components import TRANSFORMERS, save_component
from .face_embedder import landmarks_of
from .face_scenes import CANVAS, FaceScene, Portrait, SceneSettings, face_scene
from .portrait_set import DataSettings, PortraitSet, PortraitTask

UNIT = 32.0  # pixels that count as 1 in the network
CELLS = CANVAS // STRIDE
# In parts of a box's width and height from its middle: cells that answer for the face, and those that need not know.
CORE, RIM = 0.18, 0.4
# Which part of a box has to be in the picture for a face, and for what is no longer none.
SEEN, TRACE = 0.6, 0.25
GAMMA = 2.0  # of the focal loss (Lin et al. 2017): cells that are told rightly count little
FOUND_OVERLAP = 0.5


@dataclass(frozen=True)
class FaceDetectorSettings(DataSettings):
    """Face detector: data, weights of the losses."""

    boxes: float = option(1.0, "weight of the error of boxes, in parts of the face's size", minimum=0)
    landmarks: float = option(4.0, "weight of the error of landmarks, in parts of the face's size", minimum=0)


class FaceDetector(nn.Module):
    """A ConvNeXt of three stages; its last two, laid on each other, answer for cells of 8x8 pixels."""

    def __init__(self):
        super().__init__()
        self.backbone = face_backbone()
        *_, fine, coarse = self.backbone.config.hidden_sizes
        self.head = nn.Sequential(
            nn.Conv2d(fine + coarse, fine, 1), nn.GELU(), nn.Conv2d(fine, fine, 3, padding=1), nn.GELU(),
            nn.Conv2d(fine, 15, 1),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, h, w], boxes [B, 4, h, w], landmarks [B, 10, h, w] of pixels [B, 3, 16 i, 16 j] in -1..1.

        Boxes (x0, y0, x1, y1) and landmarks (x, y, x, ...) are in pixels from the middle of the cell.
        """
        fine, coarse = self.backbone(pixels).feature_maps
        answers = self.head(torch.cat([fine, interpolate(coarse, scale_factor=2.0, mode="nearest")], 1)).float()
        return answers[:, 0], UNIT * answers[:, 1:5], UNIT * answers[:, 5:]


def cell_targets(scene: FaceScene) -> dict[str, Tensor]:
    """What the cells of a picture of 128x128 should answer.

    face [h, w], 1 or 0; counts [h, w], 0 where either is right; places [14, h, w], box and landmarks in pixels from
    the cell's middle; size [h, w] of the cell's face in pixels, 1 where there is none.
    """
    middles = (torch.arange(CELLS) + 0.5) * STRIDE
    middles = torch.stack(torch.meshgrid(middles, middles, indexing="xy"))
    face, counts = torch.zeros(CELLS, CELLS), torch.ones(CELLS, CELLS)
    places, size = torch.zeros(14, CELLS, CELLS), torch.ones(CELLS, CELLS)
    for box, points in zip(scene.boxes, scene.landmarks, strict=True):
        inside = box.clamp(0, CANVAS)
        extent = box[2:] - box[:2]
        seen = float((inside[2:] - inside[:2]).prod() / extent.prod())
        if seen < TRACE:
            continue
        away = ((middles - ((box[:2] + box[2:]) / 2)[:, None, None]) / extent[:, None, None]).abs().amax(0)
        counts[(away <= RIM) & (face == 0)] = 0
        if seen < SEEN:
            continue
        core = away <= max(CORE, float(away.min()))
        face[core], counts[core] = 1, 1
        size[core] = float(extent.prod().sqrt())
        values = torch.cat([box, points.flatten()])[:, None, None] - middles.repeat(7, 1, 1)
        places[:, core] = values[:, core]
    return {"face": face, "counts": counts, "places": places, "size": size}


class TrainFaceDetector(PortraitTask):
    """The task; see ``training.task.Task`` for what each method is for."""

    name = "embedded-face-detector"
    Settings = FaceDetectorSettings
    summary = "the embedded model's face detector, from a data set of portraits"

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        # A scene takes up to nine portraits: they are decoded once, and kept as bytes.
        self.bytes = cache(lambda index: to_uint8(self.portraits.picture(index) / 2 + 0.5))
        return build(FaceDetector, seed=self.seed).to(device)

    def sample(self, example: Example, load: Callable, draw: torch.Generator) -> dict[str, Tensor]:
        indices = iter([example.payload])

        def portrait() -> Portrait:
            index = next(indices, None)
            index = int(torch.randint(len(self.portraits), (1,), generator=draw)) if index is None else index
            truth = self.portraits.truth[index]
            picture = from_uint8(self.bytes(index))[0] * 2 - 1
            return Portrait(picture, torch.tensor(truth["face_box"]), landmarks_of(truth))

        scene = face_scene(portrait, SceneSettings(), draw)
        return {"pixels": scene.picture, **cell_targets(scene)}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        logits, boxes, landmarks = network(batch["pixels"])
        face, size = batch["face"], batch["size"][:, None]
        faces = face.sum().clamp(min=1)
        wrong = (face - logits.sigmoid()).abs() ** GAMMA
        told = binary_cross_entropy_with_logits(logits, face, reduction="none") * wrong.detach() * batch["counts"]
        error = (torch.cat([boxes, landmarks], 1) - batch["places"]).abs() / size * face[:, None]
        return {
            "faces": told.sum() / faces,
            "boxes": self.settings.boxes * error[:, :4].sum() / (4 * faces),
            "landmarks": self.settings.landmarks * error[:, 4:].sum() / (10 * faces),
        }

    def validate(
        self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]
    ) -> Validation:
        count = min(200 if steps is None else 8, len(self.held_out))
        return Validation({}, detection_scores(network, self.held_out, count, lambda *_: check_stop()))

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        config = {**face_backbone().config.to_dict(), "architectures": [FaceDetector.__name__]}
        save_component(folder / "face_detector", TRANSFORMERS, config, weights, facts)


def detection_scores(
    network: FaceDetector, portraits: PortraitSet, count: int, on_step: Callable[[int, int], None], least: float = 0.5
) -> dict[str, float]:
    """How well the faces of the first ``count`` portraits are found, counting scores of at least ``least``.

    A face is found if one lies on the true box with an intersection over union of a half or more. The mean error of
    its landmarks, in distances between the eyes, and the mean overlap are of those found (1 and 0 where none is);
    false faces are all others. ``on_step(done, total)`` may raise to stop.
    """
    device = next(network.parameters()).device
    overlaps, errors, others = [], [], 0
    for index in range(count):
        truth = portraits.truth[index]
        faces = find_portrait_faces(network, portraits.picture(index) / 2 + 0.5, device)
        faces = [face for face in faces if face.score >= least]
        hits = [face for face in faces if box_overlap(face.box, truth["face_box"]) >= FOUND_OVERLAP]
        others += len(faces) - len(hits[:1])
        if hits:
            overlaps.append(box_overlap(hits[0].box, truth["face_box"]))
            errors.append(landmark_error(hits[0], landmarks_of(truth)))
        on_step(index + 1, count)
    found = len(overlaps)
    return {
        "faces found": found / count,
        "landmark error (eye distances)": sum(errors) / found if found else 1.0,
        "false faces a picture": others / count,
        "overlap with the true box": sum(overlaps) / found if found else 0.0,
    }


def landmark_error(face: Face, points: Tensor) -> float:
    """Mean distance of a face's landmarks from ``points`` [5, 2], in distances between the eyes."""
    return float((face.landmarks - points).norm(dim=1).mean() / (points[1] - points[0]).norm())


def load_face_detector(folder: Path) -> FaceDetector:
    """The detector that the task exported. Raises ``ValueError`` where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    detector = FaceDetector()
    try:
        detector.load_state_dict(load_file(folder / TRANSFORMERS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} holds no face detector ({error}): give the folder that embedded-face-detector exported."
        ) from error
    return detector.eval()
