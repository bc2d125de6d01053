"""Training the embedded face detector: a small network that answers, for every cell of a grid, whether the middle of a
face is there, and where box and landmarks of the face are that the cell lies in (after Zhou et al. 2019, Objects as
Points, with every cell near the middle answering)."""

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
from .architectures import GROUPS, build
from .components import TRANSFORMERS, save_component
from .face_embedder import landmarks_of
from .face_scenes import CANVAS, FaceScene, Portrait, SceneSettings, face_scene
from .portrait_set import DataSettings, PortraitSet, PortraitTask

WIDTHS = (16, 24, 48, 72)  # channels at a half, a quarter, an eighth and a sixteenth of the picture's sides
UNIT = 32.0  # pixels that count as 1 in the network
CELLS = CANVAS // STRIDE
# In parts of a box's width and height from its middle: cells that say that there is a face, those that need not know,
# and those that know its landmarks.
CORE, RIM, WHOLE = 0.18, 0.4, 0.5
# A cell counts for a landmark by its distance from it: this part of the face's size, and this least.
NEAR, LEAST = 0.25, 0.05
# Which part of a box has to be in the picture for a face, and for what is no longer none.
SEEN, TRACE = 0.6, 0.25
GAMMA = 2.0  # of the focal loss (Lin et al. 2017): cells that are told rightly count little
FOUND_OVERLAP = 0.5


@dataclass(frozen=True)
class FaceDetectorSettings(DataSettings):
    """Face detector: data, weights of the losses."""

    boxes: float = option(1.0, "weight of the error of boxes, in parts of the face's size", minimum=0)
    landmarks: float = option(6.0, "weight of the error of landmarks, in parts of the face's size", minimum=0)


class Residual(nn.Module):
    """Two convolutions beside a shortcut; groups are normalised, for statistics of batches are no weights."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.inside = nn.Sequential(
            convolution(inputs, outputs, 3, stride), nn.ReLU(), convolution(outputs, outputs, 3)
        )  # fmt: skip
        nn.init.zeros_(self.inside[-1][1].weight)  # so that it is born as its shortcut
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.shortcut(features) + self.inside(features))


def convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Sequential:
    """A convolution and the normalisation of its groups."""
    layer = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
    return nn.Sequential(layer, nn.GroupNorm(GROUPS, outputs))


class FaceDetector(nn.Module):
    """A residual network; what it knows of cells of 8 and of 16 pixels, laid on each other, answers for those of 8."""

    def __init__(self):
        super().__init__()
        first, second, third, fourth = WIDTHS
        self.stem = nn.Sequential(
            convolution(3, first, 3, 2), nn.ReLU(), convolution(first, second, 3, 2), nn.ReLU(),
            Residual(second, second),
        )  # fmt: skip
        self.fine = nn.Sequential(Residual(second, third, 2), Residual(third, third))
        self.coarse = nn.Sequential(Residual(third, fourth, 2), Residual(fourth, fourth))
        self.joined = nn.Sequential(convolution(third + fourth, third, 1), nn.ReLU(), Residual(third, third))
        self.answers = nn.Conv2d(third, 15, 1)
        nn.init.constant_(self.answers.bias[:1], -3.0)  # few cells are faces

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, h, w], boxes [B, 4, h, w], landmarks [B, 10, h, w] of pixels [B, 3, 16 i, 16 j] in -1..1.

        Boxes (x0, y0, x1, y1) and landmarks (x, y, x, ...) are in pixels from the middle of the cell.
        """
        fine = self.fine(self.stem(pixels))
        coarse = interpolate(self.coarse(fine), scale_factor=2.0, mode="nearest")
        answers = self.answers(self.joined(torch.cat([fine, coarse], 1))).float()
        return answers[:, 0], UNIT * answers[:, 1:5], UNIT * answers[:, 5:]


def cell_targets(scene: FaceScene) -> dict[str, Tensor]:
    """What the cells of a picture of 128x128 should answer.

    face [h, w], 1 or 0; counts [h, w], 0 where either is right; places [14, h, w], box and landmarks in pixels from
    the cell's middle; matters [14, h, w], how much these count; size [h, w] of the cell's face in pixels.
    """
    middles = (torch.arange(CELLS) + 0.5) * STRIDE
    middles = torch.stack(torch.meshgrid(middles, middles, indexing="xy"))
    face, counts, size = torch.zeros(CELLS, CELLS), torch.ones(CELLS, CELLS), torch.ones(CELLS, CELLS)
    places, matters = torch.zeros(14, CELLS, CELLS), torch.zeros(14, CELLS, CELLS)
    for box, points in zip(scene.boxes, scene.landmarks, strict=True):
        inside, extent = box.clamp(0, CANVAS), box[2:] - box[:2]
        seen = float((inside[2:] - inside[:2]).prod() / extent.prod())
        if seen < TRACE:
            continue
        away = ((middles - ((box[:2] + box[2:]) / 2)[:, None, None]) / extent[:, None, None]).abs().amax(0)
        counts[(away <= RIM) & (face == 0)] = 0
        if seen < SEEN:
            continue
        core, whole = (away <= max(part, float(away.min())) for part in (CORE, WHOLE))
        face[core], counts[core] = 1, 1
        size[whole] = width = extent.prod().sqrt()
        values = torch.cat([box, points.flatten()])[:, None, None] - middles.repeat(7, 1, 1)
        far = values[4:].unflatten(0, (5, 2)).norm(dim=1) / (NEAR * width)
        weights = torch.cat([core.expand(4, -1, -1), (LEAST + (-far.square()).exp()).repeat_interleave(2, 0)])
        places[:, whole], matters[:, whole] = values[:, whole], weights[:, whole]
    return {"face": face, "counts": counts, "places": places, "matters": matters, "size": size}


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
        face, matters = batch["face"], batch["matters"]
        wrong = (face - logits.sigmoid()).abs() ** GAMMA
        told = binary_cross_entropy_with_logits(logits, face, reduction="none") * wrong.detach() * batch["counts"]
        error = (torch.cat([boxes, landmarks], 1) - batch["places"]).abs() / batch["size"][:, None] * matters
        box, point = (error[:, part].sum() / matters[:, part].sum().clamp(min=1) for part in (slice(4), slice(4, None)))
        return {
            "faces": told.sum() / face.sum().clamp(min=1),
            "boxes": self.settings.boxes * box, "landmarks": self.settings.landmarks * point,
        }  # fmt: skip

    def validate(
        self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]
    ) -> Validation:
        count = min(200 if steps is None else 8, len(self.held_out))
        return Validation({}, detection_scores(network, self.held_out, count, lambda *_: check_stop()))

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        config = {"architectures": [FaceDetector.__name__], "widths": list(WIDTHS), "stride": STRIDE}
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
