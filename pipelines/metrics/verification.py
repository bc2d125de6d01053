"""Faces of one person and of two: similarity within and between classes, and verification as LFW does it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..randomness import generator
from .features import check_features

CHUNK = 1024  # rows of the similarity matrix that are held at once


@dataclass(frozen=True)
class Verification:
    """accuracy: mean over folds, 0..1; standard_error: of that mean; threshold: mean over folds, a cosine."""

    accuracy: float
    standard_error: float
    threshold: float


@dataclass(frozen=True)
class ClassSimilarity:
    """Cosines of all pairs of one kind: how many, mean, standard deviation, and counts [bins] between ``EDGES``."""

    pairs: int
    mean: float
    deviation: float
    counts: tuple[int, ...]


BINS = 80
EDGES = tuple(-1 + 2 * place / BINS for place in range(BINS + 1))


def verify(same: Tensor, different: Tensor, folds: int = 10) -> Verification:
    """Tell pairs of one person (similarities ``same`` [N]) from pairs of two (``different`` [M]) by a threshold.

    Each fold by the threshold that is best for the others: Huang et al. 2007 (LFW), section 4.1, where the standard
    error is the deviation over folds, with folds - 1 in its denominator, over the root of their number. Both kinds are
    dealt to the folds in turn. Raises ``ValueError`` for fewer pairs of a kind than folds.
    """
    if folds < 2 or min(len(same), len(different)) < folds:
        raise ValueError(
            f"{len(same)} pairs of one person and {len(different)} of two: verification in {folds} folds needs at "
            f"least {max(folds, 2)} of each."
        )
    values = torch.cat([same, different]).double()
    truth = torch.cat([torch.ones_like(same), torch.zeros_like(different)]).bool()
    fold = torch.cat([torch.arange(len(kind), device=values.device) % folds for kind in (same, different)])
    shares, thresholds = [], []
    for number in range(folds):
        asked = fold == number
        threshold = best_threshold(values[~asked], truth[~asked])
        shares.append(((values[asked] >= threshold) == truth[asked]).double().mean())
        thresholds.append(threshold)
    shares = torch.stack(shares)
    error = shares.std().item() / math.sqrt(folds)
    return Verification(shares.mean().item(), error, torch.stack(thresholds).mean().item())


def best_threshold(values: Tensor, truth: Tensor) -> Tensor:
    """The smallest of ``values`` [N] for which ``values >= threshold`` agrees with ``truth`` most often."""
    ordered, order = values.sort()
    told = truth[order]
    # Right with the threshold at place i: the strangers before it and the matches from it on ...
    right = (~told).cumsum(0) - (~told).long() + told.flip(0).cumsum(0).flip(0)
    # ... which holds only at the first of equal values.
    first = torch.cat([torch.ones_like(told[:1]), ordered[1:] > ordered[:-1]])
    return ordered[right.masked_fill(~first, -1).argmax()]


def verification_accuracy(same: Tensor, different: Tensor, folds: int = 10) -> float:
    """Share of pairs told rightly, see ``verify``; in fewer folds where there are fewer pairs of a kind than folds."""
    return verify(same, different, min(folds, len(same), len(different))).accuracy


def pair_similarities(vectors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of all pairs of the same person, and of as many of different people: the first of each pair and a
    stranger at random, always the same. Raises ``ValueError`` where nobody is shown twice, or only one person is.

    vectors: unit vectors [N, D]; labels: the number of each one's person, [N].
    """
    order = labels.argsort(stable=True)
    counts = labels[order].unique_consecutive(return_counts=True)[1]
    if counts.max() < 2:
        raise ValueError(f"none of {len(labels)} people is shown twice: give several pictures of a person.")
    if len(counts) == 1:
        raise ValueError(f"all {len(labels)} pictures show one person: give pictures of others, too.")
    pairs = torch.cat([torch.combinations(own) for own in order.split(counts.tolist()) if len(own) > 1])
    pairs = pairs[(pairs[:, 0] * len(labels) + pairs[:, 1]).argsort()]
    first, second = pairs.T
    # Of a person's pictures, which stand side by side in the order, the place of the first one and the number.
    person = torch.empty_like(order)
    person[order] = torch.arange(len(counts), device=order.device).repeat_interleave(counts)
    start, own = (counts.cumsum(0) - counts)[person[first]], counts[person[first]]
    draw = torch.rand(len(first), generator=generator("strangers", len(first)), dtype=torch.float64)
    place = (draw.to(own.device) * (len(labels) - own)).long()
    strangers = order[place + own * (place >= start)]
    return _cosines_of_pairs(vectors, first, second), _cosines_of_pairs(vectors, first, strangers)


def _cosines_of_pairs(vectors: Tensor, first: Tensor, second: Tensor) -> Tensor:
    parts = zip(first.split(64 * CHUNK), second.split(64 * CHUNK), strict=True)
    return torch.cat([(vectors[one] * vectors[other]).sum(1) for one, other in parts])


def class_similarities(
    vectors: Tensor, labels: Tensor, on_step: Callable[[int, int], None] = lambda done, total: None
) -> tuple[ClassSimilarity, ClassSimilarity]:
    """Cosines of all pairs of pictures of one person, and of all pairs of two people (intra- and inter-class).

    vectors [N, D], of any length; labels [N]. The figures of IDSync, section V-A. Holds ``CHUNK`` rows of similarities
    at once. ``on_step(done, total)`` may raise to stop. Raises ``ValueError`` where one kind of pair does not occur.
    """
    vectors = normalize(check_features(vectors, "the set of faces", 2, "similarity within and between people"), dim=1)
    if len(labels) != len(vectors):
        raise ValueError(f"{len(labels)} labels for {len(vectors)} faces: give one each.")
    labels = labels.to(vectors.device)
    counts, sums, squares = torch.zeros(2, BINS, dtype=torch.long), [0.0, 0.0], [0.0, 0.0]
    for start in range(0, len(vectors), CHUNK):
        rows = torch.arange(start, min(start + CHUNK, len(vectors)), device=vectors.device)
        cosines = (vectors[rows] @ vectors.T).clamp(-1, 1)
        later = torch.arange(len(vectors), device=vectors.device) > rows[:, None]
        alike = labels[rows, None] == labels
        for kind, chosen in enumerate((later & alike, later & ~alike)):
            found = cosines[chosen]
            places = ((found + 1) * BINS / 2).long().clamp(max=BINS - 1)
            counts[kind] += torch.bincount(places, minlength=BINS).cpu()
            sums[kind] += found.sum().item()
            squares[kind] += found.square().sum().item()
        on_step(min(start + CHUNK, len(vectors)), len(vectors))
    if not counts.sum(1).all():
        lacking = "shown twice" if not counts[0].any() else "different from the others"
        raise ValueError(f"nobody among {len(vectors)} faces is {lacking}: give several pictures of several people.")
    return tuple(_summary(*figures) for figures in zip(counts, sums, squares, strict=True))


def _summary(counts: Tensor, total: float, squares: float) -> ClassSimilarity:
    pairs = int(counts.sum())
    mean = total / pairs
    return ClassSimilarity(pairs, mean, math.sqrt(max(squares / pairs - mean**2, 0.0)), tuple(counts.tolist()))
