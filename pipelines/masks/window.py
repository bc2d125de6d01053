"""A part of a picture at a bounded size: where masks are cut, and the way back to the full picture."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..filters import guided_filter
from ..images import to_uint8
from ..optional import need

EDGE = 1e-4  # squared contrast of an edge that the mask keeps to


@dataclass(frozen=True)
class Window:
    """Pixels ``left`` to ``right`` and ``top`` to ``bottom`` of a picture of ``full`` (H, W), seen at ``size`` (h, w).

    Inside, positions are in working pixels.
    """

    left: int
    top: int
    right: int
    bottom: int
    full: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def around(cls, left: float, top: float, right: float, bottom: float, full: tuple[int, int], longest: int):
        """The part of a box that lies in the picture, its longer side at most ``longest`` working pixels."""
        left, top = max(0, int(left)), max(0, int(top))
        right, bottom = min(full[1], int(np.ceil(right))), min(full[0], int(np.ceil(bottom)))
        height, width = bottom - top, right - left
        scale = min(1.0, longest / max(height, width))
        return cls(left, top, right, bottom, full, (max(1, round(height * scale)), max(1, round(width * scale))))

    @property
    def shrunk(self) -> float:
        """How many pixels of the picture a working pixel spans, at least 1."""
        return max((self.bottom - self.top) / self.size[0], (self.right - self.left) / self.size[1])

    def points(self, points: np.ndarray) -> np.ndarray:
        """Positions [..., 2 or 4] as x, y (, x, y) of the picture, in working pixels."""
        times = points.shape[-1] // 2
        scale = self.size[1] / (self.right - self.left), self.size[0] / (self.bottom - self.top)
        return (points - np.array([self.left, self.top] * times)) * np.array(scale * times)

    def picture(self, image: Tensor) -> np.ndarray:
        """What is seen of ``image`` [3, H, W]: uint8 [h, w, 3]."""
        return self._shrink(to_uint8(image[:, self.top : self.bottom, self.left : self.right]))

    def mask(self, mask: Tensor) -> np.ndarray:
        """What is seen of a mask [H, W]: float32 [h, w]."""
        return self._shrink(mask[self.top : self.bottom, self.left : self.right].float().cpu().numpy())

    def _shrink(self, pixels: np.ndarray) -> np.ndarray:
        cv2 = need("cv2", "opencv-python")
        if pixels.shape[:2] == self.size:
            return np.ascontiguousarray(pixels)
        return cv2.resize(pixels, self.size[::-1], interpolation=cv2.INTER_AREA)

    def finish(self, mask: np.ndarray, image: Tensor, softness: int) -> Tensor:
        """A mask [h, w] of the window in the full picture [3, H, W], brought to its edges: [1, H, W], 0 elsewhere.

        ``softness``: how wide the edge may become, in pixels; 0 makes it hard.
        """
        small = torch.from_numpy(mask.astype(np.float32))[None, None].to(image.device)
        height, width = self.bottom - self.top, self.right - self.left
        large = small
        if self.size != (height, width):
            large = interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
        radius = softness + round(self.shrunk) - 1
        if radius > 0:
            guide = image[None, :, self.top : self.bottom, self.left : self.right].mean(1, keepdim=True)
            large = guided_filter(large, guide, radius, EDGE).clamp(0, 1)
        if softness == 0:
            large = (large >= 0.5).float()
        return pad(large, (self.left, self.full[1] - self.right, self.top, self.full[0] - self.bottom))[0]
