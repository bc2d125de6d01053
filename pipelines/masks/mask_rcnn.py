"""People by torchvision's Mask R-CNN (He, Gkioxari, Dollar and Girshick 2017), with weights that the caller has."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..images import check_image
from ..optional import need
from ..weights.tensors import load_tensors
from .inputs import OnStep, check_faces, check_person
from .operations import soften

PERSON = 1  # in COCO's list of classes
CLASSES = 91
ONLY_IN_V2 = "roi_heads.box_head.0.0.weight"
ONLY_IN_V1 = "roi_heads.box_head.fc6.weight"


@dataclass(frozen=True)
class RcnnSettings:
    """minimum_score: detections below this score (0..1) are dropped. threshold: instance scores from here on are in
    the mask, or ``None`` to keep them as a soft mask. softness: as in ``MaskSettings``.
    """

    minimum_score: float = 0.7
    threshold: float | None = 0.5
    softness: int = 2

    def __post_init__(self):
        if not 0 < self.minimum_score <= 1 or not (self.threshold is None or 0 < self.threshold < 1):
            raise ValueError(
                f"minimum_score is {self.minimum_score}, threshold {self.threshold}: use more than 0, at most 1."
            )
        if self.softness < 0:
            raise ValueError(f"softness is {self.softness}: use 0 or more pixels.")


def load_mask_rcnn(path: str | Path) -> nn.Module:
    """maskrcnn_resnet50_fpn or maskrcnn_resnet50_fpn_v2 of 91 classes, whichever the weights at ``path`` are of.

    Raises ``ValueError`` for a file that is neither, ``ImportError`` without torchvision.
    """
    tensors = load_tensors(Path(path))
    detection = need("torchvision.models.detection", "torchvision")
    if ONLY_IN_V2 in tensors:
        build = detection.maskrcnn_resnet50_fpn_v2
    elif ONLY_IN_V1 in tensors:
        build = detection.maskrcnn_resnet50_fpn
    else:
        raise ValueError(f"{path} is no Mask R-CNN of torchvision: use maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth.")
    model = build(weights=None, weights_backbone=None, num_classes=CLASSES)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit torchvision's {build.__name__} ({str(error)[:300]}).") from error
    return model.eval().requires_grad_(False)


def ignore_below(model: nn.Module, minimum_score: float) -> nn.Module:
    """Let a network of ``load_mask_rcnn`` leave out what ``find_people`` would drop for its score; returns it.

    torchvision makes two planes of the picture's size for every detection, a hundred at most.
    """
    model.roi_heads.score_thresh = max(model.roi_heads.score_thresh, 0.999 * minimum_score)  # which it excludes
    return model


@dataclass(frozen=True)
class Instances:
    """People of one picture: scores [N], masks [N, H, W] of scores in 0..1."""

    scores: Tensor
    masks: Tensor


@torch.no_grad()
def find_people(model: Callable, picture: Tensor, minimum_score: float) -> Instances:
    """The people in a picture [3, H, W] in 0..1, those with the largest masks first.

    ``model`` is called as torchvision's: a list of pictures in, a list of dictionaries of boxes, labels, scores, masks
    out.
    """
    found = model([picture])[0]
    people = (found["labels"] == PERSON) & (found["scores"] >= minimum_score)
    scores, masks = found["scores"][people], found["masks"][people, 0].float()
    order = (masks >= 0.5).flatten(1).sum(1).argsort(descending=True, stable=True)
    return Instances(scores[order], masks[order])


def match_to_faces(masks: Tensor, boxes: np.ndarray) -> list[int | None]:
    """For each face box [N, 4] the number of the mask [M, H, W] that covers most of it, ``None`` if none covers half.

    A person has one face, so a mask is given once: to the faces it covers best, first.
    """
    height, width = masks.shape[-2:]
    cover = np.zeros((len(boxes), len(masks)))
    for row, (x0, y0, x1, y1) in enumerate(boxes):
        left, top = max(0, int(x0)), max(0, int(y0))
        patch = masks[:, top : min(height, int(np.ceil(y1))), left : min(width, int(np.ceil(x1)))]
        if patch.numel():
            cover[row] = patch.mean((1, 2)).cpu().numpy()
    matched: list[int | None] = [None] * len(boxes)
    while cover.size and cover.max() >= 0.5:
        face, mask = np.unravel_index(cover.argmax(), cover.shape)
        matched[face] = int(mask)
        cover[face], cover[:, mask] = 0, 0
    return matched


def rcnn_masks(
    model: Callable, image: Tensor, faces: Sequence[Tensor] | None = None, person: int | None = None,
    settings: RcnnSettings | None = None, on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """Masks float32 [B, 1, H, W] in 0..1 of the people in pictures [B, 3, H, W] in 0..1.

    ``person``: number, from 0, of the face whose owner is wanted, or without ``faces`` (boxes [N, 4] for each picture)
    of the person in order of size; ``None`` for all people, with or without a face. A picture without that person has
    an empty mask. ``on_step(done, total)`` is called after each picture. Raises ``ValueError`` for bad input.
    """
    settings = settings or RcnnSettings()
    if faces is None:
        image = check_image(image, "image")
    else:
        image, faces = check_faces(image, faces)
        if person is not None:  # everybody is found without faces, too
            check_person(person, [len(boxes) for boxes in faces])
    masks, counts = torch.zeros_like(image[:, :1]), []
    for index, picture in enumerate(image):
        people = find_people(model, picture, settings.minimum_score).masks
        counts.append(len(people))
        chosen = _chosen(people, None if faces is None else faces[index], person)
        if chosen:
            masks[index, 0] = people[chosen].amax(0)
        if on_step:
            on_step(index + 1, len(image))
    if faces is None:
        check_person(person, counts, "people")
    if settings.threshold is not None:
        masks = (masks >= settings.threshold).float()
    return soften(masks, image, settings.softness)


def _chosen(people: Tensor, boxes: np.ndarray | None, person: int | None) -> list[int]:
    if person is None:
        return list(range(len(people)))
    if boxes is None:
        return [person] if person < len(people) else []
    owner = match_to_faces(people, boxes)[person] if person < len(boxes) else None
    return [] if owner is None else [owner]
