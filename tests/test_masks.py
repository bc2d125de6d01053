"""Guided mask upsampling against the authors' steps written with OpenCV, and its promises."""

import cv2
import numpy as np
import pytest
import torch
from likeness.pipelines.masks import MaskUpsampling, upsample_mask
from PIL import Image


def scene(height: int, width: int):
    """A bright disc on a dark, slightly noisy ground, and the disc's mask."""
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.3 * min(height, width)) ** 2
    noise = np.random.default_rng(0).normal(0, 0.02, (height, width))
    grey = np.clip(0.2 + 0.6 * disc + noise, 0, 1).astype(np.float32)
    return torch.from_numpy(grey).expand(1, 3, -1, -1).contiguous(), torch.from_numpy(disc)


def coarse(mask: torch.Tensor, size) -> torch.Tensor:
    return torch.nn.functional.interpolate(mask[None, None].float(), size=size, mode="area")[0]


def by_opencv(mask, guide, settings):
    """Steps E and G of the method notes with OpenCV's filters, in float between scales as we decided."""
    grey = guide[0].mean(0).numpy()
    m, size, radius = mask[0].numpy(), mask.shape[-1], settings.radius

    def lanczos(plane, side):
        return np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.LANCZOS))

    def mean(plane, r):
        kernel = {"ksize": (2 * r + 1, 2 * r + 1), "normalize": False, "borderType": cv2.BORDER_CONSTANT}
        return cv2.boxFilter(plane, -1, **kernel) / cv2.boxFilter(np.ones_like(plane), -1, **kernel)

    while size < grey.shape[0]:
        size *= 2
        p, i = lanczos(m, size).astype(np.float64), lanczos(grey, size).astype(np.float64)
        covariance = mean(i * p, radius) - mean(i, radius) * mean(p, radius)
        a = covariance / (mean(i * i, radius) - mean(i, radius) ** 2 + 1e-2)
        b = mean(p, radius) - a * mean(i, radius)
        m = np.clip(mean(a, radius) * i + mean(b, radius), 0, 1).astype(np.float32)
        radius += 1
    eight_bit = np.round(m * 255).astype(np.uint8)
    background = cv2.adaptiveThreshold(eight_bit, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, 15, 5) == 0
    t = (m[background].mean() if background.any() else m.mean()) + 20 / 255
    return np.where(m < t, t * (m / t) ** 4, m)


def test_equals_the_authors_steps_on_a_square_picture():
    guide, mask = scene(128, 128)
    low = coarse(mask, (16, 16))
    ours = upsample_mask(low, guide)[0, 0].numpy()
    expected = by_opencv(low, guide, MaskUpsampling())
    # Their adaptive threshold counts in whole grey levels, ours does not: pixels at the very limit may differ.
    assert np.quantile(np.abs(ours - expected), 0.98) < 0.01
    unsuppressed = upsample_mask(low, guide, MaskUpsampling(suppress_background=False))
    assert (unsuppressed[0, 0].numpy() - ours).max() > 0.01


@pytest.mark.parametrize(("size", "start"), [((256, 256), (16, 16)), ((192, 320), (12, 20)), ((576, 832), (18, 26)),
                                             ((301, 207), (19, 13)), ((512, 512), (64, 64))])  # fmt: skip
def test_snaps_to_edges_at_any_aspect(size, start):
    guide, truth = scene(*size)
    low = coarse(truth, start)
    plain = torch.nn.functional.interpolate(low[None], size=size, mode="bilinear")[0, 0]
    snapped = upsample_mask(low, guide)[0, 0]
    assert snapped.shape == size
    assert snapped.min() >= 0
    assert snapped.max() <= 1
    assert (snapped - truth.float()).abs().mean() < 0.7 * (plain - truth.float()).abs().mean()


def test_batches_and_extremes():
    guide, truth = scene(64, 64)
    low = torch.cat([coarse(truth, (16, 16)), torch.zeros(1, 16, 16), torch.ones(1, 16, 16)])
    many = upsample_mask(low, guide)
    assert many.shape == (3, 1, 64, 64)
    assert torch.equal(many[0], upsample_mask(low[:1], guide)[0])
    assert many[1].max() < 1e-6
    assert many[2].min() > 0.999
    assert upsample_mask(low[:2].repeat(2, 1, 1), guide.repeat(2, 1, 1, 1)).shape == (4, 1, 64, 64)
    assert upsample_mask(low[:1], guide.repeat(2, 1, 1, 1)).shape == (2, 1, 64, 64)


@pytest.mark.parametrize(
    ("mask", "guide", "settings", "message"),
    [
        (torch.ones(1, 16, 16), torch.ones(1, 3, 64, 96), {}, "mask is 16x16, guide image is 96x64: their shapes"),
        (torch.ones(1, 80, 80), torch.ones(1, 3, 64, 64), {}, "mask is 80x80, larger than the guide image 64x64"),
        (torch.ones(3, 16, 16), torch.ones(2, 3, 64, 64), {}, "guide image is a batch of 2"),
        (torch.ones(1, 3, 16, 16), torch.ones(1, 3, 64, 64), {}, r"mask has the shape \(1, 3, 16, 16\)"),
        (torch.ones(1, 0, 16), torch.ones(1, 3, 64, 64), {}, r"mask has the shape \(1, 1, 0, 16\)"),
        (torch.full((1, 16, 16), 2.0), torch.ones(1, 3, 64, 64), {}, "mask has values from 2 to 2"),
        (torch.ones(1, 16, 16), torch.ones(1, 3, 64, 64), {"radius": 0}, "radius is 0"),
        (torch.ones(1, 16, 16), torch.ones(1, 3, 64, 64), {"block": 4}, "block is 4: use an odd number"),
    ],
)
def test_bad_input_is_refused_with_value_and_mend(mask, guide, settings, message):
    with pytest.raises(ValueError, match=message):
        upsample_mask(mask, guide, MaskUpsampling(**settings))
