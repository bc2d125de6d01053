"""Mask operations against SciPy's and against figures drawn by hand."""

import numpy as np
import pytest
import torch
from likeness.pipelines.masks import edge_band, fill_holes, keep_piece, remove_specks, soften
from scipy import ndimage


def blobs(seed: int = 0, count: int = 3) -> torch.Tensor:
    """Random soft masks [B, 70, 90] of many pieces with holes in them."""
    noise = np.random.default_rng(seed).normal(size=(count, 70, 90))
    smooth = np.stack([ndimage.gaussian_filter(plane, 3) for plane in noise])
    return torch.from_numpy((0.5 + 2 * smooth).clip(0, 1)).float()


def inside(mask: torch.Tensor) -> np.ndarray:
    return (mask >= 0.5).squeeze(1).numpy()


def test_filled_holes_are_scipys():
    masks = blobs()
    filled = fill_holes(masks)
    expected = np.stack([ndimage.binary_fill_holes(plane) for plane in inside(masks)])
    assert (expected != inside(masks)).any()
    assert (inside(filled) == expected).all()
    same = inside(filled) == inside(masks)
    assert torch.equal(filled[:, 0][torch.from_numpy(same)], masks[torch.from_numpy(same)])


def test_large_holes_stay_open():
    mask = torch.ones(1, 40, 50)
    mask[0, 5:7, 5:7], mask[0, 20:30, 20:30] = 0, 0
    filled = fill_holes(mask, largest=0.01)
    assert filled[0, 0, 5:7, 5:7].all()
    assert not filled[0, 0, 20:30, 20:30].any()


def test_pieces_by_size_and_specks_are_those_of_scipy():
    masks = blobs(1)
    eight = np.ones((3, 3))
    for number, plane in enumerate(inside(masks)):
        labels, count = ndimage.label(plane, eight)
        areas = ndimage.sum_labels(plane, labels, np.arange(1, count + 1))
        by_size = np.argsort(-areas, kind="stable") + 1
        assert count > 3
        for rank in (1, 3):
            kept = inside(keep_piece(masks[number : number + 1], rank))[0]
            assert (kept == (labels == by_size[rank - 1])).all()
        limit = (np.sort(areas)[-3] + 0.5) / plane.size
        assert (inside(remove_specks(masks[number : number + 1], limit))[0] == np.isin(labels, by_size[:2])).all()
    assert not keep_piece(masks, 1000).any()
    assert not remove_specks(masks, 1.0).any()


def test_soft_rims_go_with_their_piece():
    mask = torch.zeros(1, 9, 30)
    mask[0, 3:6, 3:9], mask[0, 3:6, 2] = 1, 0.3
    mask[0, 3:6, 20:24], mask[0, 3:6, 24] = 1, 0.3
    largest = keep_piece(mask)[0, 0]
    assert torch.equal(largest[:, :15], mask[0, :, :15])
    assert not largest[:, 15:].any()
    assert torch.equal(remove_specks(mask, 0.0)[0], mask)


def test_band_along_the_edge_is_where_distances_say():
    mask = torch.zeros(2, 60, 60)
    y, x = np.mgrid[:60, :60]
    mask[0] = torch.from_numpy((y - 30) ** 2 + (x - 30) ** 2 < 15**2).float()
    mask[1, :, 30:] = 1
    band = edge_band(mask, inner=4, outer=6)[:, 0].numpy() > 0
    for found, plane in zip(band, mask.numpy() > 0, strict=True):
        exact = np.where(plane, ndimage.distance_transform_edt(plane), -ndimage.distance_transform_edt(~plane))
        assert found[(exact < 3.7) & (exact > -5.7)].all()
        assert not found[(exact > 4.3) | (exact < -6.3)].any()
    assert (band[1].nonzero()[1].min(), band[1].nonzero()[1].max()) == (24, 33)
    assert not edge_band(torch.ones(1, 8, 8), 2, 2).any()
    assert not edge_band(torch.zeros(1, 8, 8), 2, 2).any()


def test_softened_mask_keeps_to_the_edges_of_the_picture():
    image = torch.zeros(1, 3, 48, 48)
    image[..., 20:] = 1
    shifted = torch.zeros(1, 48, 48)
    shifted[..., 22:] = 1
    soft = soften(shifted, image, radius=6)[0, 0]
    assert soft.shape == (48, 48)
    step = soft[24, 20] - soft[24, 19]
    assert step > 0.5 > 2 * abs(soft[24, 23] - soft[24, 22])
    assert torch.equal(soften(shifted, image, 0)[0], shifted)
    assert soften(shifted, image.repeat(3, 1, 1, 1), 2).shape == (3, 1, 48, 48)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keep_piece(torch.ones(1, 8, 8), 0), "rank is 0"),
        (lambda: remove_specks(torch.ones(1, 8, 8), 2), "smallest is 2"),
        (lambda: fill_holes(torch.ones(1, 8, 8), -1), "largest is -1"),
        (lambda: fill_holes(torch.full((1, 8, 8), float("nan"))), "NaN"),
        (lambda: fill_holes(torch.ones(0, 8, 8)), "expected a batch of masks"),
        (lambda: edge_band(torch.ones(1, 8, 8), 0, 0), "inner is 0 and outer is 0"),
        (lambda: soften(torch.ones(1, 8, 8), torch.ones(1, 3, 8, 20), 2), "mask is 8x8, image is 20x8"),
        (lambda: soften(torch.ones(1, 8, 8), torch.ones(1, 3, 8, 8), -1), "radius is -1"),
        (lambda: soften(torch.ones(2, 8, 8), torch.ones(3, 3, 8, 8), 1), "batch of 2"),
    ],
)
def test_bad_input_is_refused_with_value_and_mend(call, message):
    with pytest.raises(ValueError, match=message):
        call()
