"""Distance between two sets of features, as normal distributions."""

from torch import Tensor, linalg

from .features import check_two_sets


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Squared Fréchet distance of two sets of features [N, D] and [M, D] (Heusel et al. 2017, equation 6).

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), in float64; 0 is equal. On the 2048 features of Inception it is the
    FID. With N or M not well above D the covariances are estimated badly and the distance comes out too large: compare
    only values of equal N and M. Raises ``ValueError`` for fewer than two samples.
    """
    one, other = check_two_sets(one, other, 2, "the Fréchet distance")
    first, second = (features.T.cov().reshape(features.shape[1], -1) for features in (one, other))
    # C1 C2 has the eigenvalues of a product of two positive matrices: real and not negative, but for rounding.
    roots = linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    shift = (one.mean(0) - other.mean(0)).square().sum()
    return float(shift + first.trace() + second.trace() - 2 * roots)
