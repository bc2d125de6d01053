"""Two sets of features side by side in a t-SNE map, and how far apart they lie there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..optional import need
from .features import check_two_sets

BINS = 32
SPREAD = 1e-6  # of unit vectors in float32: what differs less is rounding


@dataclass(frozen=True)
class Projection:
    """Places [N, 2] and [M, 2] in one map, and the divergence of the two there, 0 (equal) to 1 (apart)."""

    one: Tensor
    other: Tensor
    divergence: float


def tsne_divergence(one: Tensor, other: Tensor, perplexity: float = 30.0, seed: int = 0) -> Projection:
    """Project both sets of features [N, D] and [M, D] with one t-SNE and compare their densities there.

    van der Maaten and Hinton 2008, by scikit-learn, on unit vectors (where squared distance is 2 - 2 cosine), as IDSync
    does it (section V-A, figure 6); its grid is not given, ours is ``BINS`` x ``BINS`` over the map. The value depends
    on N, M, perplexity and grid: compare only equal ones, best with the divergence of two halves of one set. Raises
    ``ValueError`` for fewer than 3 x perplexity samples together and where all point the same way, and ``ImportError``
    without scikit-learn.
    """
    one, other = check_two_sets(one, other, 2, "t-SNE")
    least = int(3 * perplexity) + 1
    if len(one) + len(other) < least:
        raise ValueError(
            f"t-SNE has {len(one) + len(other)} samples, a perplexity of {perplexity:g} needs at least {least}: give "
            "more pictures or a smaller perplexity."
        )
    vectors = torch.nn.functional.normalize(torch.cat([one, other]), dim=1).cpu()
    # scikit-learn divides by their spread, and its tree crashes the process on the NaN that comes of it.
    if vectors.double().std(0).max() < SPREAD:
        raise ValueError("all features are equal (but for their length): t-SNE has nothing to lay out.")
    manifold = need("sklearn.manifold", "scikit-learn")
    places = torch.from_numpy(
        manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors.numpy())
    ).double()
    low, high = places.amin(0), places.amax(0)
    cells = ((places - low) / (high - low).clamp(min=1e-12) * BINS).long().clamp(max=BINS - 1)
    flat = cells[:, 0] * BINS + cells[:, 1]
    shares = [torch.bincount(part, minlength=BINS**2).double() for part in (flat[: len(one)], flat[len(one) :])]
    return Projection(places[: len(one)], places[len(one) :], jensen_shannon(*shares))


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon divergence (Lin 1991) of two histograms [K] of counts or shares, in bits: 0..1.

    The mean Kullback-Leibler divergence of both from their mean. scipy's ``jensenshannon`` is its root.
    """
    if p.shape != q.shape or not (p.sum() > 0 and q.sum() > 0):
        raise ValueError(f"histograms are {tuple(p.shape)} and {tuple(q.shape)}: give equal bins, none without counts.")
    p, q = p.double() / p.sum(), q.double() / q.sum()
    middle = (p + q) / 2
    parts = [torch.xlogy(x, x / middle).nansum() for x in (p, q)]
    return float(sum(parts) / 2 / torch.log(torch.tensor(2.0, dtype=torch.float64)))
