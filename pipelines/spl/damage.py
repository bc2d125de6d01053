"""A damaged edit of a photo: what a text-driven editor with a lossy generator hands back.

Made without any model, so that structure preservation can be shown and measured on every machine: the colour grade is
the edit a person asked for, the warp, blur and noise are the damage that the generator did on the way.
"""

from dataclasses import dataclass

import torch

from ..optional import need

_REFERENCE_SIDE = 512


@dataclass(frozen=True)
class Damage:
    """Lengths are in pixels of a picture of 512 pixels a side and scale with the picture.

    warp: root-mean-square displacement; warp_scale: over what distance it changes; blur: Gaussian sigma; noise:
    standard deviation in 0..1; seed: of warp and noise.
    """

    warp: float = 1.2
    warp_scale: float = 24.0
    blur: float = 1.6
    noise: float = 0.03
    seed: int = 0


def lossy_edit(photo: torch.Tensor, damage: Damage | None = None) -> torch.Tensor:
    """Golden-hour colour grade of ``photo`` ``[1, 3, H, W]`` in 0..1, with the damage; same shape and range."""
    import numpy as np

    cv2 = need("cv2", "opencv-python")

    damage = damage or Damage()
    image = _golden_hour(photo)[0].permute(1, 2, 0).contiguous().numpy()
    height, width = image.shape[:2]
    scale = max(min(height, width) / _REFERENCE_SIDE, 0.1)
    rng = np.random.default_rng(damage.seed)

    field = rng.standard_normal((2, height, width), dtype=np.float32)
    field = np.stack([cv2.GaussianBlur(plane, (0, 0), damage.warp_scale * scale) for plane in field])
    field *= damage.warp * scale / max(float(field.std()), 1e-6)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = cv2.remap(image, x + field[0], y + field[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    image = cv2.GaussianBlur(image, (0, 0), damage.blur * scale)
    image += damage.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return torch.from_numpy(image).permute(2, 0, 1)[None].clamp(0, 1)


def _golden_hour(photo: torch.Tensor) -> torch.Tensor:
    """Warm light, blue shadows, more contrast."""
    grey = photo.mean(dim=1, keepdim=True)
    shadows = photo.new_tensor([0.16, 0.10, 0.34]).reshape(1, 3, 1, 1)
    lights = photo.new_tensor([1.0, 0.82, 0.48]).reshape(1, 3, 1, 1)
    tone = shadows + (lights - shadows) * (grey * grey * (3 - 2 * grey))
    return (0.65 * tone + 0.35 * photo * lights).clamp(0, 1)
