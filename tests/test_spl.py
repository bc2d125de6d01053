"""SPL core: the fast optimiser against autograd in float64, the losses against loops, and its promises to users."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from likeness.pipelines.filters import box_mean, guided_filter, window_count
from likeness.pipelines.spl import StructureSettings, color_loss, preserve_structure, structure_loss
from likeness.pipelines.spl.chroma import color_change
from likeness.pipelines.spl.losses import chroma, intensity
from likeness.pipelines.spl.oracle import preserve_structure_by_autograd
from likeness.pipelines.spl.score import spl_x100
from likeness.pipelines.spl.structure import descend_on_tensors, intensity_change

FAST = StructureSettings(iterations=15)


def random_pair(batch: int, height: int, width: int, seed: int = 0):
    """Random images with flat and textured areas, and an edit of the first that lost contrast and gained noise."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.rand(batch, 3, height, width, generator=generator)
    source[..., : height // 3, :] = 0.25
    noise = torch.rand(batch, 3, height, width, generator=generator)
    return (0.6 * source + 0.3 * noise).clamp(0, 1), source


def soft_mask(batch: int, height: int, width: int):
    ramp = torch.linspace(-0.5, 1.5, width).clamp(0, 1).expand(height, width)
    return torch.stack([ramp if i % 2 == 0 else ramp.flip(-1) for i in range(batch)])[:, None].contiguous()


def windows(height, width, radius):
    for y in range(height):
        for x in range(width):
            yield np.s_[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]


def structure_loss_by_loops(edited, source, radius, epsilon):
    """Equation 5 window by window: fit the affine map, average the squared residuals."""
    e, s = edited.mean(0).double().numpy(), source.mean(0).double().numpy()
    total = 0.0
    for window in windows(*e.shape, radius):
        for x, y in ((e[window], s[window]), (s[window], e[window])):
            a = ((x * y).mean() - x.mean() * y.mean()) / (x.var() + epsilon)
            b = y.mean() - a * x.mean()
            total += ((a * x + b - y) ** 2).mean()
    return total / e.size


def test_structure_loss_equals_a_loop_over_windows():
    edited, source = random_pair(2, 17, 13)
    for radius in (1, 5):
        fast = structure_loss(edited.double(), source.double(), radius, 1e-4)
        slow = [structure_loss_by_loops(e, s, radius, 1e-4) for e, s in zip(edited, source, strict=True)]
        assert torch.allclose(fast, torch.tensor(slow, dtype=torch.float64), rtol=1e-9)


def test_structure_loss_is_blind_to_affine_changes_and_sees_both_directions():
    _, source = random_pair(1, 40, 30)
    textured, flat = source, torch.full_like(source, 0.5)
    assert structure_loss(0.5 * source + 0.2, source) < 1e-3 * structure_loss(source.flip(-1), source)
    assert structure_loss(textured, flat) > 1e-3
    assert torch.allclose(structure_loss(textured, flat), structure_loss(flat, textured))


@pytest.mark.parametrize("level", [0.3, 0.7, 0.9, 0.97])
def test_the_score_of_flat_and_of_bright_pictures_keeps_its_digits(level):
    """In float32 the squares of bright pixels hide errors as small as those of an untouched picture."""
    flat = torch.full((1, 3, 64, 64), level)
    assert spl_x100(flat, flat).item() == pytest.approx(0, abs=1e-9) and spl_x100(flat, flat) >= 0
    generator = torch.Generator().manual_seed(0)
    grained = (flat + 0.002 * torch.randn(flat.shape, generator=generator)).clamp(0, 1)
    for image in (flat, grained.flip(-1)):
        exact = spl_x100(image.double(), grained.double()).item()
        assert spl_x100(image, grained).item() == pytest.approx(exact, rel=1e-3)


def test_color_loss_uses_the_conversion_of_the_paper():
    edited, source = random_pair(1, 5, 4)

    def cb_cr(image):
        r, g, b = image[0].double().numpy()
        y = 0.299 * r + 0.587 * g + 0.114 * b
        return np.stack([0.564 * (b - y) + 0.5, 0.713 * (r - y) + 0.5])

    expected = ((cb_cr(edited) - cb_cr(source)) ** 2).mean()
    assert color_loss(edited, source).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize(
    ("batch", "height", "width", "radius"),
    [(1, 11, 11, 5), (2, 41, 97, 5), (1, 64, 64, 5), (1, 11, 83, 5), (1, 83, 11, 5), (3, 30, 19, 2), (1, 131, 140, 5)],
)
def test_fast_optimiser_equals_autograd_after_100_iterations(batch, height, width, radius, use_mask):
    edited, source = random_pair(batch, height, width)
    mask = soft_mask(batch, height, width) if use_mask else None
    settings = StructureSettings(radius=radius)
    fast = preserve_structure(edited, source, mask, settings)
    double = (value if value is None else value.double() for value in (edited, source, mask))
    slow = preserve_structure_by_autograd(*double, settings).clamp(0, 1)
    assert (fast - slow).abs().max() < 1e-4
    assert (fast - edited).abs().max() > 0.01


def test_oracle_and_optimiser_use_the_authors_weights_at_their_size():
    """At 512x512 our weights are the authors': one plain step of SGD on their loss, written out here."""
    edited, source = random_pair(1, 512, 512)
    x = (edited * 2 - 1).requires_grad_(True)
    loss = 1e4 * structure_loss((x + 1) / 2, source).mean() + 1e3 * color_loss((x + 1) / 2, source).mean()
    loss.backward()
    expected = (x.detach() - x.grad + 1) / 2
    fast = preserve_structure(edited, source, None, StructureSettings(iterations=1))
    assert (fast - expected.clamp(0, 1)).abs().max() < 1e-6
    assert (fast - edited).abs().max() > 1e-4


def test_tensor_descent_equals_cpu_descent():
    edited, source = (intensity(image) for image in random_pair(2, 45, 70))
    for mask in (None, soft_mask(2, 45, 70)):
        on_tensors = descend_on_tensors(edited, source, mask, FAST)
        on_cpu = intensity_change(edited, source, mask, FAST)
        assert (on_tensors - on_cpu).abs().max() < 1e-5
        assert on_cpu.abs().max() > 0.01


def test_structure_and_color_steps_do_not_touch_each_other():
    edited, source = random_pair(1, 40, 40)
    structure_only = preserve_structure(edited, source, None, replace(FAST, color_weight=0))
    inside = ((structure_only > 0) & (structure_only < 1)).all(dim=1, keepdim=True)
    assert ((chroma(structure_only) - chroma(edited)).abs() * inside).max() < 1e-6
    assert intensity(color_change(edited, source, None, FAST)).abs().max() < 1e-6


def test_mask_leaves_pixels_outside_unchanged_and_dilation_moves_the_border_out():
    edited, source = random_pair(1, 60, 60)
    mask = torch.zeros(1, 60, 60)
    mask[:, 20:40, 20:40] = 1
    kept = preserve_structure(edited, source, mask, FAST)
    assert torch.equal(kept[0, :, :20], edited[0, :, :20])
    grown = preserve_structure(edited, source, mask, replace(FAST, mask_dilation=10))
    assert torch.equal(grown[0, :, :10], edited[0, :, :10])
    assert (grown[0, :, 12:18, 30] != edited[0, :, 12:18, 30]).any()


def test_every_image_of_a_batch_is_refined_on_its_own():
    edited, source = random_pair(3, 33, 47)
    together = preserve_structure(edited, source, None, FAST)
    alone = torch.cat([preserve_structure(e[None], s[None], None, FAST) for e, s in zip(edited, source, strict=True)])
    assert torch.equal(together, alone)
    one_source = preserve_structure(edited, source[:1], None, FAST)
    assert torch.equal(one_source[0], together[0])


def test_refinement_gives_structure_back_and_inputs_stay_untouched():
    edited, source = random_pair(1, 96, 80)
    before = edited.clone(), source.clone()
    refined = preserve_structure(edited, source, None, StructureSettings())
    assert structure_loss(refined, source) < 0.05 * structure_loss(edited, source)
    assert torch.equal(edited, before[0])
    assert torch.equal(source, before[1])


@pytest.mark.parametrize("size", [(40, 40), (300, 200)])
def test_a_callback_counts_iterations_and_may_stop(size):
    edited, source = random_pair(2, *size)
    seen = []
    preserve_structure(edited, source, None, FAST, lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 30) for i in range(30)]

    class Stop(Exception):
        pass

    def stop(done, total):
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        preserve_structure(edited, source, None, FAST, stop)


@pytest.mark.parametrize("threads", [3, 7, 16])
def test_the_number_of_threads_does_not_change_the_result(threads):
    before = torch.get_num_threads()
    edited, source = random_pair(1, 150, 140)
    expected = preserve_structure(edited, source, soft_mask(1, 150, 140), FAST)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(preserve_structure(edited, source, soft_mask(1, 150, 140), FAST), expected)
    finally:
        torch.set_num_threads(before)


def test_works_inside_inference_mode():
    with torch.inference_mode():
        edited, source = random_pair(1, 40, 40)
        refined = preserve_structure(edited, source, soft_mask(1, 40, 40), FAST)
    assert torch.equal(refined, preserve_structure(*random_pair(1, 40, 40), soft_mask(1, 40, 40), FAST))


IMAGE = torch.full((1, 3, 20, 20), 0.5)


@pytest.mark.parametrize(
    ("edited", "source", "mask", "settings", "message"),
    [
        (IMAGE, torch.rand(1, 3, 20, 24), None, {}, r"edited image is 20x20, source image is 24x20.*resize or crop"),
        (IMAGE[..., :10], IMAGE[..., :10], None, {}, r"edited image is 10x20.*smaller than the window of 11"),
        (IMAGE.repeat(3, 1, 1, 1), IMAGE.repeat(2, 1, 1, 1), None, {}, r"source image is a batch of 2.*batch of 3"),
        (IMAGE * torch.nan, IMAGE, None, {}, r"edited image has 1200 values that are NaN"),
        (IMAGE, IMAGE * 300, None, {}, r"source image has values from 150 to 150: expected 0 to 1"),
        (torch.rand(1, 4, 20, 20), IMAGE, None, {}, r"edited image has 4 channels \(RGBA\).*alpha"),
        (torch.rand(1, 1, 20, 20), IMAGE, None, {}, r"edited image has 1 channels"),
        (IMAGE[:0], IMAGE, None, {}, r"edited image is an empty batch"),
        (IMAGE[0], IMAGE, None, {}, r"edited image has 3 dimensions"),
        (IMAGE, IMAGE, torch.ones(1, 20, 30), {}, r"mask is 30x20, image is 20x20: resize or crop the mask"),
        (IMAGE, IMAGE, torch.ones(2, 20, 20), {}, r"mask is a batch of 2, which does not fit a batch of 1"),
        (IMAGE, IMAGE, torch.full((1, 20, 20), torch.inf), {}, r"mask has 400 values that are NaN or infinite"),
        (IMAGE, IMAGE, torch.ones(1, 0, 20), {}, r"mask has the shape \(1, 1, 0, 20\)"),
        (IMAGE, IMAGE, None, {"radius": 2.5}, r"radius is 2.5: it must be a whole number"),
        (IMAGE, IMAGE, None, {"iterations": 0}, r"iterations is 0: it must be at least 1"),
        (IMAGE, IMAGE, None, {"structure_weight": -1.0}, r"structure_weight is -1.0: it must be at least 0"),
        (IMAGE, IMAGE, None, {"color_weight": float("nan")}, r"color_weight is nan"),
        (IMAGE, IMAGE, None, {"momentum": 1.0}, r"momentum is 1.0: it must be below 1"),
        (IMAGE, IMAGE, None, {"structure_weight": 0.0, "color_weight": 0.0}, r"both 0: raise one"),
    ],
)
def test_bad_input_is_refused_with_value_and_mend(edited, source, mask, settings, message):
    with pytest.raises(ValueError, match=message):
        preserve_structure(edited, source, mask, StructureSettings(**settings))


def test_a_diverging_descent_is_an_error_not_a_picture():
    edited, source = random_pair(1, 40, 40)
    for settings in (StructureSettings(structure_weight=1e9), StructureSettings(color_weight=1e9)):
        with pytest.raises(ValueError, match="diverged.*lower the weights"):
            preserve_structure(edited, source, None, settings)


def test_rounding_outside_the_range_is_accepted_and_masks_of_another_size_are_resized():
    _, source = random_pair(1, 40, 60)
    overshoot = source * 1.002 - 0.001
    refined = preserve_structure(overshoot, source, torch.ones(1, 20, 30), FAST)
    assert refined.min() >= 0
    assert refined.max() <= 1


def test_box_mean_and_guided_filter_equal_loops():
    generator = torch.Generator().manual_seed(0)
    guide, mask = (torch.rand(1, 1, 14, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    radius, epsilon = 2, 1e-2
    i, p = guide[0, 0].numpy(), mask[0, 0].numpy()
    cut = list(windows(14, 9, radius))
    assert np.allclose(box_mean(guide, radius)[0, 0].numpy().ravel(), [i[w].mean() for w in cut])
    assert window_count((14, 9), radius, guide)[0, 0].flatten().tolist() == [i[w].size for w in cut]
    a = np.array([((i * p)[w].mean() - i[w].mean() * p[w].mean()) / (i[w].var() + epsilon) for w in cut])
    b = np.array([p[w].mean() for w in cut]) - a * np.array([i[w].mean() for w in cut])
    a, b = a.reshape(14, 9), b.reshape(14, 9)
    mean_a, mean_b = (np.array([plane[w].mean() for w in cut]).reshape(14, 9) for plane in (a, b))
    expected = mean_a * i + mean_b
    assert np.allclose(guided_filter(mask, guide, radius, epsilon)[0, 0].numpy(), expected)
