"""Where a person is likely to be, judged by the box of the face alone: seeds for GrabCut.

All lengths are in face sizes, the longer side of the box (a face in profile is narrow): a person is some eight high.
"""

from dataclasses import dataclass

import numpy as np

from .grabcut import IN, MAYBE_IN, MAYBE_OUT, OUT
from .window import Window


@dataclass(frozen=True)
class FaceFrame:
    """Coordinates of every pixel [H, W] seen from one face: ``x`` and ``y`` from its middle, ``below`` from the chin.

    ``width`` and ``height`` are those of the box; everything is in face sizes.
    """

    x: np.ndarray
    y: np.ndarray
    below: np.ndarray
    width: float
    height: float

    @classmethod
    def of(cls, box, size: tuple[int, int]) -> "FaceFrame":
        """The frame of ``box`` (x0, y0, x1, y1) in a picture of ``size`` (H, W) pixels."""
        x0, y0, x1, y1 = (float(value) for value in box)
        unit = max(x1 - x0, y1 - y0)
        rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
        x, y = (columns - (x0 + x1) / 2) / unit, (rows - (y0 + y1) / 2) / unit
        return cls(x, y, (rows - y1) / unit, (x1 - x0) / unit, (y1 - y0) / unit)

    def ellipse(self, middle: float, across: float, along: float) -> np.ndarray:
        """Inside an upright ellipse with its middle ``middle`` below that of the face and these half axes."""
        return (self.x / across) ** 2 + ((self.y - middle) / along) ** 2 <= 1

    def column(self, neck: float, growth: float, widest: float, until: float) -> np.ndarray:
        """Inside a body from the chin to ``until`` below it: half as wide as ``neck``, growing to ``widest``."""
        half = np.clip(neck + growth * self.below, neck, widest)
        return (abs(self.x) < half) & (self.below > -0.3) & (self.below < until)

    def face(self, share: float) -> np.ndarray:
        """The ellipse in the box, its axes times ``share``."""
        return self.ellipse(0, share * self.width / 2, share * self.height / 2)


def reach(frame: FaceFrame) -> np.ndarray:
    """Everywhere hair, hats and arms may get to."""
    return frame.ellipse(-0.3, 1.7, 2.2) | frame.column(1.6, 1.2, 3.2, 8)


def likely(frame: FaceFrame) -> np.ndarray:
    """Head, shoulders, torso and legs of somebody who stands upright."""
    head = frame.ellipse(-0.15 * frame.height, 0.75, 1.0)
    return head | frame.column(0.4, 1.4, 1.3, 3.5) | frame.column(0.4, 0.4, 0.8, 7)


def certain(frame: FaceFrame) -> np.ndarray:
    """The face, and the middle of the chest below it."""
    return frame.face(0.86) | (frame.column(0.1, 0.5, 0.45, 1.9) & (frame.below > 0.15))


def body_seeds(boxes, size: tuple[int, int]) -> np.ndarray:
    """Labels uint8 [H, W] for GrabCut of all people whose face boxes [N, 4] are given."""
    frames = [FaceFrame.of(box, size) for box in boxes]
    labels = np.full(size, OUT, np.uint8)
    for region, label in ((reach, MAYBE_OUT), (likely, MAYBE_IN), (certain, IN)):
        for frame in frames:
            labels[region(frame)] = label
    return labels


def reach_window(boxes: np.ndarray, full: tuple[int, int], longest: int) -> Window:
    """The part of a picture of ``full`` (H, W) pixels that people with the face boxes [N, 4] may be in."""
    unit = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    left, top = (x - 4 * unit).min(), (y - 3 * unit).min()
    return Window.around(left, top, (x + 4 * unit).max(), (boxes[:, 3] + 8.5 * unit).max(), full, longest)
