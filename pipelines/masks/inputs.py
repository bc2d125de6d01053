"""What every kind of mask is asked with: pictures, faces, which person; checked once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..images import check_image, size_text

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class MaskSettings:
    """How masks are cut.

    softness: how wide edges may become, in pixels of the picture; 0 makes them hard.
    working_size: longest side in pixels that colours are compared at; a guided filter takes the contour from there to
        the full size.
    iterations: rounds of GrabCut.
    """

    softness: int = 2
    working_size: int = 320
    iterations: int = 5

    def __post_init__(self):
        if self.softness < 0 or self.iterations < 1 or self.working_size < 32:
            raise ValueError(
                f"softness is {self.softness}, iterations {self.iterations}, working_size {self.working_size}: use at "
                "least 0, 1 and 32."
            )


def check_faces(image: Tensor, faces: Sequence[Tensor]) -> tuple[Tensor, list[np.ndarray]]:
    """Pictures [B, 3, H, W] in 0..1, and for each the boxes of its faces as float64 [N, 4] (x0, y0, x1, y1) in pixels.

    The boxes of one picture serve a whole batch. Raises ``ValueError`` for boxes that are none, or lie elsewhere.
    """
    image = check_image(image, "image")
    if len(faces) not in (1, len(image)):
        raise ValueError(
            f"faces are those of {len(faces)} images, image is a batch of {len(image)}: detect the faces in the same "
            "images."
        )
    found = [_check_boxes(boxes, image, index) for index, boxes in enumerate(faces)]
    return image, found if len(found) == len(image) else found * len(image)


def _check_boxes(boxes, image: Tensor, index: int) -> np.ndarray:
    boxes = torch.as_tensor(boxes).detach().cpu().double().numpy().reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise ValueError(f"a face box of image {index + 1} is not finite: detect the faces again.")
    height, width = image.shape[-2:]
    for x0, y0, x1, y1 in boxes:
        text = f"face box ({x0:.0f}, {y0:.0f}, {x1:.0f}, {y1:.0f}) of image {index + 1}"
        if x1 - x0 < 1 or y1 - y0 < 1:
            raise ValueError(f"the {text} is empty: a box is x0, y0, x1, y1 in pixels.")
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise ValueError(f"the {text} lies outside of the {size_text(image)} image: detect the faces in it.")
    return boxes


def check_person(person: int | None, counts: Sequence[int], what: str = "faces") -> None:
    """Raise ``ValueError`` if no picture shows anybody, or none the person of this number (from 0; ``None`` is all)."""
    most = max(counts, default=0)
    if most == 0:
        raise ValueError(f"no {what} in any image: use pictures that show somebody, or detect with a lower score.")
    if person is not None and not 0 <= person < most:
        raise ValueError(f"person {person + 1} is asked for, no image has more than {most} {what}: choose 1 to {most}.")
