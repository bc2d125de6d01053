"""Faces drawn into their pictures."""

import torch
from torch import Tensor

from ..images import from_uint8, to_uint8
from .face import Face, Faces

FOUND, ESTIMATED = (60, 220, 90), (255, 190, 40)


def draw_faces(images: Tensor, faces: Faces) -> Tensor:
    """Images [B, 3, H, W] with each face's box, number, score and points; estimated points are yellow."""
    faces.check_pictures(images)
    drawn = [_drawn(image, own) for image, own in zip(images, faces.images, strict=True)]
    return torch.cat(drawn).to(images.device)


def _drawn(image: Tensor, faces: tuple[Face, ...]) -> Tensor:
    import numpy as np
    from PIL import Image, ImageDraw

    picture = Image.fromarray(to_uint8(image))
    pen = ImageDraw.Draw(picture)
    thick = max(1, round(max(picture.size) / 400))
    for number, face in enumerate(faces):
        pen.rectangle(face.box, outline=FOUND, width=thick)
        label = f"{number}: {face.score:.2f}"
        corner = (face.box[0] + 2 * thick, face.box[1] + thick)
        pen.text(corner, label, fill=FOUND, font_size=max(10, 6 * thick), stroke_width=1, stroke_fill=(0, 0, 0))
        colour, reach = ESTIMATED if face.landmarks_estimated else FOUND, 1.5 * thick
        for x, y in [] if face.landmarks is None else face.landmarks.tolist():
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
    return from_uint8(np.asarray(picture))


def box_mask(faces: Faces) -> Tensor:
    """Masks [B, H, W], 1 in the boxes of faces."""
    height, width = faces.size
    mask = torch.zeros(len(faces.images), height, width)
    for number, face in faces.flat():
        x0, y0, x1, y1 = (round(value) for value in face.box)
        mask[number, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
    return mask
