"""A face detector that needs no download: scikit-image's cascade of local binary patterns, asked often.

The cascade (Zhang et al. 2007, as trained for OpenCV) knows upright frontal faces and says only yes or no. So the
picture is shown to it turned, and yeses at one place are counted: a face gets many, a chance pattern few. What gets
some is looked at again, closer and also mirrored. That count is the score, and the turns that got most say how the
head leans.
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..images import to_uint8
from ..optional import need
from .face import Face

# The window that the cascade accepts, in parts of its side from its centre, against hairline, chin and cheeks.
FACE_IN_WINDOW = (-0.42, -0.50, 0.42, 0.60)
WINDOW = 24  # pixels of the smallest window the cascade can judge


@dataclass(frozen=True)
class CascadeSettings:
    """How hard the cascade looks.

    side: pixels of the picture's longer side when it is searched; a face narrower than 24 of them is not found.
    turns, close_turns: degrees by which the picture is turned, at first and when a place is looked at again.
    votes: how many yeses at first earn a second look; candidates: at how many places at most. close_side: pixels of
    the face in the second look. half: how many yeses in the second look are a score of 0.5; of the two photographs
    that this was tuned with, the six faces that were found got about 80 and more, the likeliest chance pattern 60.
    """

    side: int = 256
    turns: tuple[float, ...] = (-24, 0, 24)
    votes: int = 2
    candidates: int = 12
    close_turns: tuple[float, ...] = (-30, -20, -10, 0, 10, 20, 30)
    close_side: int = 36
    half: float = 70.0


class Cascade:
    """The detector; ``settings`` say how hard it looks."""

    def __init__(self, settings: CascadeSettings = CascadeSettings()):
        self.settings = settings
        file = need("skimage.data", "scikit-image").lbp_frontal_face_cascade_filename()
        self.cascade = need("skimage.feature", "scikit-image").Cascade(file)

    def detect(self, image: Tensor) -> list[Face]:
        """The faces in one image [3, H, W] in 0..1, surest first, without landmarks; ``turn`` says how they lean."""
        from PIL import Image

        picture = Image.fromarray(to_uint8(image))
        groups = grouped(self._first_look(picture))[: self.settings.candidates]
        faces = [self._second_look(picture, group[:, :3].mean(0)) for group in groups if self._is_worth_it(group)]
        return without_overlap([face for face in faces if face is not None])

    def _is_worth_it(self, group: np.ndarray) -> bool:
        return len(group) >= self.settings.votes

    def _first_look(self, picture) -> np.ndarray:
        """Windows [N, 4] as (x, y of the centre, side, turn) in pixels of the picture."""
        from PIL import Image

        scale = min(1.0, self.settings.side / max(picture.size))
        small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
        windows = self._windows(small, self.settings.turns, (WINDOW, min(small.size)), 1.1, close=False)
        return windows / [scale, scale, scale, 1]

    def _second_look(self, picture, window: np.ndarray) -> Face | None:
        from PIL import Image

        x, y, side = window
        half, size = 0.9 * side, round(1.8 * self.settings.close_side)
        region = [round(value) for value in (x - half, y - half, x + half, y + half)]
        crop = picture.crop(region).resize((size, size), Image.Resampling.BICUBIC)
        limits = round(0.7 * self.settings.close_side), round(1.45 * self.settings.close_side)
        found = self._windows(crop, self.settings.close_turns, (max(WINDOW, limits[0]), limits[1]), 1.07, close=True)
        near = np.abs(found[:, :2] - size / 2).max(1, initial=0) < self.settings.close_side / 4
        if not near.any():
            return None
        votes = found[near]
        centre_x, centre_y, found_side, turn = votes.mean(0)
        scale = 2 * half / size
        at = x - half + centre_x * scale, y - half + centre_y * scale
        return _face(at, found_side * scale, turn, len(votes) / (len(votes) + self.settings.half))

    def _windows(self, picture, turns, limits: tuple[int, int], factor: float, close: bool) -> np.ndarray:
        """Every window accepted in the picture turned by ``turns``: [N, 4] as (x, y, side, turn).

        Close by, only the middle counts, so corners may be lost, and the picture is looked at mirrored too.
        """
        from PIL import Image, ImageOps

        found = [np.empty((0, 4))]
        if limits[0] > limits[1]:
            return found[0]
        for turn in turns:
            turned = picture.rotate(turn, Image.Resampling.BILINEAR, expand=not close)
            for mirrored in (False, True) if close else (False,):
                seen = ImageOps.mirror(turned) if mirrored else turned
                windows = self._accepted(np.asarray(seen), limits, factor)
                found.append(_turned_back(windows, turn, mirrored, turned.size, picture.size))
        return np.concatenate(found)

    def _accepted(self, array: np.ndarray, limits: tuple[int, int], factor: float) -> np.ndarray:
        low, high = limits
        found = self.cascade.detect_multi_scale(
            img=array, scale_factor=factor, step_ratio=1.0, min_size=(low, low), max_size=(high, high),
            min_neighbor_number=1, intersection_score_threshold=1.01,  # above 1: windows stay apart
        )  # fmt: skip
        rows = [(hit["c"] + hit["width"] / 2, hit["r"] + hit["height"] / 2, hit["width"]) for hit in found]
        return np.array(rows, float).reshape(-1, 3)


def _turned_back(windows: np.ndarray, turn: float, mirrored: bool, turned_size, size) -> np.ndarray:
    """Windows (x, y, side) of a picture turned counter-clockwise and then mirrored, as (x, y, side, turn) before."""
    x, y, side = windows.T
    x = turned_size[0] - x if mirrored else x
    dx, dy = x - turned_size[0] / 2, y - turned_size[1] / 2
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    before = cosine * dx - sine * dy + size[0] / 2, sine * dx + cosine * dy + size[1] / 2
    return np.stack([*before, side, np.full_like(side, turn)], 1)


def _face(centre, side: float, turn: float, score: float) -> Face:
    left, top, right, bottom = (side * part for part in FACE_IN_WINDOW)
    # The box's middle is below the window's, on the axis of a head that leans.
    down = (top + bottom) / 2
    x = float(centre[0] - down * math.sin(math.radians(turn)))
    y = float(centre[1] + down * math.cos(math.radians(turn)))
    half_width, half_height = float(right - left) / 2, float(bottom - top) / 2
    return Face((x - half_width, y - half_height, x + half_width, y + half_height), float(score), turn=float(turn))


def grouped(windows: np.ndarray, overlap: float = 0.4) -> list[np.ndarray]:
    """Windows [N, 4] in groups, largest first: the window with most others on it and these, then the same again.

    One lies on another where intersection over union of their squares is above ``overlap``.
    """
    groups, left = [], windows
    while len(left):
        near = _overlaps(left) > overlap
        members = near[near.sum(1).argmax()]
        groups.append(left[members])
        left = left[~members]
    return sorted(groups, key=len, reverse=True)


def _overlaps(windows: np.ndarray) -> np.ndarray:
    """Intersection over union [N, N] of squares (x, y, side, ...)."""
    apart, side = np.abs(windows[:, None, :2] - windows[None, :, :2]), windows[:, 2]
    both = (side[:, None] + side[None]) / 2
    smaller = np.minimum(side[:, None], side[None])
    common = np.clip(both[..., None] - apart, 0, smaller[..., None]).prod(2)
    return common / (side[:, None] ** 2 + side[None] ** 2 - common)


def without_overlap(faces: list[Face], overlap: float = 0.3) -> list[Face]:
    """The surest of faces that overlap, surest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(box_overlap(face.box, other.box) <= overlap for other in kept):
            kept.append(face)
    return kept


def box_overlap(one, other) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)
