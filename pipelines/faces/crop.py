"""Faces cut out of pictures, and put back."""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..images import check_image
from .align import similarity_transform, template, warp
from .face import CropSettings, Face, Faces


def placement(face: Face, settings: CropSettings) -> Tensor:
    """The similarity [2, 3] from pixels of the picture to pixels of the face's crop.

    Aligned, the errors are least in the crop, as in InsightFace's code. ``align_faces`` makes them least in the
    picture, as the embedded embedder learnt it: its crops show 3 to 12 % less where landmarks fit badly.
    """
    if settings.mode == "aligned":
        points = face.with_landmarks().landmarks[None].float()
        return similarity_transform(points, template(settings.size, settings.margin))[0]
    scale = settings.size / ((1 + 2 * settings.margin) * max(face.width, face.height))
    x, y = face.centre
    half = settings.size / 2
    return torch.tensor([[scale, 0, half - scale * x], [0, scale, half - scale * y]])


def inverse(similarity: Tensor) -> Tensor:
    """The similarity [2, 3] that undoes one."""
    turn, shift = similarity[:, :2], similarity[:, 2:]
    back = torch.linalg.inv(turn)
    return torch.cat([back, -back @ shift], 1)


def crop_faces(images: Tensor, faces: Faces, settings: CropSettings) -> tuple[Tensor, Tensor]:
    """Crops [N, 3, S, S] of all faces, in order, of images [B, 3, H, W], and where they show picture: [N, 1, S, S].

    Beyond the picture its border is repeated. Raises ``ValueError`` where there is no face, or images are others.
    """
    images = check_image(images, "image")
    faces.check_pictures(images)
    if not faces.count:
        raise ValueError("there is no face to crop: lower min_score, or connect a picture that shows a face.")
    size = (settings.size, settings.size)
    crops, inside = [], []
    for number, face in faces.flat():
        back = inverse(placement(face, settings)).to(images.device)
        picture, factor = shrunk(images[number : number + 1], _step(back))
        within = (back * factor[:, None])[None]
        crops.append(warp(picture, within, size))
        inside.append(warp(torch.ones_like(picture[:, :1]), within, size, "zeros"))
    return torch.cat(crops), torch.cat(inside)


def _step(back: Tensor) -> float:
    """How many pixels of the picture one pixel of the crop spans."""
    return math.sqrt(abs(float(torch.linalg.det(back[:, :2]))))


def shrunk(image: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """A picture [1, C, H, W] ``step`` times smaller, and the factors [2] that take x and y in pixels there.

    Sampling a picture no finer than its crop leaves no jagged edges. What is less than half again too fine stays.
    """
    if step <= 1.5:
        return image, torch.ones(2, device=image.device)
    height, width = image.shape[-2:]
    size = [max(1, round(side / step)) for side in (height, width)]
    small = interpolate(image.float(), size=size, mode="bilinear", antialias=True)
    return small, torch.tensor([size[1] / width, size[0] / height], device=image.device)


def paste_faces(images: Tensor, crops: Tensor, faces: Faces, softness: float = 0.15) -> Tensor:
    """Images [B, 3, H, W] with crops [N, 3, s, s] put where ``faces`` were cut out (``faces.crop`` says how).

    softness: the part of a crop's side over which it fades out towards its edges, 0..1. A crop of another size than
    was cut is scaled. Of crops that overlap, a later one lies on top. Raises ``ValueError`` for other counts.
    """
    images, crops = check_image(images, "image"), check_image(crops, "crops")
    faces.check_pictures(images)
    if faces.crop is None:
        raise ValueError("these faces do not say how they were cropped: connect the faces that Face Crop gives out.")
    if len(crops) != faces.count or crops.shape[-1] != crops.shape[-2]:
        raise ValueError(
            f"{len(crops)} crop(s) of {crops.shape[-1]}x{crops.shape[-2]} for {faces.count} face(s): connect as many "
            "square crops as Face Crop gave out, in their order."
        )
    result = images.clone()
    for crop, (number, face) in zip(crops.to(images), faces.flat(), strict=True):
        to_crop = placement(face, faces.crop) * (crop.shape[-1] / faces.crop.size)
        _paste(result[number], crop, to_crop.to(images.device), softness)
    return result


def _paste(image: Tensor, crop: Tensor, to_crop: Tensor, softness: float) -> None:
    """Blends one crop [3, s, s] into image [3, H, W] in place."""
    side = crop.shape[-1]
    corners = torch.tensor([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1.0]], device=image.device)
    reach = inverse(to_crop) @ corners
    x0, y0 = (max(0, math.floor(value)) for value in reach.amin(1).tolist())
    right, bottom = reach.amax(1).tolist()
    x1, y1 = min(image.shape[2], math.ceil(right)), min(image.shape[1], math.ceil(bottom))
    if x1 <= x0 or y1 <= y0:
        return
    size = (y1 - y0, x1 - x0)
    moved = torch.cat([to_crop[:, :2], to_crop @ to_crop.new_tensor([[x0], [y0], [1.0]])], 1)
    finer, factor = shrunk(crop[None], _step(moved))
    weight = warp(fading(side, softness).to(image.device)[None, None], moved[None], size, "zeros")[0]
    region = image[:, y0:y1, x0:x1]
    region += weight * (warp(finer, (moved * factor[:, None])[None], size)[0] - region)


def fading(side: int, softness: float) -> Tensor:
    """Weights [side, side]: 1 in the middle, falling smoothly to 0 at the edges over softness * side pixels."""
    inwards = torch.arange(side) + 0.5
    near = torch.minimum(inwards, side - inwards) / max(softness * side, 1.0)
    ramp = near.clamp(max=1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    return ramp[:, None] * ramp[None]
