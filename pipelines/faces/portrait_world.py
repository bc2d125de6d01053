"""Faces of the portrait world: what a small network sees in a picture at three sizes, made into faces.

The network is ``embedded.face_detector``'s. It answers for every cell of a grid; cells of one face answer alike, so
their answers are averaged, and so are those to the picture and to its mirror image. Of a landmark the cells around it
know most, so they are asked once it is known roughly.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from .cascade import box_overlap
from .face import Face

# Of the longer side, in pixels. The network knows faces of about an octave: the smallest shows it those that fill the
# picture, the largest those of a ninth of it.
SIDES = (64, 128, 256)
STRIDE, MULTIPLE = 8, 16  # pixels of a cell; sides that the network can halve
# Where a mirror shows x and y of a box's corners and of the five landmarks.
MIRRORED_BOX, MIRRORED_POINTS = (2, 1, 0, 3), (2, 3, 0, 1, 4, 5, 8, 9, 6, 7)
LOWEST_SCORE = 0.1
MOST_CELLS = 200
SAME_FACE = 0.45  # overlap from which on two answers are of one face
ASKED_AGAIN = 2  # times that the cells around a landmark are asked for it

# Pictures [B, 3, H, W] in -1..1 to logits [B, h, w], corners of boxes [B, 4, h, w] and landmarks [B, 10, h, w], both
# in pixels from the middle of the cell, x before y.
Network = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@torch.no_grad()
def find_portrait_faces(network: Network, image: Tensor, device: torch.device | str = "cpu") -> list[Face]:
    """The faces in one image [3, H, W] in 0..1, surest first, with landmarks.

    A face is found if it is a ninth of the longer side wide or more, upright or leaning by up to some 20 degrees.
    """
    found: list[Face] = []
    for side in SIDES:
        scale = side / max(image.shape[-2:])
        size = [max(1, round(length * scale)) for length in image.shape[-2:]]
        small = interpolate(image[None].to(device).float(), size=size, mode="bilinear", antialias=True)
        found += _faces_at(network, small * 2 - 1, scale)
    return merged(found)


def _faces_at(network: Network, picture: Tensor, scale: float) -> list[Face]:
    """Every cell's face in a picture [1, 3, H, W] in -1..1 that is ``scale`` times as large as the faces are meant."""
    height, width = picture.shape[-2:]
    below, beside = -height % MULTIPLE, -width % MULTIPLE
    padded = pad(picture, [0, beside, 0, below], mode="replicate")
    logits, boxes, points = network(torch.cat([padded, padded.flip(-1)]))
    scores = ((logits[0] + logits[1].flip(-1)) / 2).sigmoid().flatten()
    chosen = scores.topk(min(MOST_CELLS, len(scores))).indices
    chosen = chosen[scores[chosen] >= LOWEST_SCORE]
    rows, columns = (torch.arange(count, device=picture.device) + 0.5 for count in logits.shape[-2:])
    middles = STRIDE * torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
    boxes = _with_mirror(boxes, MIRRORED_BOX).unflatten(0, (2, 2)) + middles
    points = _with_mirror(points, MIRRORED_POINTS).unflatten(0, (5, 2)) + middles
    corners, landmarks = (answers.flatten(2)[..., chosen].permute(2, 0, 1) for answers in (boxes, points))
    landmarks = _asked_again(points, landmarks)
    found = ((corners / scale).cpu(), scores[chosen].cpu(), (landmarks / scale).cpu())
    return [
        Face(tuple(box.flatten().tolist()), float(score), five)
        for box, score, five in zip(*found, strict=True) if bool((box[1] > box[0]).all())
    ]  # fmt: skip


def _asked_again(points: Tensor, landmarks: Tensor) -> Tensor:
    """Landmarks [N, 5, 2] as the cells nearest to them give them; points [5, 2, h, w] are every cell's answers."""
    size = STRIDE * landmarks.new_tensor([points.shape[-1], points.shape[-2]])
    for _ in range(ASKED_AGAIN):
        at = (2 * landmarks / size - 1).transpose(0, 1)[:, :, None]
        landmarks = grid_sample(points, at, padding_mode="border", align_corners=False)[..., 0].permute(2, 0, 1)
    return landmarks


def _with_mirror(answers: Tensor, order: tuple[int, ...]) -> Tensor:
    """The mean [2 N, h, w] of the answers [2, 2 N, h, w] to a picture and to its mirror image; x and y by turns."""
    signs = answers.new_tensor([-1.0, 1.0]).repeat(len(order) // 2)
    return (answers[0] + signs[:, None, None] * answers[1].flip(-1)[list(order)]) / 2


def merged(found: list[Face]) -> list[Face]:
    """One face for all that lie on each other, their mean weighted by score; the surest first."""
    faces, left = [], sorted(found, key=lambda face: -face.score)
    while left:
        best = left[0]
        near = [face for face in left if box_overlap(face.box, best.box) > SAME_FACE]
        left = [face for face in left if box_overlap(face.box, best.box) <= SAME_FACE]
        weights = torch.tensor([face.score for face in near])
        weights = weights / weights.sum()
        box = weights @ torch.tensor([face.box for face in near])
        points = torch.einsum("n,nij->ij", weights, torch.stack([face.landmarks for face in near]))
        faces.append(Face(tuple(box.tolist()), best.score, points))
    return [face for face in faces if all(map(math.isfinite, face.box))]
