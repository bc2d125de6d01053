"""Aligned crops of faces, by a similarity transform of five landmarks; differentiable in the picture."""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

# Where the eyes, the nose and the corners of the mouth belong in a crop of 112x112 pixels (ArcFace, section 3.1).
TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
TEMPLATE_SIZE = 112


def similarity_transform(points: Tensor, targets: Tensor) -> Tensor:
    """The similarity [B, 2, 3] that takes points [B, N, 2] nearest to targets [N, 2] or [B, N, 2] (least squares).

    In the plane the best turn and scale are one complex number: the projection of the targets onto the points (Umeyama
    1991 gives the same without mirroring).
    """
    targets = targets.expand_as(points)
    from_mean, to_mean = points.mean(1, keepdim=True), targets.mean(1, keepdim=True)
    source, target = points - from_mean, targets - to_mean
    size = source.square().sum((1, 2)).clamp(min=1e-12)
    cosine = (source * target).sum((1, 2)) / size
    sine = (source[..., 0] * target[..., 1] - source[..., 1] * target[..., 0]).sum(1) / size
    turn = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    shift = to_mean.transpose(1, 2) - turn @ from_mean.transpose(1, 2)
    return torch.cat([turn, shift], 2)


def template(size: int, margin: float = 0.0) -> Tensor:
    """The landmarks [5, 2] that a crop of ``size`` pixels aims at, with ``margin`` more around, a part of its side."""
    points = torch.tensor(TEMPLATE) * (size / TEMPLATE_SIZE)
    return (points - size / 2) / (1 + 2 * margin) + size / 2


def align_faces(images: Tensor, landmarks: Tensor, size: int) -> Tensor:
    """Crops [B, C, size, size] of images [B, C, H, W], each turned, scaled and moved until its face fits the template.

    landmarks: [B, 5, 2] in pixels (x, y): left eye, right eye, nose, left and right corner of the mouth, as the
    picture shows them. Beyond the picture its border is repeated. Raises ``ValueError`` for other shapes.
    """
    if images.ndim != 4 or landmarks.shape != (len(images), 5, 2):
        raise ValueError(
            f"images are {tuple(images.shape)}, landmarks {tuple(landmarks.shape)}: give [B, C, H, W] and [B, 5, 2]."
        )
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would put landmarks half a pixel off
        points = landmarks.to(images.device, torch.float32)
        back = similarity_transform(template(size).to(images.device).expand_as(points), points)
        return warp(images, back, (size, size))


def warp(images: Tensor, back: Tensor, size: tuple[int, int], padding: str = "border") -> Tensor:
    """Pictures [B, C, h, w] of ``size`` (h, w) whose pixel (x, y) is taken from images [B, C, H, W] at back (x, y, 1).

    back: [B, 2, 3]; coordinates are in pixels, a pixel's centre half a pixel from its corner. Bilinear; beyond the
    picture its border, or zeros, as ``padding`` of ``grid_sample`` says.
    """
    height, width = images.shape[-2:]
    # affine_grid speaks of -1..1 from border to border, in the result and in the picture.
    half_h, half_w = size[0] / 2, size[1] / 2
    to_pixels = torch.tensor([[half_w, 0, half_w], [0, half_h, half_h], [0, 0, 1]], device=images.device)
    scale = torch.tensor([[2 / width], [2 / height]], device=images.device)
    theta = scale * (back @ to_pixels) - torch.tensor([[0, 0, 1.0], [0, 0, 1.0]], device=images.device)
    grid = affine_grid(theta, (len(images), images.shape[1], *size), align_corners=False)
    return grid_sample(images.float(), grid, padding_mode=padding, align_corners=False)
