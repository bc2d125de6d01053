"""Pictures to learn finding faces from, made of portraits: near and far, several and none, cut, turned, hidden, spoilt.

Nothing in them is no portrait: what is no face is what portraits show beside it, and faces whose parts are in the
wrong places.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from ..faces.align import warp
from .portrait_set import SIDE

CANVAS = 128  # pixels of the pictures that are made
MIRRORED = (1, 0, 2, 4, 3)  # the five landmarks as a mirror shows them


@dataclass(frozen=True)
class SceneSettings:
    """How faces are shown.

    windows: sides of what is shown, in pixels of portraits, so that faces are some 26 to 65 pixels wide: more than an
    octave, as pictures are searched in octaves; turn: degrees at most; spoilt: share of faces that are made none;
    hidden: share of faces with something before them; softened, grey: shares of pictures.
    """

    windows: tuple[float, float] = (90.0, 220.0)
    turn: float = 20.0
    spoilt: float = 0.25
    hidden: float = 0.25
    softened: float = 0.4
    grey: float = 0.1


@dataclass(frozen=True)
class Portrait:
    """A picture [3, 128, 128] in -1..1, the box [4] of its face and the five landmarks [5, 2], in pixels."""

    picture: Tensor
    box: Tensor
    landmarks: Tensor

    def mirrored(self) -> "Portrait":
        """As a mirror shows it; the left eye is again that on the left of the picture."""
        x0, y0, x1, y1 = self.box
        points = torch.stack([SIDE - self.landmarks[:, 0], self.landmarks[:, 1]], 1)[list(MIRRORED)]
        return Portrait(self.picture.flip(2), torch.stack([SIDE - x1, y0, SIDE - x0, y1]), points)


@dataclass(frozen=True)
class FaceScene:
    """A picture [3, 128, 128] in -1..1, boxes [N, 4] and landmarks [N, 5, 2] of its faces in pixels."""

    picture: Tensor
    boxes: Tensor
    landmarks: Tensor


def face_scene(portrait: Callable[[], Portrait], settings: SceneSettings, draw: torch.Generator) -> FaceScene:
    """A scene of as many portraits as its window needs; ``portrait()`` gives the next one.

    Faces may lie outside of the picture, wholly or in part; spoilt ones are left out of boxes and landmarks.
    """
    low, high = (math.log(side) for side in settings.windows)
    window = math.exp(_uniform(low, high, draw))
    across = math.ceil(window / SIDE)
    tiles, boxes, landmarks = [], [], []
    for number in range(across * across):
        tile = portrait()
        tile = tile.mirrored() if _happens(0.5, draw) else tile
        corner = SIDE * torch.tensor([number % across, number // across])
        picture, is_face = _worked_on(tile, settings, draw)
        tiles.append(picture)
        if is_face:
            boxes.append(tile.box + corner.repeat(2))
            landmarks.append(tile.landmarks + corner)
    rows = [torch.cat(tiles[row * across : (row + 1) * across], 2) for row in range(across)]
    boxes = torch.stack(boxes) if boxes else torch.zeros(0, 4)
    landmarks = torch.stack(landmarks) if landmarks else torch.zeros(0, 5, 2)
    scene = _seen(FaceScene(torch.cat(rows, 1), boxes, landmarks), window, settings, draw)
    return FaceScene(_filmed(scene.picture, settings, draw), scene.boxes, scene.landmarks)


def _worked_on(tile: Portrait, settings: SceneSettings, draw: torch.Generator) -> tuple[Tensor, bool]:
    """The tile's picture, and whether there is still a face in it."""
    if _happens(settings.spoilt, draw):
        return spoilt(tile, draw), False
    return (hidden(tile, draw) if _happens(settings.hidden, draw) else tile.picture), True


def spoilt(tile: Portrait, draw: torch.Generator) -> Tensor:
    """The picture with a face that is none: upside down, its quarters in other places, a few blobs, or gone."""
    picture = tile.picture.clone()
    x0, y0, x1, y1 = (int(value) // 2 * 2 for value in tile.box.clamp(0, SIDE))
    face, how = picture[:, y0:y1, x0:x1], int(torch.randint(4, (1,), generator=draw))
    if how == 0:
        picture[:, y0:y1, x0:x1] = face.flip(1)
    elif how == 1:
        half = (y1 - y0) // 2, (x1 - x0) // 2
        moves = ((0, half[1]), (half[0], 0), half)[int(torch.randint(3, (1,), generator=draw))]
        picture[:, y0:y1, x0:x1] = face.roll(moves, (1, 2))
    elif how == 2:
        blobs = interpolate(face[None], size=(5, 5), mode="area")[0].flatten(1)
        blobs = blobs[:, torch.randperm(25, generator=draw)].reshape(1, 3, 5, 5)
        picture[:, y0:y1, x0:x1] = interpolate(blobs, size=face.shape[1:], mode="bicubic")[0]
    else:
        picture[:, y0:y1, x0:x1] = picture[:, SIDE - (y1 - y0) :, x0:x1]
    return picture


def hidden(tile: Portrait, draw: torch.Generator) -> Tensor:
    """The picture with a patch of one colour, or of the picture itself, before up to a third of its face."""
    picture, (x0, y0, x1, y1) = tile.picture.clone(), tile.box.tolist()
    share = _uniform(0.1, 0.33, draw)
    shape = _uniform(0.6, 1.6, draw)
    width = int(min(math.sqrt(share * shape), 1.0) * (x1 - x0)) + 1
    height = int(min(math.sqrt(share / shape), 1.0) * (y1 - y0)) + 1
    left, top = int(_uniform(x0, x1 - width, draw)), int(_uniform(y0, y1 - height, draw))
    left, top = max(0, min(left, SIDE - width)), max(0, min(top, SIDE - height))
    patch = 2 * torch.rand(3, 1, 1, generator=draw) - 1
    if _happens(0.5, draw):
        patch = picture[:, -height:, :width].clone()
    picture[:, top : top + height, left : left + width] = patch
    return picture


def _seen(scene: FaceScene, window: float, settings: SceneSettings, draw: torch.Generator) -> FaceScene:
    """What a turned window shows of a square scene; mostly, there is a face in it."""
    side = scene.picture.shape[-1]
    centre = torch.tensor([_uniform(0, side, draw), _uniform(0, side, draw)])
    if len(scene.boxes) and _happens(0.7, draw):
        box = scene.boxes[int(torch.randint(len(scene.boxes), (1,), generator=draw))]
        off = torch.tensor([_uniform(-0.45, 0.45, draw), _uniform(-0.45, 0.45, draw)])
        centre = (box[:2] + box[2:]) / 2 + off * window
    size = round(side * CANVAS / window)
    scale = size / side
    small = interpolate(scene.picture[None], size=(size, size), mode="bilinear", antialias=True)
    angle = math.radians(_uniform(-settings.turn, settings.turn, draw))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = torch.full((2, 1), CANVAS / 2)
    # Of the canvas to the scaled scene, and of points of the scene to the canvas.
    back = torch.cat([turn.T, centre[:, None] * scale - turn.T @ middle], 1)
    picture = warp(small, back[None], (CANVAS, CANVAS))[0]

    def moved(points: Tensor) -> Tensor:
        return (points - centre) * scale @ turn.T + CANVAS / 2

    # A box keeps its size where the head is turned about its middle.
    middles, halves = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2, (scene.boxes[:, 2:] - scene.boxes[:, :2]) / 2
    boxes = torch.cat([moved(middles) - halves * scale, moved(middles) + halves * scale], 1)
    return FaceScene(picture, boxes, moved(scene.landmarks))


def _filmed(picture: Tensor, settings: SceneSettings, draw: torch.Generator) -> Tensor:
    """Another exposure, contrast and colour, soft as an autoencoder makes it, some noise."""
    if _happens(settings.softened, draw):
        picture = avg_pool2d(picture[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    if _happens(settings.grey, draw):
        picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
    gain = 1 + _uniform(-0.3, 0.3, draw) + 0.12 * torch.randn(3, 1, 1, generator=draw)
    picture = picture * gain + _uniform(-0.25, 0.25, draw)
    noise = _uniform(0, 0.05, draw) * torch.randn(picture.shape, generator=draw)
    return (picture + noise).clamp(-1, 1)


def _uniform(low: float, high: float, draw: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=draw))


def _happens(share: float, draw: torch.Generator) -> bool:
    return float(torch.rand(1, generator=draw)) < share
