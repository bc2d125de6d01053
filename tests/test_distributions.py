"""Scores of features and of sets of features, against reference implementations and explicit slow versions."""

import math
import sys

import numpy as np
import pytest
import torch
from likeness.pipelines.metrics import (
    LPIPS,
    class_similarities,
    clip_directional,
    clip_score,
    clothing_distance,
    density_coverage,
    face_distance,
    frechet_distance,
    jensen_shannon,
    kernel_distance,
    kernel_inception_distance,
    pair_similarities,
    tsne_divergence,
    verify,
)
from likeness.pipelines.metrics import kernel as kernel_module
from likeness.pipelines.metrics import neighbours as neighbours_module
from likeness.pipelines.metrics import verification as verification_module
from likeness.pipelines.metrics.verification import BINS, EDGES, best_threshold
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import cosine_similarity


def draws(count: int, width: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


# ---- pairs


def test_cosine_scores_agree_with_scikit_learn():
    one, other = draws(6, 16), draws(6, 16, seed=1)
    truth = torch.from_numpy(cosine_similarity(one, other)).diagonal().double()
    assert torch.allclose(clip_score(one, other), truth, atol=1e-6)
    assert torch.allclose(face_distance(one, other), 1 - truth, atol=1e-6)
    assert torch.allclose(clip_score(3 * one, other / 7), truth, atol=1e-6)
    one[2] = torch.nan
    assert face_distance(one, other[:1]).isnan().tolist() == [False, False, True, False, False, False]


def test_cosine_scores_tell_small_angles_apart():
    """In float32 1 - cosine of these would be 0 or a multiple of 6e-8."""
    angle = 1e-5
    turned = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    found = face_distance(torch.tensor([[1.0, 0.0]], dtype=torch.float64), turned)
    assert found.item() == pytest.approx(angle**2 / 2, rel=1e-4)


def test_a_face_is_never_nearer_than_itself():
    faces = draws(500, 512)
    found = face_distance(faces, faces)
    assert found.min() >= 0 and found.max() < 1e-12 and clip_score(faces, faces).max() <= 1
    assert face_distance(faces, -faces).max() <= 2


def test_directional_score_on_unit_vectors():
    before, texts = torch.tensor([[2.0, 0.0, 0.0]] * 3), torch.tensor([[0.0, 5.0, 0.0]])
    after = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [7.0, 0.0, 0.0]])
    found = clip_directional(before, after, torch.tensor([[1.0, 0.0, 0.0]]), texts)
    assert found[:2].tolist() == pytest.approx([1.0, 0.5])  # (-1, 0, 1) and (-1, 1, 0) include 60 degrees
    assert found[2].isnan()


def test_clothing_score_looks_only_below_the_mask():
    first, mask = draws(5, 24).reshape(1, 5, 4, 6), torch.zeros(1, 1, 16, 24)
    mask[..., 8:, :12] = 1
    second = draws(5, 24, seed=1).reshape(1, 5, 4, 6)
    second[..., 2:, :3] = 3 * first[..., 2:, :3]
    assert clothing_distance(first, second, mask, mask).item() == pytest.approx(0, abs=1e-6)
    assert clothing_distance(first, second, 1 - mask, 1 - mask).item() > 0.01
    weights = np.zeros((4, 6))
    weights[2:, :3] = 1
    means = [np.average(x[0].reshape(5, -1), axis=1, weights=w.ravel())
             for x, w in ((first.numpy(), weights), (second.numpy(), 1 - weights))]  # fmt: skip
    expected = 1 - cosine_similarity(means[:1], means[1:])[0, 0]
    assert clothing_distance(first, second, mask, 1 - mask).item() == pytest.approx(expected, abs=1e-6)
    assert clothing_distance(first, second, mask, torch.zeros_like(mask)).isnan().all()


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 5), "same network"),
        (torch.zeros(3, 4), torch.zeros(2, 4), "batches of 3 and 2: give equal ones"),
        (torch.zeros(4), torch.zeros(4), "give \\[B, D\\]"),
    ],
)
def test_features_that_do_not_fit_are_named(one, other, message):
    with pytest.raises(ValueError, match=message):
        clip_score(one, other)


def test_lpips_without_its_parts_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="weights at .*alexnet.pth, and they are not there"):
        LPIPS(tmp_path / "alexnet.pth")
    torch.save({}, tmp_path / "alexnet.pth")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match="torchvision is needed here.*pip install torchvision"):
        LPIPS(tmp_path / "alexnet.pth")
    with pytest.raises(ValueError, match="no network 'inception': choose alex or vgg"):
        LPIPS(tmp_path / "alexnet.pth", "inception")


# ---- sets


def test_kernel_distance_agrees_with_torchmetrics(monkeypatch):
    from torchmetrics.image.kid import poly_mmd

    one, other = draws(70, 12).double(), draws(50, 12, seed=1, shift=0.5).double()
    monkeypatch.setattr(kernel_module, "CHUNK", 16)  # several chunks, the last one short
    n, m = len(one), len(other)
    kernels = [((x @ y.T) / 12 + 1) ** 3 for x, y in ((one, one), (one, other), (other, other))]
    expected = (kernels[0].sum() - kernels[0].trace()) / (n * (n - 1))
    expected += (kernels[2].sum() - kernels[2].trace()) / (m * (m - 1)) - 2 * kernels[1].mean()
    assert kernel_distance(one, other) == pytest.approx(expected.item(), rel=1e-9)
    assert kernel_distance(one[:50], other) == pytest.approx(poly_mmd(one[:50], other).item(), rel=1e-6)


def test_kid_of_whole_sets_is_the_kernel_distance_and_subsets_vary_around_it():
    one, other = draws(60, 8), draws(60, 8, seed=1, shift=0.7)
    steps = []
    whole = kernel_inception_distance(one, other, subsets=3, size=60, on_step=lambda *step: steps.append(step))
    assert whole.mean == pytest.approx(kernel_distance(one, other)) and whole.deviation < 1e-9
    assert steps == [(1, 3), (2, 3), (3, 3)]
    part = kernel_inception_distance(one, other, subsets=40, size=20)
    assert abs(part.mean - whole.mean) < part.deviation and part.deviation > 0
    assert part == kernel_inception_distance(one, other, subsets=40, size=20)


@pytest.mark.parametrize("neighbours", [1, 5])
def test_density_and_coverage_against_whole_matrices(monkeypatch, neighbours):
    real, made = draws(90, 6), draws(75, 6, seed=1, shift=0.4)
    real[7] = real[11]  # doubles have no distance; so has a made sample that is one of the real ones
    made[3] = real[20]
    monkeypatch.setattr(neighbours_module, "CHUNK", 32)
    radius = np.sort(pairwise_distances(real.double(), real.double()), axis=1)[:, neighbours]
    within = pairwise_distances(real.double(), made.double()) < radius[:, None]
    found = density_coverage(real, made, neighbours)
    assert found.density == pytest.approx(within.sum(0).mean() / neighbours)
    assert found.coverage == pytest.approx(within.any(1).mean())
    assert 0 < found.coverage < 1


def test_density_and_coverage_know_lost_variety_from_lost_quality():
    real = draws(400, 4)
    narrow = density_coverage(real, 0.2 * draws(400, 4, seed=1))
    far = density_coverage(real, draws(400, 4, seed=1, shift=9.0))
    equal = density_coverage(real, draws(400, 4, seed=1))
    assert narrow.density > 1.2 and narrow.coverage < 0.7
    assert far.density == far.coverage == 0
    assert abs(equal.density - 1) < 0.15 and equal.coverage > 0.9


def test_jensen_shannon_agrees_with_scipy():
    draw = np.random.default_rng(0)
    for p, q in ((draw.random(50), draw.random(50)), (np.array([1.0, 0, 3]), np.array([0, 2.0, 2]))):
        found = jensen_shannon(torch.from_numpy(p), torch.from_numpy(q))
        assert found == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-12)
    assert jensen_shannon(torch.tensor([1, 0]), torch.tensor([0, 5])) == pytest.approx(1)
    assert jensen_shannon(torch.tensor([1, 3]), torch.tensor([2, 6])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_tsne_of_equal_features_is_an_error_and_no_crash(noise, monkeypatch):
    import sklearn.manifold

    monkeypatch.setattr(sklearn.manifold, "TSNE", lambda **settings: pytest.fail("this would end the process"))
    same = torch.full((20, 6), 0.3) * (1 + torch.rand(20, 1)) + noise * draws(20, 6)
    with pytest.raises(ValueError, match="all features are equal"):
        tsne_divergence(same, 2 * same, perplexity=5)


def test_tsne_divergence_of_equal_and_of_separate_sets():
    together = tsne_divergence(draws(60, 10, shift=1.0), draws(60, 10, seed=1, shift=1.0), perplexity=15)
    apart = tsne_divergence(draws(60, 10, shift=3.0), draws(60, 10, seed=1, shift=-3.0), perplexity=15)
    assert apart.divergence > 0.99 > together.divergence
    assert together.one.shape == together.other.shape == (60, 2)


TOO_FEW = {
    "the Fréchet distance needs at least 2": lambda x: frechet_distance(x, x),
    "MMD needs at least 2": lambda x: kernel_distance(x, x),
    "KID with subsets of 100 needs at least 100": lambda x: kernel_inception_distance(x, x, size=100),
    "the reference set has 1 samples.* needs at least 6": lambda x: density_coverage(x, x),
    "a perplexity of 30 needs at least 91": lambda x: tsne_divergence(x.repeat(2, 1), x.repeat(2, 1)),
}


@pytest.mark.parametrize("message", TOO_FEW)
def test_too_few_samples_are_named_with_the_number_needed(message):
    with pytest.raises(ValueError, match=message):
        TOO_FEW[message](torch.ones(1, 4))


def test_broken_features_are_counted():
    broken = draws(9, 4)
    broken[[2, 5], 1] = torch.nan
    with pytest.raises(ValueError, match="second set has NaN or infinite features in 2 of 9 rows"):
        frechet_distance(draws(9, 4), broken)
    with pytest.raises(ValueError, match="features of 4 and 5 numbers"):
        frechet_distance(draws(9, 4), draws(9, 5))


# ---- faces


def test_verification_against_loops():
    draw = torch.Generator().manual_seed(3)
    same, different = 0.3 + 0.2 * torch.randn(43, generator=draw), 0.2 * torch.randn(61, generator=draw)
    shares, thresholds = [], []
    for fold in range(10):
        known = [(v, True) for i, v in enumerate(same.tolist()) if i % 10 != fold]
        known += [(v, False) for i, v in enumerate(different.tolist()) if i % 10 != fold]
        asked = [(v, True) for i, v in enumerate(same.tolist()) if i % 10 == fold]
        asked += [(v, False) for i, v in enumerate(different.tolist()) if i % 10 == fold]
        threshold = max(sorted(v for v, _ in known), key=lambda t: sum((v >= t) == w for v, w in known))
        shares.append(np.mean([(v >= threshold) == w for v, w in asked]))
        thresholds.append(threshold)
    found = verify(same, different)
    assert found.accuracy == pytest.approx(np.mean(shares))
    assert found.standard_error == pytest.approx(np.std(shares, ddof=1) / math.sqrt(10))
    assert found.threshold == pytest.approx(np.mean(thresholds))
    with pytest.raises(ValueError, match="9 pairs of one person and 61 of two: verification in 10 folds"):
        verify(same[:9], different)


def test_the_best_threshold_respects_equal_values():
    values = torch.tensor([0.5, 0.5, 0.5, 0.1, 0.9])
    truth = torch.tensor([True, False, True, False, True])
    assert best_threshold(values, truth) == 0.5
    assert best_threshold(torch.tensor([0.5, 0.5, 0.5, 0.6]), torch.tensor([False, False, True, True])) == 0.6


def test_pairs_of_people_in_any_order():
    labels = torch.tensor([5, 2, 5, 9, 2, 5, 7])
    numbers = torch.arange(7)
    marks = torch.nn.functional.one_hot(numbers).double()  # the product of two tells which they are ...
    weights = 2.0**numbers
    same, different = pair_similarities(marks + weights[:, None], labels)  # ... added to a number of its own
    def of(i, j):
        return ((marks[i] + weights[i]) * (marks[j] + weights[j])).sum().item()
    pairs = [(i, j) for i in range(7) for j in range(i + 1, 7) if labels[i] == labels[j]]
    assert same.tolist() == [of(i, j) for i, j in pairs]
    strangers = [{of(i, j) for j in range(7) if labels[i] != labels[j]} for i, _ in pairs]
    assert all(value in known for value, known in zip(different.tolist(), strangers, strict=True))
    many = torch.arange(300) % 3
    vectors = torch.nn.functional.one_hot(torch.arange(300)).double() @ torch.arange(300.0).double()[:, None]
    _, drawn = pair_similarities(torch.cat([vectors + 1, torch.ones(300, 1).double()], 1), many)
    first = torch.tensor([i for i in range(300) for j in range(i + 1, 300) if (j - i) % 3 == 0])
    others = (drawn - 1) / (first + 1) - 1  # which picture each stranger is
    assert (others.round().long() % 3 != first % 3).all() and len(others.round().unique()) == 300


def test_class_similarities_against_loops(monkeypatch):
    monkeypatch.setattr(verification_module, "CHUNK", 8)
    vectors, labels = 5 * draws(30, 6), torch.arange(30) % 7
    cosines = cosine_similarity(vectors.double())
    kinds = {True: [], False: []}
    for i in range(30):
        for j in range(i):
            kinds[bool(labels[i] == labels[j])].append(cosines[i, j])
    for found, kind in zip(class_similarities(vectors, labels), (True, False), strict=True):
        assert found.pairs == len(kinds[kind]) == sum(found.counts)
        assert found.mean == pytest.approx(np.mean(kinds[kind]))
        assert found.deviation == pytest.approx(np.std(kinds[kind]))
        assert list(found.counts) == np.histogram(kinds[kind], bins=EDGES)[0].tolist()
    assert len(found.counts) == BINS
    with pytest.raises(ValueError, match="nobody among 30 faces is shown twice"):
        class_similarities(vectors, torch.arange(30))
