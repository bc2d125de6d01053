"""Detail restoration: against slow loops in float64, its promises, and the exact truth of the portrait world."""

import math

import numpy as np
import pytest
import torch
from likeness.pipelines.idetail.restoration import (
    METHODS,
    RestorationSettings,
    coarse_bands,
    gaussian,
    log_luminance,
    restore_detail,
    slope,
)
from likeness.pipelines.portraits import FACE_PARTS, lit, render, sample_take

SETTINGS = [RestorationSettings(method, detail=detail) for method in METHODS for detail in (1.0, 2.0)]
names = [f"{chosen.method} {chosen.detail:g}" for chosen in SETTINGS]


def pictures(batch, height, width, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=draw)


def blurred(image, sigma):
    import cv2

    planes = image.flatten(0, 1).numpy()
    return torch.from_numpy(np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in planes])).reshape(image.shape)


# --- the slow truth


def slow_mean(x, radius):
    out = np.zeros_like(x)
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            out[row, column] = x[max(row - radius, 0) : row + radius + 1,
                                 max(column - radius, 0) : column + radius + 1].mean()  # fmt: skip
    return out


def slow_slope(target, guide, radius, epsilon):
    slopes = np.zeros_like(guide)
    for row in range(guide.shape[0]):
        for column in range(guide.shape[1]):
            at = np.s_[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]
            covariance = np.cov(guide[at].ravel(), target[at].ravel(), bias=True)
            slopes[row, column] = (covariance[0, 1] + epsilon) / (covariance[0, 0] + epsilon)
    return slow_mean(slopes, radius)


def slow_gaussian(x, sigma):
    reach = math.ceil(3 * sigma)
    out, total = np.zeros_like(x), 0.0
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            weight = math.exp(-(dy * dy + dx * dx) / (2 * sigma**2))
            rows, columns = (np.clip(np.arange(side) + step, 0, side - 1)
                             for side, step in zip(x.shape, (dy, dx), strict=True))  # fmt: skip
            out, total = out + weight * x[np.ix_(rows, columns)], total + weight
    return out / total


def wavelet_matrix(size):
    """One level of Daubechies' transform as an orthogonal matrix: smooth rows above, detail rows below."""
    root = math.sqrt(3)
    low = np.array([1 + root, 3 + root, 3 - root, 1 - root]) / (4 * math.sqrt(2))
    high = low[::-1] * [1, -1, 1, -1]
    matrix = np.zeros((size, size))
    for row in range(size // 2):
        for tap in range(4):
            matrix[row, (2 * row + tap) % size] += low[tap]
            matrix[size // 2 + row, (2 * row + tap) % size] += high[tap]
    return matrix


def slow_coarse_bands(x, levels):
    """The whole transform, its detail bands set to 0, and the inverse."""
    cell = 2**levels
    edges = [(4 * cell, 4 * cell + -side % cell) for side in x.shape]
    padded = np.pad(x, edges, mode="edge")
    bands, corner = padded.copy(), padded.shape
    for _ in range(levels):
        rows, columns = wavelet_matrix(corner[0]), wavelet_matrix(corner[1])
        bands[: corner[0], : corner[1]] = rows @ bands[: corner[0], : corner[1]] @ columns.T
        corner = corner[0] // 2, corner[1] // 2
    kept = np.zeros_like(bands)
    kept[: corner[0], : corner[1]] = bands[: corner[0], : corner[1]]
    for _ in range(levels):
        corner = corner[0] * 2, corner[1] * 2
        rows, columns = wavelet_matrix(corner[0]), wavelet_matrix(corner[1])
        kept[: corner[0], : corner[1]] = rows.T @ kept[: corner[0], : corner[1]] @ columns
    return kept[4 * cell : 4 * cell + x.shape[0], 4 * cell : 4 * cell + x.shape[1]]


def slow_restoration(edited, original, mask, settings):
    edited, original = (x.double().numpy() for x in (edited, original))
    lit_, guide = (np.log(0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2] + 0.05) for x in (edited, original))
    levels = {1.0: 1, 2.0: 2}[settings.detail]
    coarse = [slow_gaussian(x, settings.detail) if settings.method == "guided filter" else slow_coarse_bands(x, levels)
              for x in (lit_, guide)]  # fmt: skip
    fine, radius = [lit_ - coarse[0], guide - coarse[1]], round(4 * settings.detail)
    lacking = slow_slope(*coarse, radius, 1e-2) - slow_slope(*fine, radius, 1e-6)
    change = settings.strength * mask.double().numpy() * lacking.clip(0, 1.5) * fine[1]
    return ((edited + 0.05) * np.exp(change) - 0.05).clip(0, 1)


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
def test_restoration_equals_loops_in_float64(settings):
    original = pictures(2, 19, 26)
    edited = blurred(0.6 * original + 0.2, 1.0)
    mask = torch.linspace(0, 1, 26).expand(2, 19, 26)
    made = restore_detail(edited, original, mask, settings)
    for one, photo, where, result in zip(edited, original, mask, made, strict=True):
        assert np.abs(slow_restoration(one, photo, where, settings) - result.numpy()).max() < 2e-5
    assert (made - edited).abs().max() > 0.02


def test_coarse_bands_of_every_size_are_the_transforms():
    for height, width in ((1, 1), (5, 8), (13, 2), (32, 17)):
        x = pictures(1, height, width)[:, :1].double()
        for levels in (1, 3):
            slow = slow_coarse_bands(x[0, 0].numpy(), levels)
            assert np.abs(coarse_bands(x, levels)[0, 0].numpy() - slow).max() < 1e-12


# --- promises


@pytest.mark.parametrize("settings", SETTINGS, ids=names)
@pytest.mark.parametrize("size", [(64, 48), (33, 51), (3, 2), (1, 1)], ids=str)
def test_nothing_changes_where_nothing_may(settings, size):
    """From itself, outside the mask, at strength 0: not a bit."""
    original = pictures(3, *size)
    edited = blurred(original, 1.5)
    assert torch.equal(restore_detail(original, original, None, settings), original)
    assert torch.equal(restore_detail(edited, original, torch.zeros(3, *size), settings), edited)
    none = RestorationSettings(settings.method, 0.0, settings.detail)
    assert torch.equal(restore_detail(edited, original, None, none), edited)
    half = torch.zeros(1, *size)
    half[:, : size[0] // 2] = 1
    made = restore_detail(edited, original, half, settings)
    assert torch.equal(made[:, :, size[0] // 2 :], edited[:, :, size[0] // 2 :])


def test_one_original_serves_a_batch_and_each_picture_is_itself():
    original, edited = pictures(1, 21, 30), blurred(pictures(3, 21, 30, seed=1), 1.0)
    made = restore_detail(edited, original)
    each = torch.cat([restore_detail(one[None], original) for one in edited])
    assert torch.allclose(made, each, atol=1e-6)
    assert restore_detail(edited[:1], pictures(4, 21, 30)).shape == (4, 3, 21, 30)


def test_an_original_of_another_size_is_cropped_as_vae_encode_does_or_scaled():
    original = pictures(1, 45, 67)
    edited = blurred(original[..., 2:42, 1:65], 1.0)
    assert torch.equal(restore_detail(edited, original), restore_detail(edited, original[..., 2:42, 1:65]))
    mask = torch.rand(1, 45, 67, generator=torch.Generator().manual_seed(2))  # of the original
    assert torch.equal(restore_detail(edited, original, mask), restore_detail(edited, original, mask[:, 2:42, 1:65]))
    larger_cells = blurred(original[..., 6:38, 1:65], 1.0)
    expected = restore_detail(larger_cells, original[..., 6:38, 1:65])
    assert torch.equal(restore_detail(larger_cells, original), expected)
    doubled = pictures(1, 80, 128)
    small = torch.nn.functional.interpolate(doubled, size=(40, 64), mode="bilinear", antialias=True)
    assert torch.equal(restore_detail(edited, doubled), restore_detail(edited, small))
    with pytest.raises(ValueError, match="original image is 45x67, edited image is 64x40"):
        restore_detail(edited, original.mT)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"method": "magic"}, "is 'magic': choose one of guided filter, wavelet"), ({"strength": 3.0}, "strength is 3.0"),
     ({"detail": 0.0}, "detail 0.0")],
)  # fmt: skip
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RestorationSettings(**change)


@pytest.mark.parametrize("method", METHODS)
def test_a_hard_shadow_of_the_original_stays_away_and_one_of_the_edit_stays(method):
    """Against what it would be without that shadow; to exchange the finest frequencies would draw it."""
    texture = 0.5 + 0.1 * pictures(1, 96, 96)[:, :1].expand(-1, 3, -1, -1)
    shadow = torch.where(torch.arange(96) < 48, 1.0, 0.4)
    plain, dark = blurred(texture, 2.0), blurred(texture, 2.0) * shadow
    chosen = RestorationSettings(method)
    clean = restore_detail(plain, texture, None, chosen)
    drawn = (restore_detail(plain, texture * shadow, None, chosen) - clean).mean(-2)[..., 40:56]
    exchanged = (texture * shadow - blurred(texture * shadow, 2.0) - (texture - plain)).mean(-2)[..., 40:56]
    print(f"{method}: {float((drawn.square().mean() / exchanged.square().mean()).sqrt()):.2f} of the shadow's edge")
    assert drawn.square().mean() < 0.35**2 * exchanged.square().mean()
    edge = restore_detail(dark, texture, None, chosen)[..., 40:56] / clean[..., 40:56]
    assert (edge - shadow[40:56]).abs().max() < 0.06
    assert (clean - texture).square().mean() < 0.5**2 * (plain - texture).square().mean()


def test_slope_is_that_of_the_light():
    texture = pictures(1, 40, 40)[:, :1]
    assert torch.allclose(slope(0.3 * texture + 2, texture, 5, 1e-6), torch.full_like(texture, 0.3), atol=1e-3)


# --- against the exact truth

LIGHTS = [("studio", "golden hour"), ("golden hour", "studio"), ("daylight", "dark shadow"), ("daylight", "pantone"),
          ("window grill", "rural farm"), ("rural farm", "window grill")]  # fmt: skip


@pytest.fixture(scope="module")
def counterfactuals():
    """(original light, true edit, face) of two people in six pairs of lights."""
    found = []
    for number in range(2):
        person = sample_take(7, number, number)
        for before, after in LIGHTS:
            original, true = render(lit(person, before), 192), render(lit(person, after), 192)
            found.append((original.image, true.image, true.mask(*FACE_PARTS)))
    return found


@pytest.mark.parametrize("sigma", [1.0, 2.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_blurred_face_comes_nearer_to_its_truth_from_a_photo_in_another_light(counterfactuals, method, sigma):
    chosen = RestorationSettings(method, detail=sigma)
    ratios, exchanged = [], []
    for original, true, face in counterfactuals:
        edited = blurred(true, sigma)

        def error(image, true=true, face=face):
            return float((((image - true) ** 2) * face).sum())

        ratios.append(math.sqrt(error(restore_detail(edited, original, face[:, 0], chosen)) / error(edited)))
        change = log_luminance(original) - log_luminance(edited)
        change = change - (gaussian(change, sigma) if method == METHODS[0] else coarse_bands(change, round(sigma)))
        other = (edited + (edited + 0.05) * torch.expm1(change)).clamp(0, 1)
        exchanged.append(math.sqrt(error(other) / error(edited)))
    print(f"{method}, blur of {sigma} pixels: error {np.mean(ratios):.3f} of before, worst {max(ratios):.3f}; "
          f"finest bands exchanged: {np.mean(exchanged):.3f}, worst {max(exchanged):.3f}")  # fmt: skip
    assert max(exchanged) > 1 > 0.9 > np.mean(ratios) / np.mean(exchanged)
    assert max(ratios) < 0.97
    assert np.mean(ratios) < 0.92
