"""Clothes: a person without head, hair, neck and, where their colour gives them away, hands."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..images import check_mask
from .body_prior import FaceFrame, reach_window
from .foreground import cut_people, owners
from .grabcut import IN, MAYBE_IN, MAYBE_OUT, OUT, grab_cut
from .inputs import MaskSettings, OnStep, check_faces, check_person


def clothing_masks(
    image: Tensor, faces: Sequence[Tensor], foreground: Tensor | None = None, person: int | None = None,
    settings: MaskSettings | None = None, on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """Masks float32 [B, 1, H, W] in 0..1 of what people wear below the chin; hats count as part of the head.

    ``image``: [B, 3, H, W] in 0..1; ``faces``: for each picture the boxes [N, 4] (x0, y0, x1, y1) in pixels;
    ``foreground``: where the people are, [B, H, W] in 0..1, found by GrabCut if not given; ``person``: whose clothes,
    from 0, or ``None`` for all. A picture without that face has an empty mask. ``on_step(done, total)`` is called after
    each picture. Raises ``ValueError`` for bad pictures, masks, boxes and numbers.
    """
    settings = settings or MaskSettings()
    image, faces = check_faces(image, faces)
    check_person(person, [len(boxes) for boxes in faces])
    if foreground is not None:
        foreground = check_mask(foreground, tuple(image.shape[-2:]), len(image), "foreground").to(image.device)
    masks = torch.zeros_like(image[:, :1])
    for index, (picture, boxes) in enumerate(zip(image, faces, strict=True)):
        if len(boxes) > (person or 0):
            people = None if foreground is None else foreground[index, 0]
            masks[index] = _of_picture(picture, boxes, people, person, settings)
        if on_step:
            on_step(index + 1, len(image))
    return masks


def _of_picture(picture: Tensor, boxes: np.ndarray, people: Tensor | None, person, settings: MaskSettings) -> Tensor:
    window = reach_window(boxes, tuple(picture.shape[-2:]), settings.working_size)
    if people is None:
        pixels, inside = cut_people(picture, boxes, window, settings.iterations)
    else:
        pixels, inside = window.picture(picture), window.mask(people) >= 0.5
    boxes = window.points(boxes)
    clothes = cut_clothes(pixels, boxes, inside, settings.iterations)
    if person is not None and len(boxes) > 1:
        clothes &= owners(pixels, boxes, inside, settings.iterations) == person
    return window.finish(clothes, picture, settings.softness)


def cut_clothes(pixels: np.ndarray, boxes: np.ndarray, inside: np.ndarray, iterations: int) -> np.ndarray:
    """Where people (bool [h, w]) with these face boxes [N, 4] wear clothes: bool [h, w].

    A second GrabCut, of clothes against skin and hair. What lies around the people must not take part in that, but
    GrabCut looks at whole pictures: so it is painted in the colour of the faces, which is in the second group anyway.
    """
    frames = [FaceFrame.of(box, inside.shape) for box in boxes]
    labels = clothing_seeds(frames)
    labels[~inside] = OUT
    skin = np.any([frame.face(0.7) for frame in frames], axis=0)
    if not skin.any():
        return inside & (labels & 1).astype(bool)
    pixels = pixels.copy()
    pixels[~inside] = np.median(pixels[skin], axis=0)
    return grab_cut(pixels, labels, iterations) & inside


def clothing_seeds(frames: Sequence[FaceFrame]) -> np.ndarray:
    """Labels uint8 [h, w]: heads are certainly out, chests in; beside the neck, long hair is more likely than cloth.

    Lengths are in face sizes; each pixel is judged by the face nearest to it.
    """
    nearest = np.stack([np.hypot(frame.x, frame.y) for frame in frames]).argmin(0)
    labels = np.full(nearest.shape, MAYBE_IN, np.uint8)
    for number, frame in enumerate(frames):
        own, below, aside = nearest == number, frame.below, abs(frame.x)
        beside_neck = (aside > 0.35) & (aside < 0.8)
        chest = (aside < 0.7) & (below > 0.6) & ~(beside_neck & (below < 0.9)) | (aside < 0.3) & (below > 0.5)
        shoulders = (aside > 1.0) & (aside < 1.2) & (below > 0.3)
        labels[own & ((below < 0.1) | beside_neck & (below < 0.6))] = MAYBE_OUT
        labels[own & (chest | shoulders) & (below < 3)] = IN
        labels[own & (below < -0.05)] = OUT
        labels[frame.face(0.95)] = OUT
    return labels
