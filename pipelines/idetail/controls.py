"""What the ControlNets of the photo generator see: the photo at a size they know, its face points, its edges."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..images import to_uint8
from ..optional import need
from ..training.image_folder import cover_crop

# Left eye, right eye, nose, left and right corner of the mouth, as InstantID's IdentityNet learnt them.
POINT_COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 1.0))
NOSE = 2
STICK_LEVEL, STICK_WIDTH, POINT_RADIUS = 0.6, 4, 10  # brightness, and pixels


def fitted(image: Tensor, longest: int, multiple: int = 64) -> Tensor:
    """``image`` [1, 3, H, W] with its longer side at most ``longest`` and both multiples of ``multiple``.

    Scaled, up too, until it covers that size, then cropped around its centre: InstantID's own code squeezes it instead.
    """
    size = tuple(image.shape[-2:])
    scale = longest / max(size)
    sides = tuple(max(int(side * scale + 1e-6) // multiple * multiple, multiple) for side in size)
    resized, (top, left) = cover_crop(size, sides)
    scaled = interpolate(image, size=resized, mode="bilinear", antialias=True)
    return scaled[..., top : top + sides[0], left : left + sides[1]].clamp(0, 1)


def draw_points(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Five landmarks [5, 2] in pixels (x, y) as IdentityNet sees them: [3, H, W] in 0..1, black around.

    Flat ellipses from eyes and mouth to the nose, then a disc on every point, later ones on top (InstantID's drawing).
    """
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    picture = torch.zeros(3, *size)
    points, colors = points.cpu().double(), torch.tensor(POINT_COLORS)
    for number, point in enumerate(points):
        if number == NOSE:
            continue
        (x, y), (dx, dy) = ((point + points[NOSE]) / 2).trunc().tolist(), (point - points[NOSE]).tolist()
        length = max((dx * dx + dy * dy) ** 0.5, 1e-6)
        along = ((columns - x) * dx + (rows - y) * dy) / length
        across = ((rows - y) * dx - (columns - x) * dy) / length
        inside = (along / max(length / 2, 1)) ** 2 + (across / STICK_WIDTH) ** 2 <= 1
        picture[:, inside] = STICK_LEVEL * colors[number, :, None]
    for number, (x, y) in enumerate(points.trunc().tolist()):
        inside = (columns - x) ** 2 + (rows - y) ** 2 <= POINT_RADIUS**2
        picture[:, inside] = colors[number, :, None]
    return picture


def canny_edges(image: Tensor, low: float, high: float) -> Tensor:
    """The edges of ``image`` [3, H, W] in 0..1 as white lines [3, H, W] (Canny 1986, OpenCV's).

    low, high: thresholds of its hysteresis, in steps of 8-bit grey levels.
    """
    cv2 = need("cv2", "opencv-python")
    edges = torch.from_numpy(cv2.Canny(to_uint8(image), low, high)).float() / 255
    return edges.expand(3, -1, -1).clone()
