"""Distance between two sets of features, as normal distributions."""

import torch
from torch import Tensor


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Squared Fréchet distance of two sets of features [N, D] and [M, D] (Heusel et al. 2017, equation 6).

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), in float64. Raises ``ValueError`` for fewer than two samples.
    """
    if min(len(one), len(other)) < 2 or one.shape[1:] != other.shape[1:]:
        raise ValueError(f"features are {tuple(one.shape)} and {tuple(other.shape)}: give [N, D] and [M, D], N, M > 1.")
    one, other = one.double(), other.double()
    first, second = one.T.cov(), other.T.cov()
    # C1 C2 has the eigenvalues of a product of two positive matrices: real and not negative, but for rounding.
    roots = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    shift = (one.mean(0) - other.mean(0)).square().sum()
    return float(shift + first.trace() + second.trace() - 2 * roots)
