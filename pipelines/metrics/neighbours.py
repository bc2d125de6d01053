"""Density and coverage: fidelity and variety by nearest neighbours (Naeem et al. 2020)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .features import check_two_sets

CHUNK = 1024  # rows of the distance matrix that are held at once


@dataclass(frozen=True)
class DensityCoverage:
    """density: 0 and up, about 1 for equal distributions; coverage: 0..1. Higher is better."""

    density: float
    coverage: float


def density_coverage(
    real: Tensor, made: Tensor, neighbours: int = 5, on_step: Callable[[int, int], None] = lambda done, total: None
) -> DensityCoverage:
    """Density (equation 5) and coverage (equation 6) of ``made`` [M, D] against ``real`` [N, D], in float64.

    A real sample's ball reaches to its k-th nearest real neighbour, k = ``neighbours``. Density: how many balls a made
    sample lies in, over k; coverage: the share of balls with a made sample in them. Holds ``CHUNK`` rows of distances
    at once. ``on_step(done, total)`` may raise to stop. Raises ``ValueError`` where a real sample has no k neighbours.
    """
    if neighbours < 1:
        raise ValueError(f"density and coverage with {neighbours} neighbours: give at least 1, 5 is usual.")
    why = f"density and coverage with {neighbours} neighbours"
    real, made = check_two_sets(real, made, 1, why)
    if len(real) <= neighbours:
        raise ValueError(f"the reference set has {len(real)} samples, {why} needs at least {neighbours + 1}.")
    inside, covered, done = 0, 0, 0
    for rows in real.split(CHUNK):
        own = torch.cdist(rows, real)
        number = torch.arange(len(rows), device=rows.device)
        own[number, done + number] = torch.inf
        radius = own.kthvalue(neighbours, dim=1).values[:, None]
        within = torch.cdist(rows, made) < radius
        inside, covered, done = inside + int(within.sum()), covered + int(within.any(1).sum()), done + len(rows)
        on_step(done, len(real))
    return DensityCoverage(inside / (neighbours * len(made)), covered / len(real))
