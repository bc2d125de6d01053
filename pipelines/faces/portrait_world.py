"""Faces of the portrait world: what a small network sees in a picture, made into faces.

The network is ``embedded.face_detector``'s. It answers for every cell of a grid, and knows faces of about an octave, so
the whole picture is shown to it at three sizes. Where it may be that there is a face it looks again, closer, three
times from slightly different places: a face is found each time and at the same place, what only resembles one is not.
So photographs, which it has never seen, seldom deceive it. What it sees in a mirror counts as much.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from .align import warp
from .cascade import box_overlap, without_overlap
from .crop import shrunk
from .face import Face

# Of the longer side, in pixels: the smallest shows the network faces that fill the picture, the largest those of a
# ninth of it.
SIDES = (64, 128, 256)
STRIDE, MULTIPLE = 8, 16  # pixels of a cell; sides that the network can halve
# Where a mirror shows x and y of a box's corners and of the five landmarks.
MIRRORED_BOX, MIRRORED_POINTS = (2, 1, 0, 3), (2, 3, 0, 1, 4, 5, 8, 9, 6, 7)
LEAST = 0.3  # score that earns a second look
CANDIDATES = 12  # at most
MOST_CELLS = 200
SAME_FACE = 0.45  # overlap from which on two answers are of one face
ASKED_AGAIN = 2  # times that the cells around a landmark are asked for it
# Second looks: pictures of so many pixels, the face's size in them, and by how much it is beside their middle.
CLOSE_UP = 128
LOOKS = ((62.0, 0.0, 0.0), (54.0, 4.0, 3.0), (70.0, -3.0, -4.0))
NEARBY = 0.3  # how far beside that a cell may lie, in parts of the face's size
AGREE = 0.3  # distances between the eyes: looks that differ by as much make a score 1/e of itself

# Pictures [B, 3, H, W] in -1..1 to logits [B, h, w], corners of boxes [B, 4, h, w] and landmarks [B, 10, h, w], both
# in pixels from the middle of the cell, x before y.
Network = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@torch.no_grad()
def find_portrait_faces(network: Network, image: Tensor, device: torch.device | str = "cpu") -> list[Face]:
    """The faces in one image [3, H, W] in 0..1, surest first, with landmarks.

    A face is found if it is a ninth of the longer side wide or more, upright or leaning by up to some 20 degrees.
    """
    picture = image[None].to(device).float()
    candidates = merged([face for side in SIDES for face in _first_look(network, picture, side)])
    looked = [_second_look(network, picture, face) for face in candidates[:CANDIDATES]]
    return without_overlap([face for face in looked if face is not None])


def _first_look(network: Network, picture: Tensor, side: int) -> list[Face]:
    """What every cell takes for a face in a picture [1, 3, H, W] in 0..1 with its longer side of ``side`` pixels."""
    scale = side / max(picture.shape[-2:])
    size = [max(1, round(length * scale)) for length in picture.shape[-2:]]
    small = interpolate(picture, size=size, mode="bilinear", antialias=True)
    scores, corners, landmarks = _answers(network, small * 2 - 1)
    chosen = scores.flatten().topk(min(MOST_CELLS, scores.numel())).indices
    chosen = chosen[scores.flatten()[chosen] >= LEAST]
    found = (values.flatten(-2)[0][..., chosen].movedim(-1, 0).cpu() for values in (scores, corners, landmarks))
    return [
        Face(tuple((box / scale).flatten().tolist()), float(score), points / scale)
        for score, box, points in zip(*found, strict=True) if bool((box[1] > box[0]).all())
    ]  # fmt: skip


def _answers(network: Network, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [B, h, w], boxes [B, 2, 2, h, w] and landmarks [B, 5, 2, h, w] in pixels of pictures [B, 3, H, W] in
    -1..1; the mean of what is seen in them and in their mirror images."""
    below, beside = (-length % MULTIPLE for length in pictures.shape[-2:])
    padded = pad(pictures, [0, beside, 0, below], mode="replicate")
    logits, boxes, points = (values.unflatten(0, (2, -1)) for values in network(torch.cat([padded, padded.flip(-1)])))
    rows, columns = (torch.arange(count, device=pictures.device) + 0.5 for count in logits.shape[-2:])
    middles = STRIDE * torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
    scores = (logits[0] + logits[1].flip(-1)).div(2).sigmoid()
    boxes = _with_mirror(boxes, MIRRORED_BOX).unflatten(1, (2, 2)) + middles
    return scores, boxes, _with_mirror(points, MIRRORED_POINTS).unflatten(1, (5, 2)) + middles


def _with_mirror(answers: Tensor, order: tuple[int, ...]) -> Tensor:
    """The mean [B, 2 N, h, w] of answers [2, B, 2 N, h, w] to pictures and their mirror images; x and y by turns."""
    signs = answers.new_tensor([-1.0, 1.0]).repeat(len(order) // 2)
    return (answers[0] + signs[:, None, None] * answers[1].flip(-1)[:, list(order)]) / 2


def _second_look(network: Network, picture: Tensor, face: Face) -> Face | None:
    """The face as it is seen closer, with its score by that; None where it is not seen each time."""
    looks, size = torch.tensor(LOOKS, device=picture.device), (face.width * face.height) ** 0.5
    at, finer = CLOSE_UP / 2 + looks[:, 1:], looks[:, :1] / size  # where the face is to be, and how much larger
    moves = torch.tensor(face.centre, device=picture.device) - at / finer
    small, factor = shrunk(picture, size / float(looks[:, 0].max()))
    back = torch.cat([torch.eye(2, device=picture.device) / finer[..., None], moves[..., None]], 2) * factor[:, None]
    close = warp(small.expand(len(LOOKS), -1, -1, -1), back, (CLOSE_UP, CLOSE_UP))
    scores, boxes, points = _answers(network, close * 2 - 1)
    cells = (torch.arange(scores.shape[-1], device=picture.device) + 0.5) * STRIDE
    away = (torch.stack(torch.meshgrid(cells, cells, indexing="xy")) - at[:, :, None, None]).abs().amax(1)
    best = (scores * (away <= NEARBY * looks[:, :1, None])).flatten(1).argmax(1)
    each = torch.arange(len(LOOKS), device=picture.device)
    landmarks = _asked_again(points, points.flatten(3)[each, ..., best])
    seen = torch.cat([boxes.flatten(3)[each, ..., best], landmarks], 1) / finer[..., None] + moves[:, None]
    return agreed(seen.cpu(), scores.flatten(1)[each, best].cpu())


def _asked_again(points: Tensor, landmarks: Tensor) -> Tensor:
    """Landmarks [B, 5, 2] as the cells nearest to them give them, which know most; points [B, 5, 2, h, w] are every
    cell's answers."""
    size = STRIDE * landmarks.new_tensor([points.shape[-1], points.shape[-2]])
    for _ in range(ASKED_AGAIN):
        at = (2 * landmarks / size - 1).flatten(0, 1)[:, None, None]
        nearest = grid_sample(points.flatten(0, 1), at, padding_mode="border", align_corners=False)
        landmarks = nearest[..., 0, 0].unflatten(0, landmarks.shape[:2])
    return landmarks


def agreed(seen: Tensor, scores: Tensor) -> Face | None:
    """One face of all looks: their mean [looks, 7, 2] of a box's corners and landmarks, the lowest of their scores, and
    lower where they differ."""
    mean = seen.mean(0)
    box, landmarks = mean[:2], mean[2:]
    apart = float((landmarks[1] - landmarks[0]).norm())
    if float(scores.min()) < LEAST or not bool((box[1] > box[0]).all()) or apart < 1e-3:
        return None
    differ = float((seen[:, 2:] - landmarks).norm(dim=2).mean()) / apart
    score = float(scores.min()) * math.exp(-((differ / AGREE) ** 2))
    return Face(tuple(box.flatten().tolist()), score, landmarks)


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
    return faces
