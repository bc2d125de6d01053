"""Faces: an ellipse in the box, upright or as tilted as the eyes, refined by the colours of skin, hair and beyond."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .grabcut import IN, MAYBE_IN, MAYBE_OUT, OUT, grab_cut
from .inputs import MaskSettings, OnStep, check_faces, check_person
from .operations import holes, pieces
from .window import Window

CERTAIN, POSSIBLE = 0.75, 1.15  # axes of the ellipses that are surely face, and may be, against the one in the box
SLIMMEST, WIDEST = 0.5, 1.25  # across against along: a face in profile, and one that looks down


def face_masks(
    image: Tensor, faces: Sequence[Tensor], landmarks: Sequence[Sequence[Tensor | None]] | None = None,
    person: int | None = None, settings: MaskSettings | None = None, by_color: bool = True,
    on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """Masks float32 [B, 1, H, W] in 0..1 of faces: skin, eyes, mouth and beard, neither hair nor ears.

    ``image``: [B, 3, H, W] in 0..1; ``faces``: for each picture the boxes [N, 4] (x0, y0, x1, y1) in pixels;
    ``landmarks``: for each box points [5, 2], the eyes first, or ``None``; ``person``: whose face, from 0, or ``None``
    for all; ``by_color``: refine the ellipse by GrabCut. A picture without that face has an empty mask.
    ``on_step(done, total)`` is called after each picture. Raises ``ValueError`` for bad pictures, boxes and numbers.
    """
    settings = settings or MaskSettings()
    image, boxes_of = check_faces(image, faces)
    check_person(person, [len(boxes) for boxes in boxes_of])
    if landmarks is not None and len(landmarks) != len(faces):
        raise ValueError(f"landmarks are those of {len(landmarks)} images, the faces of {len(faces)}.")
    masks = torch.zeros_like(image[:, :1])
    for index, (picture, boxes) in enumerate(zip(image, boxes_of, strict=True)):
        of_picture = [None] * len(boxes) if landmarks is None else landmarks[index if len(faces) > 1 else 0]
        if len(of_picture) != len(boxes):
            raise ValueError(f"image {index + 1} has {len(boxes)} face boxes and {len(of_picture)} sets of landmarks.")
        for number in range(len(boxes)) if person is None else [person] * (len(boxes) > person):
            tilt = tilt_of(of_picture[number])
            masks[index] = torch.maximum(masks[index], _of_face(picture, boxes[number], tilt, settings, by_color))
        if on_step:
            on_step(index + 1, len(image))
    return masks


def tilt_of(landmarks: Tensor | None) -> float:
    """How far a face leans, in radians, positive clockwise: the slope from its first to its second landmark, the eyes.

    Raises ``ValueError`` for landmarks that are not finite points [L, 2].
    """
    if landmarks is None:
        return 0.0
    points = torch.as_tensor(landmarks).cpu().double()
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or not torch.isfinite(points).all():
        raise ValueError(f"landmarks are {tuple(points.shape)}: give 5 finite points (x, y) in pixels, the eyes first.")
    across, down = (points[1] - points[0]).tolist()
    return float(np.arctan2(down, across))


def half_axes(box: np.ndarray, tilt: float) -> tuple[float, float]:
    """Half axes, across and along, of the ellipse of this tilt that touches all four sides of ``box``.

    A tilted ellipse spans W^2 = 4 (a^2 cos^2 + b^2 sin^2) and H^2 = 4 (a^2 sin^2 + b^2 cos^2), which is solved for
    a^2 + b^2 and a^2 - b^2. At 45 degrees a box does not tell a from b: the ratio is kept to those of faces.
    """
    wide, high = ((box[2] - box[0]) / 2) ** 2, ((box[3] - box[1]) / 2) ** 2
    total, turn = wide + high, np.cos(2 * tilt)
    least, most = (total * (ratio**2 - 1) / (ratio**2 + 1) for ratio in (SLIMMEST, WIDEST))
    difference = np.clip((wide - high) / turn if turn else least, least, most)
    return float((total + difference) / 2) ** 0.5, float((total - difference) / 2) ** 0.5


def face_ellipse(box: np.ndarray, tilt: float, share: float, size: tuple[int, int]) -> np.ndarray:
    """Inside (bool [H, W]) the ellipse of a face box, its axes times ``share``."""
    across, along = half_axes(box, tilt)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    x, y = columns - (box[0] + box[2]) / 2, rows - (box[1] + box[3]) / 2
    u, v = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    return (u / (share * across)) ** 2 + (v / (share * along)) ** 2 <= 1


def _of_face(picture: Tensor, box: np.ndarray, tilt: float, settings: MaskSettings, by_color: bool) -> Tensor:
    edge = 0.3 * max(box[2] - box[0], box[3] - box[1]) + 2
    full = tuple(picture.shape[-2:])
    left, top, right, bottom = box + np.array([-edge, -edge, edge, edge])
    window = Window.around(left, top, right, bottom, full, settings.working_size)
    box = window.points(box)
    inside = face_ellipse(box, tilt, 1.0, window.size)
    if by_color:
        labels = np.full(window.size, OUT, np.uint8)
        labels[face_ellipse(box, tilt, POSSIBLE, window.size)] = MAYBE_OUT
        labels[inside] = MAYBE_IN
        labels[face_ellipse(box, tilt, CERTAIN, window.size)] = IN
        inside = _main_piece(grab_cut(window.picture(picture), labels, settings.iterations))
    return window.finish(inside, picture, settings.softness)


def _main_piece(inside: np.ndarray) -> np.ndarray:
    numbers, areas = pieces(inside)
    areas[0] = 0
    main = numbers == areas.argmax()
    return main | holes(main) if areas.any() else inside
