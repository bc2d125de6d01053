"""Kernel distance between two sets of features: MMD, and KID, its mean over subsets (Bińkowski et al. 2018)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..randomness import generator
from .features import check_two_sets

CHUNK = 2048  # rows of the kernel matrix that are held at once
Step = Callable[[int, int], None]


@dataclass(frozen=True)
class KernelDistance:
    """``mean`` and ``deviation`` over subsets of the squared MMD; the deviation is no standard error of the mean."""

    mean: float
    deviation: float


def kernel_distance(one: Tensor, other: Tensor, degree: int = 3) -> float:
    """Squared maximum mean discrepancy of two sets of features [N, D] and [M, D], in float64; 0 is equal.

    Unbiased (Gretton et al. 2012, equation 3, so it can be below 0), with the kernel (x.y / D + 1)^degree of Bińkowski
    et al. 2018, section 4. Never holds an N x M matrix. Raises ``ValueError`` for fewer than two samples.
    """
    one, other = check_two_sets(one, other, 2, "MMD")
    n, m = len(one), len(other)
    within = (_kernel_sum(x, x, degree) - _kernel(x, x, degree).sum() for x in (one, other))
    first, second = within
    return float(first / (n * (n - 1)) + second / (m * (m - 1)) - 2 * _kernel_sum(one, other, degree) / (n * m))


def _kernel_sum(x: Tensor, y: Tensor, degree: int) -> Tensor:
    return sum(((rows @ y.T / x.shape[1] + 1) ** degree).sum() for rows in x.split(CHUNK))


def _kernel(x: Tensor, y: Tensor, degree: int) -> Tensor:
    """Of each row with the row beside it, [N]."""
    return ((x * y).sum(1) / x.shape[1] + 1) ** degree


def kernel_inception_distance(
    one: Tensor, other: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0,
    on_step: Step = lambda done, total: None,
) -> KernelDistance:  # fmt: skip
    """KID: ``kernel_distance`` on ``subsets`` random subsets of ``size`` samples of each set, without replacement.

    The published protocol has the defaults and Inception features; the subsets follow from ``seed`` alone.
    ``on_step(done, total)`` may raise to stop. Raises ``ValueError`` where a set has fewer than ``size`` samples.
    """
    if subsets < 1:
        raise ValueError(f"KID has {subsets} subsets: give at least 1.")
    one, other = check_two_sets(one, other, max(size, 2), f"KID with subsets of {size}")
    draw, found = generator("kernel distance", seed), []
    for done in range(subsets):
        chosen = (x[torch.randperm(len(x), generator=draw)[:size].to(x.device)] for x in (one, other))
        found.append(kernel_distance(*chosen))
        on_step(done + 1, subsets)
    values = torch.tensor(found, dtype=torch.float64)
    return KernelDistance(values.mean().item(), values.std(correction=0).item())
