"""GrabCut (Rother, Kolmogorov and Blake 2004, OpenCV's): a cut by colour from rough seeds, at a bounded size."""

import numpy as np

from ..optional import need

# OpenCV's labels of a pixel: certain ones stay what they are, the others are up to the colours.
OUT, IN, MAYBE_OUT, MAYBE_IN = 0, 1, 2, 3
ITERATIONS = 5


def grab_cut(picture: np.ndarray, labels: np.ndarray, iterations: int = ITERATIONS) -> np.ndarray:
    """Decide the MAYBE pixels by colour: bool [H, W].

    ``picture``: uint8 [H, W, 3]; ``labels``: uint8 [H, W]. Where all is in or all is out there is nothing to compare
    with, and the labels are the answer. Seeded, so equal input gives equal masks.
    """
    cv2 = need("cv2", "opencv-python")
    labels = labels.copy()
    inside = (labels & 1).astype(bool)
    undecided = labels >= MAYBE_OUT
    if inside.all() or not inside.any() or not undecided.any():
        return inside
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(picture), labels, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    return (labels & 1).astype(bool)


def seeds_from_mask(mask: np.ndarray, tolerance: float = 0.15) -> np.ndarray:
    """Labels uint8 [H, W] from a rough mask [H, W] in 0..1 (shape to improve, at least 0.5 is in).

    ``tolerance``: how far the true contour may lie from the rough one, as a share of the square root of its area.
    """
    cv2 = need("cv2", "opencv-python")
    inside = (mask >= 0.5).astype(np.uint8)
    reach = tolerance * float(inside.sum()) ** 0.5
    depth = cv2.distanceTransform(np.pad(inside, 1, mode="edge"), cv2.DIST_L2, 5)[1:-1, 1:-1]
    away = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5) if inside.any() else np.full(mask.shape, np.inf)
    labels = np.where(inside > 0, MAYBE_IN, MAYBE_OUT).astype(np.uint8)
    # A thin mask keeps its spine as certain.
    labels[depth > min(reach, 0.7 * depth.max())] = IN
    labels[away > reach] = OUT
    return labels
