"""The scores against piq, against a direct computation, and the properties that anyone who reads them relies on."""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from likeness.pipelines.metrics import fsim, gmsd, psnr, ssim
from likeness.pipelines.metrics.phase_congruency import phase_congruency
from torch.nn.functional import avg_pool2d, interpolate

skimage_data = pytest.importorskip("skimage.data", reason="SSIM and the test photos need it: pip install scikit-image")

SCORES = {"ssim": ssim, "gmsd": gmsd, "fsim": fsim}
PERFECT = {"ssim": 1, "gmsd": 0, "fsim": 1}
# Odd, even, non-square, with and without the downsampling of FSIM.
SIZES = [(385, 401), (257, 129), (64, 97), (33, 48), (16, 16)]

every_score = pytest.mark.parametrize("name", SCORES)


@pytest.fixture(scope="module")
def piq():
    """piq, imported beside a stand-in for the parts of torchvision it names when it loads and the scores never use."""
    if find_spec("piq") is None:
        pytest.skip("NOT COMPARED with piq, which is not installed: pip install --no-deps piq==0.8.0")
    models = ModuleType("torchvision.models")
    models.vgg16 = models.vgg19 = None
    models.inception = SimpleNamespace(**{f"Inception{kind}": type(kind, (), {}) for kind in "ACE"})
    torchvision = ModuleType("torchvision")
    torchvision.models = models
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "piq"}
    with pytest.MonkeyPatch.context() as patch:
        for name in before:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "torchvision", torchvision)
        patch.setitem(sys.modules, "torchvision.models", models)
        try:
            yield importlib.import_module("piq")
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] == "piq"]:
                del sys.modules[name]


def photos(size) -> torch.Tensor:
    """A colour and a grey photo, ``[2, 3, H, W]``."""
    astronaut = torch.from_numpy(skimage_data.astronaut()).permute(2, 0, 1) / 255
    camera = (torch.from_numpy(skimage_data.camera())[None] / 255).expand(3, -1, -1)
    return interpolate(torch.stack([astronaut, camera]), size=size, mode="bilinear", antialias=True).clamp(0, 1)


def blurred(image, side) -> torch.Tensor:
    return avg_pool2d(image, side, stride=1, padding=side // 2, count_include_pad=False).clamp(0, 1)


def noisy(image) -> torch.Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    return (image + 0.1 * noise).clamp(0, 1)


def random_images(size, seed=0) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def pairs(size):
    reference = photos(size)
    return {
        "blur": (blurred(reference, 5), reference),
        "noise": (noisy(reference), reference),
        "other": (reference.flip(0), reference),
        "random": (random_images(size), random_images(size, seed=1)),
    }


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_piq(piq, size):
    for kind, (image, reference) in pairs(size).items():
        truths = {
            "gmsd": piq.gmsd(image, reference, reduction="none"),
            "fsim": piq.fsim(image, reference, reduction="none", chromatic=False),
            "ssim": piq.ssim(image.double(), reference.double(), reduction="none", downsample=False).float(),
        }
        for name, truth in truths.items():
            score = SCORES[name](image, reference)
            assert torch.allclose(score, truth, rtol=0, atol=1e-5), f"{name}, {kind}: {score} is not {truth}"


def test_psnr_agrees_with_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio

    reference = photos((64, 97))
    image = noisy(reference)
    truth = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1) for a, b in zip(reference, image, strict=True)]
    assert psnr(image, reference).tolist() == pytest.approx(truth, abs=1e-4)
    assert psnr(image, image).isposinf().all()


def test_fsim_agrees_with_piq_half_way_between_two_factors(piq):
    reference = photos((640, 641))[:1]
    image = noisy(reference)
    assert fsim(image, reference).item() == pytest.approx(piq.fsim(image, reference, chromatic=False).item(), abs=1e-5)


def test_ssim_equals_a_direct_computation():
    image, reference = (x[0].double().numpy() for x in (blurred(photos((19, 24)), 3), photos((19, 24))))
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(3):
        for top in range(19 - 10):
            for left in range(24 - 10):
                x, y = (a[channel, top : top + 11, left : left + 11] for a in (image, reference))
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                variance_x, variance_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
                covariance = (window * (x - mean_x) * (y - mean_y)).sum()
                light = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
                values.append(light * (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2))
    score = ssim(*(torch.from_numpy(a)[None].float() for a in (image, reference)))
    assert score.item() == pytest.approx(np.mean(values), abs=1e-5)


def test_gmsd_of_a_single_line():
    # A line two pixels wide becomes one of 255 at half size. Its Prewitt gradient is 255 in the two columns beside it
    # and 0 elsewhere, but for the top and bottom rows: beyond them is zero, so two of three weights remain, and the
    # line has a vertical gradient across its own three columns.
    image = torch.zeros(1, 3, 20, 24)
    image[..., 10:12] = 1
    magnitude = np.zeros((10, 12))
    magnitude[:, [4, 6]] = 255
    for row in (0, -1):
        magnitude[row, [4, 6]] = np.hypot(255 * 2 / 3, 255 / 3)
        magnitude[row, 5] = 255 / 3
    expected = (170 / (magnitude**2 + 170)).std()
    assert gmsd(image, torch.zeros_like(image)).item() == pytest.approx(expected, abs=1e-6)


@every_score
@pytest.mark.parametrize("size", [(64, 64), (47, 90)], ids=str)
def test_identical_images_score_perfectly(name, size):
    flat = torch.full((2, 3, *size), 0.3)
    for image in (photos(size), random_images(size), flat, torch.zeros_like(flat)):
        score = SCORES[name](image, image)
        assert score.shape == (2,) and score.dtype == torch.float32
        assert torch.allclose(score, torch.full((2,), float(PERFECT[name])), atol=1e-6)


@every_score
def test_flat_images_of_different_brightness_have_a_finite_imperfect_score(name):
    score = SCORES[name](torch.full((1, 3, 33, 40), 0.3), torch.full((1, 3, 33, 40), 0.7))
    assert torch.isfinite(score).all() and abs(score.item() - PERFECT[name]) > 0.01


@every_score
def test_more_blur_scores_worse(name):
    reference = photos((256, 200))
    scores = torch.stack([SCORES[name](blurred(reference, side), reference) for side in (1, 3, 5, 9, 15)])
    steps = scores.diff(dim=0)
    assert (steps > 0).all() if name == "gmsd" else (steps < 0).all()


@every_score
def test_batch_equals_single_images(name):
    reference = photos((65, 80))
    image = noisy(reference)
    singles = torch.cat([SCORES[name](image[i : i + 1], reference[i : i + 1]) for i in range(2)])
    assert torch.allclose(SCORES[name](image, reference), singles, atol=1e-6)
    assert abs(singles[0] - singles[1]) > 1e-3


@every_score
def test_symmetric_and_without_gradient(name):
    reference = photos((64, 65))
    image = blurred(reference, 3).requires_grad_()
    score = SCORES[name](image, reference)
    assert not score.requires_grad
    assert torch.allclose(score, SCORES[name](reference, image), atol=1e-6)


def test_phase_congruency_ignores_contrast_and_brightness():
    plane = 255 * photos((96, 75))[:, :1]
    congruency = phase_congruency(plane)
    assert congruency.shape == plane.shape
    assert congruency.min() >= 0 and 0.5 < congruency.max() <= 1
    assert torch.allclose(phase_congruency(0.25 * plane + 40), congruency, atol=1e-3)


def test_phase_congruency_peaks_at_an_edge():
    plane = torch.zeros(1, 1, 64, 64)
    plane[..., 32:] = 200
    row = phase_congruency(plane)[0, 0, 32]
    assert row[16:48].argmax() + 16 in (31, 32)
    assert row[31] > 0.7 and row[24] < row[31] / 2


@pytest.mark.parametrize(("name", "least"), [("ssim", 11), ("fsim", 6)])
def test_too_small_an_image_is_named_with_the_mend(name, least):
    SCORES[name](*[torch.rand(1, 3, least, least)] * 2)
    small = torch.rand(1, 3, least - 1, 40)
    with pytest.raises(ValueError, match=f"40x{least - 1} pixels.* at least {least}: use a larger image"):
        SCORES[name](small, small)


def test_loading_the_scores_imports_nothing_optional():
    tests = str(Path(__file__).parent)
    code = (
        f"import sys; sys.path.insert(0, {tests!r}); import conftest, likeness.pipelines.metrics; "
        "sys.exit('skimage' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
