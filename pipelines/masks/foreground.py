"""People before their background, without any weights: GrabCut, seeded by the boxes of faces or by a rough mask."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..images import check_image, check_mask
from ..optional import need
from .body_prior import FaceFrame, body_seeds, certain, reach_window
from .grabcut import IN, MAYBE_IN, MAYBE_OUT, OUT, grab_cut, seeds_from_mask
from .inputs import MaskSettings, OnStep, check_faces, check_person
from .operations import holes, pieces
from .window import Window

HOLE = 0.002  # share of the window that a hole in a person may have and still be filled
CLEAR = 0.6  # how much nearer to one person than to the next a pixel is surely that person's, in face sizes


def foreground_masks(
    image: Tensor, faces: Sequence[Tensor], person: int | None = None, settings: MaskSettings | None = None,
    on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """Masks float32 [B, 1, H, W] in 0..1 of the people whose faces are given.

    ``image``: [B, 3, H, W] in 0..1; ``faces``: for each picture the boxes [N, 4] (x0, y0, x1, y1) in pixels;
    ``person``: whom of them, from 0, or ``None`` for all. A picture without that face has an empty mask.
    ``on_step(done, total)`` is called after each picture. Raises ``ValueError`` for bad pictures, boxes and numbers.
    """
    settings = settings or MaskSettings()
    image, faces = check_faces(image, faces)
    check_person(person, [len(boxes) for boxes in faces])
    masks = torch.zeros_like(image[:, :1])
    for index, (picture, boxes) in enumerate(zip(image, faces, strict=True)):
        if len(boxes) > (person or 0):
            masks[index] = _of_picture(picture, boxes, person, settings)
        if on_step:
            on_step(index + 1, len(image))
    return masks


def _of_picture(picture: Tensor, boxes: np.ndarray, person: int | None, settings: MaskSettings) -> Tensor:
    window = reach_window(boxes, tuple(picture.shape[-2:]), settings.working_size)
    pixels, inside = cut_people(picture, boxes, window, settings.iterations)
    if person is not None and len(boxes) > 1:
        inside = inside & (owners(pixels, window.points(boxes), inside, settings.iterations) == person)
    return window.finish(inside, picture, settings.softness)


def cut_people(
    picture: Tensor, boxes: np.ndarray, window: Window, iterations: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """What a window shows (uint8 [h, w, 3]), and where people with these face boxes [N, 4] are in it (bool [h, w])."""
    pixels = window.picture(picture)
    labels = body_seeds(window.points(boxes), window.size)
    inside = grab_cut(pixels, labels, iterations)
    numbers, _ = pieces(inside)
    attached = np.isin(numbers, np.unique(numbers[(labels == IN) & inside])) & inside
    return pixels, attached | small_holes(attached)


def small_holes(inside: np.ndarray) -> np.ndarray:
    """The holes of a bool array [H, W] that are too small for a gap between arm and body."""
    numbers, areas = pieces(holes(inside))
    areas[0] = inside.size
    return (areas < HOLE * inside.size)[numbers]


def owners(pixels: np.ndarray, boxes: np.ndarray, inside: np.ndarray, iterations: int) -> np.ndarray:
    """Whose each pixel is: int [h, w], the number of a face box [N, 4]; counts where ``inside`` is true only.

    What lies clearly nearest to one person's face and chest is that person's; between people the colours decide: one
    GrabCut for each of them against the others, and the nearest where they disagree.
    """
    cv2 = need("cv2", "opencv-python")
    frames = [FaceFrame.of(box, inside.shape) for box in boxes]
    cores = np.stack([certain(frame) for frame in frames])
    away = np.stack([cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 5) for core in cores])
    nearest = away.argmin(0)
    clear = CLEAR * np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]).mean()
    claims = np.zeros(cores.shape, bool)
    for number in range(len(boxes)):
        ahead = np.delete(away, number, 0).min(0) - away[number]
        labels = np.where(nearest == number, MAYBE_IN, MAYBE_OUT).astype(np.uint8)
        labels[ahead > clear] = IN
        labels[(ahead < -clear) | ~inside | np.delete(cores, number, 0).any(0)] = OUT
        labels[cores[number] & inside & (nearest == number)] = IN
        claims[number] = grab_cut(pixels, labels, iterations)
    return np.where(claims.sum(0) == 1, claims.argmax(0), nearest)


def split_people(
    image: Tensor, mask: Tensor, faces: Sequence[Tensor], settings: MaskSettings | None = None
) -> list[Tensor]:  # fmt: skip
    """A mask of several people in parts, one a person: for each picture float32 [N, H, W]; together they are the mask.

    ``image`` [B, 3, H, W]; ``mask`` [B, H, W] in 0..1; ``faces``: for each picture the boxes [N, 4]. Raises
    ``ValueError`` for a picture without faces.
    """
    settings = settings or MaskSettings()
    image, faces = check_faces(image, faces)
    mask = check_mask(mask, tuple(image.shape[-2:]), len(image)).to(image.device)
    parts = []
    for index, (picture, boxes) in enumerate(zip(image, faces, strict=True)):
        if len(boxes) == 0:
            raise ValueError(f"image {index + 1} has no faces to split its mask by: leave that image out.")
        height, width = picture.shape[-2:]
        window = Window.around(0, 0, width, height, (height, width), settings.working_size)
        inside = window.mask(mask[index, 0]) >= 0.5
        whose = np.zeros(window.size, int)
        if len(boxes) > 1:
            whose = owners(window.picture(picture), window.points(boxes), inside, settings.iterations)
        shares = torch.cat([window.finish(whose == number, picture, settings.softness) for number in range(len(boxes))])
        parts.append(mask[index] * shares / shares.sum(0, keepdim=True).clamp(min=1e-6))
    return parts


def refine_mask(
    image: Tensor, mask: Tensor, settings: MaskSettings | None = None, tolerance: float = 0.15,
    on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """A rough mask [B, h, w] in 0..1, brought to the contour of what it covers: float32 [B, 1, H, W].

    ``image`` [B, 3, H, W]; ``tolerance``: how far the true contour may be from the rough one, as a share of the square
    root of the mask's area. An empty mask stays empty. Raises ``ValueError`` for bad pictures and masks.
    """
    settings = settings or MaskSettings()
    if not 0 < tolerance <= 1:
        raise ValueError(f"tolerance is {tolerance}: use more than 0, at most 1.")
    image = check_image(image, "image")
    mask = check_mask(mask, tuple(image.shape[-2:]), len(image)).to(image.device)
    refined = torch.zeros_like(mask)
    for index, picture in enumerate(image):
        rows, columns = (mask[index, 0] >= 0.5).nonzero(as_tuple=True)
        if len(rows):
            edge = 2 * tolerance * float(len(rows)) ** 0.5 + 8
            left, top, right, bottom = (
                float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            )
            full = tuple(picture.shape[-2:])
            window = Window.around(left - edge, top - edge, right + edge, bottom + edge, full, settings.working_size)
            labels = seeds_from_mask(window.mask(mask[index, 0]), tolerance)
            cut = grab_cut(window.picture(picture), labels, settings.iterations)
            refined[index] = window.finish(cut | small_holes(cut), picture, settings.softness)
        if on_step:
            on_step(index + 1, len(image))
    return refined
