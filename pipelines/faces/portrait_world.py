"""Faces of the portrait world: what a small network sees in a picture at two sizes, made into faces.

The network is ``embedded.face_detector``'s. It answers for every cell of a grid; cells of one face answer alike, so
their answers are averaged, and so are those to the picture and to its mirror image.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from .cascade import box_overlap
from .face import Face

SIDES = (128, 256)  # of the longer side, in pixels: the first shows it large faces, the second small ones
STRIDE, MULTIPLE = 8, 16  # pixels of a cell; sides that the network can halve
# Where a mirror shows x and y of a box's corners and of the five landmarks.
MIRRORED_BOX, MIRRORED_POINTS = (2, 1, 0, 3), (2, 3, 0, 1, 4, 5, 8, 9, 6, 7)
LOWEST_SCORE = 0.1
MOST_CELLS = 200
SAME_FACE = 0.45  # overlap from which on two answers are of one face

# Pictures [B, 3, H, W] in -1..1 to logits [B, h, w], corners of boxes [B, 4, h, w] and landmarks [B, 10, h, w], both
# in pixels from the middle of the cell, x before y.
Network = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@torch.no_grad()
def find_portrait_faces(network: Network, image: Tensor, device: torch.device | str = "cpu") -> list[Face]:
    """The faces in one image [3, H, W] in 0..1, surest first, with landmarks.

    A face is found if it is a twentieth of the longer side wide or more, upright or leaning by up to 30 degrees.
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
    places = torch.cat([_with_mirror(boxes, MIRRORED_BOX), _with_mirror(points, MIRRORED_POINTS)])
    chosen = scores.topk(min(MOST_CELLS, len(scores))).indices
    chosen = chosen[scores[chosen] >= LOWEST_SCORE]
    columns = logits.shape[-1]
    middles = (torch.stack([chosen % columns, chosen // columns], 1) + 0.5) * STRIDE
    places = ((places.flatten(1)[:, chosen].T.unflatten(1, (7, 2)) + middles[:, None]) / scale).cpu()
    return [
        Face(tuple(place[:2].flatten().tolist()), float(score), place[2:])
        for place, score in zip(places, scores[chosen].cpu(), strict=True)
        if bool((place[1] > place[0]).all())
    ]


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
