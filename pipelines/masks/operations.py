"""What can be done to a mask: fill holes, keep pieces, drop specks, a band along the edge, edges from a picture.

Masks come as [B, H, W] or [B, 1, H, W] in 0..1 and leave as float32 [B, 1, H, W]. Regions are told at 0.5, soft values
inside of them are kept. Every mask of a batch is treated by itself.
"""

import numpy as np
import torch
from torch import Tensor

from ..filters import guided_filter
from ..images import check_image, check_mask, match_batch
from ..optional import need


def _planes(mask: Tensor) -> Tensor:
    if mask.ndim == 2:
        mask = mask[None]
    return check_mask(mask, tuple(mask.shape[-2:]), len(mask))


def _each(mask: Tensor, change) -> Tensor:
    """``change`` (float array [H, W], bool array [H, W]) -> array [H, W], on every mask of a batch."""
    mask = _planes(mask)
    planes = [change(plane, plane >= 0.5) for plane in mask[:, 0].cpu().numpy()]
    return torch.from_numpy(np.stack(planes).astype(np.float32))[:, None].to(mask.device)


def pieces(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected pieces (corners connect) of a bool array [H, W]: numbers [H, W], 0 outside, and areas [n + 1]."""
    cv2 = need("cv2", "opencv-python")
    _, numbers, statistics, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    return numbers, statistics[:, cv2.CC_STAT_AREA]


def holes(inside: np.ndarray) -> np.ndarray:
    """Where a bool array [H, W] is enclosed: outside, and without a way to the border."""
    cv2 = need("cv2", "opencv-python")
    outside = np.pad((~inside).astype(np.uint8), 1, constant_values=1)
    _, numbers = cv2.connectedComponents(outside, connectivity=4)
    return (numbers != numbers[0, 0])[1:-1, 1:-1] & ~inside


def fill_holes(mask: Tensor, largest: float = 1.0) -> Tensor:
    """Fill what the mask encloses. ``largest``: leave holes above this share of the picture open."""
    _share(largest, "largest")

    def change(values, inside):
        numbers, areas = pieces(holes(inside))
        areas[0] = inside.size + 1
        return np.where((areas <= largest * inside.size)[numbers], 1.0, values)

    return _each(mask, change)


def keep_piece(mask: Tensor, rank: int = 1) -> Tensor:
    """Only the piece of a mask that is the ``rank``-th in size, from 1; empty where there are fewer."""
    if rank < 1:
        raise ValueError(f"rank is {rank}: 1 is the largest piece, 2 the next.")

    def change(values, inside):
        numbers, areas = pieces(inside)
        if len(areas) <= rank:
            return np.zeros_like(values)
        chosen = 1 + np.argsort(-areas[1:], kind="stable")[rank - 1]
        return values * _belongs(numbers == chosen, inside)

    return _each(mask, change)


def remove_specks(mask: Tensor, smallest: float = 0.001) -> Tensor:
    """Drop pieces below the share ``smallest`` of the picture."""
    _share(smallest, "smallest")

    def change(values, inside):
        numbers, areas = pieces(inside)
        large = areas >= smallest * inside.size
        large[0] = False
        return values * _belongs(large[numbers], inside)

    return _each(mask, change)


def _belongs(kept: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Where (bool [H, W]) the nearest piece of ``inside`` is one of the ``kept``: soft rims go with their piece."""
    dropped = inside & ~kept
    if not kept.any() or not dropped.any():
        return np.full(kept.shape, bool(kept.any()))
    cv2 = need("cv2", "opencv-python")
    to_kept, to_dropped = (cv2.distanceTransform((~side).astype(np.uint8), cv2.DIST_L2, 5) for side in (kept, dropped))
    return to_kept <= to_dropped


def edge_band(mask: Tensor, inner: int, outer: int) -> Tensor:
    """1 within ``inner`` pixels inside and ``outer`` pixels outside of the contour, else 0.

    The border of the picture is no contour.
    """
    if inner < 0 or outer < 0 or inner + outer == 0:
        raise ValueError(f"inner is {inner} and outer is {outer}: use 0 or more pixels, at least one of them above 0.")
    cv2 = need("cv2", "opencv-python")

    def change(values, inside):
        if inside.all() or not inside.any():
            return np.zeros_like(values)
        depth, away = (cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, 5) for side in (inside, ~inside))
        return np.where(inside, depth <= inner, away <= outer)

    return _each(mask, change)


def soften(mask: Tensor, image: Tensor, radius: int, epsilon: float = 1e-4) -> Tensor:
    """The mask with edges as soft or sharp as those of ``image`` [B, 3, H, W], by the guided filter.

    ``radius``: how far edges may move and soften, in pixels; 0 leaves the mask. ``epsilon``: squared contrast of an
    edge that is respected. A batch of 1 serves a larger one.
    """
    image = check_image(image, "image")
    mask = _planes(mask)
    batch = max(len(mask), len(image))
    image = match_batch(image, batch, "image")
    mask = check_mask(mask, tuple(image.shape[-2:]), batch).to(image.device)
    if radius < 0 or not epsilon > 0:
        raise ValueError(f"radius is {radius} and epsilon {epsilon}: use 0 or more pixels, and more than 0.")
    if radius == 0:
        return mask
    return guided_filter(mask, image.mean(1, keepdim=True), radius, epsilon).clamp(0, 1)


def _share(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: give a share of the picture, 0 to 1.")
