"""Two ways to start an edit from a photo's latent: virtual inversion (InfEdit's DDCM) and DDIM inversion.

A noisy latent is x = a x0 + s n, and only the pair (a, s) tells one model family from another: (sqrt(abar),
sqrt(1 - abar)) for the variance-preserving form of the papers, (1, sigma) for the sigma form of ComfyUI and Karras et
al., (1 - sigma, sigma) for flow matching. Everything here is written with the pair, and with a model's prediction of
the *clean* latent, D = (x - s eps) / a, in place of its noise eps; then most of the papers' terms cancel.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

_TRAINING_STEPS = 1000


class Level(NamedTuple):
    """A noise level: x = signal * x0 + noise * n."""

    signal: float
    noise: float

    @classmethod
    def of_alpha_bar(cls, alpha_bar: float) -> "Level":
        """Variance-preserving form of a cumulative alpha in 0..1."""
        return cls(alpha_bar**0.5, (1 - alpha_bar) ** 0.5)

    @classmethod
    def of_sigma(cls, sigma: float) -> "Level":
        """Sigma form; the same noise level as abar = 1 / (1 + sigma^2)."""
        return cls(1.0, float(sigma))

    @property
    def sigma(self) -> float:
        """Noise for each unit of signal, finite also where there is no signal."""
        return self.noise / max(self.signal, 1e-8)

    @property
    def length(self) -> float:
        """Standard deviation of x for data of unit variance."""
        return math.hypot(self.signal, self.noise)


def clean_from_noise(x: torch.Tensor, eps: torch.Tensor, level: Level) -> torch.Tensor:
    """D = (x - s eps) / a, the clean latent that a noise prediction stands for."""
    return (x - level.noise * eps) / level.signal


def virtual_inversion_estimate(source: torch.Tensor, denoised: torch.Tensor, denoised_source: torch.Tensor):
    """Clean estimate of a branch by virtual inversion: xhat0 = x0 + D_t - D_s (Xu et al. 2024, DDCM; notes 2.7).

    The paper's x0 + [(x_t - x_s) - s (eps_t - eps_s)] / a is the same number, because (x - s eps) / a is D. So the
    edit is the *difference* the prompts make, and where they make none the source is returned to the last bit of x0.
    All latents have one shape; any noise level.
    """
    return source + (denoised - denoised_source)


def sampling_step(x, clean, level: Level, following: Level, noise=None, eta: float = 0.0) -> torch.Tensor:
    """x' = a' xhat0 + s' (sqrt(1 - eta) d + sqrt(eta) n), with d = (x - a xhat0) / s the noise that x holds.

    Song et al. 2021 (DDIM): eta 0 is deterministic, eta 1 draws all noise anew (multistep consistency sampling). With
    xhat0 of virtual inversion, d is the paper's eps_t - eps_s + eps_c, so this is also the DDCM step (notes 2.7).
    ``noise``: as ``x``, needed where eta > 0.
    """
    result = following.signal * clean
    if eta < 1:
        result = result + following.noise * (1 - eta) ** 0.5 * (x - level.signal * clean) / level.noise
    if eta > 0:
        result = result + following.noise * eta**0.5 * noise
    return result


def sample_by_virtual_inversion(
    predict: Callable[[int, list[torch.Tensor]], list[torch.Tensor]],
    source: torch.Tensor,
    start: torch.Tensor,
    levels: Sequence[Level],
    draw_noise: Callable[[int], torch.Tensor],
    branches: int = 2,
    eta: float = 1.0,
) -> torch.Tensor:
    """Edit ``source`` without inverting it: source and target share every noise (Xu et al. 2024; notes 2.7, 5.6-8).

    ``source``: clean latent ``[B, C, h, w]``; ``start``: it, noised to ``levels[0]``; ``levels``: T+1 of them, the
    last one is only stepped to, never evaluated. ``predict(i, latents)`` is handed the branches [source, target] or
    [source, target, layout] and returns the clean estimates of all but the first, refined if the host refines.
    ``draw_noise(i)`` is drawn once a step for all branches. Returns the last clean estimate of the target.
    """
    latents = [start] * branches
    for i, (level, following) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        clean = predict(i, latents)
        if i + 2 == len(levels):
            break
        noise = draw_noise(i) if eta > 0 else None
        stepped = [
            sampling_step(x, estimate, level, following, noise, eta)
            for x, estimate in zip(latents[1:], clean, strict=True)
        ]
        # The source is the target's noise around another clean latent, so nothing of it has to be predicted.
        latents = [stepped[0] + following.signal * (source - clean[0]), *stepped]
    return clean[0]


def invert_by_ddim(
    predict_source: Callable[[int, torch.Tensor], torch.Tensor],
    source: torch.Tensor,
    levels: Sequence[Level],
    iterations: int = 1,
) -> list[torch.Tensor]:
    """Latents of the source at every level, found by running DDIM backwards (Song et al. 2021, section 4.3).

    A step up from x' to x = a/a' (x' - s' eps) + s eps needs eps at x itself, which is not known yet. One iteration
    takes it at x' scaled to the level's length, as is usual; each further one takes it at the last result, which
    converges to the exact inverse of ``sampling_step`` when it converges (Pan et al. 2023, AIDI). ``predict_source(i,
    x)`` is the clean prediction at ``levels[i]``. Returns T latents, for ``levels[:-1]``.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}: use at least 1.")
    trajectory, below = [], source * levels[-1].signal
    for i in range(len(levels) - 2, -1, -1):
        level, lower = levels[i], levels[i + 1]
        x = below * (level.length / lower.length)
        for _ in range(iterations):
            eps = (x - level.signal * predict_source(i, x)) / level.noise
            x = level.signal / lower.signal * (below - lower.noise * eps) + level.noise * eps
        trajectory.insert(0, x)
        below = x
    return trajectory


def sample_from_inversion(
    predict: Callable[[int, list[torch.Tensor]], list[torch.Tensor]],
    trajectory: Sequence[torch.Tensor],
    levels: Sequence[Level],
) -> torch.Tensor:
    """DDIM sampling of the target from the source's inverted latents (Hertz et al. 2023 on Song et al. 2021).

    The source branch is the stored ``trajectory`` itself, so it cannot drift from the photo (Ju et al. 2024, Direct
    Inversion). ``predict(i, [source, target])`` returns [clean estimate of the target].
    """
    target = trajectory[0]
    for i, (level, following) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        clean = predict(i, [trajectory[i], target])[0]
        target = sampling_step(target, clean, level, following)
    return clean


def lcm_timesteps(steps: int, original_steps: int = 50) -> list[int]:
    """Falling timesteps of a latent consistency model for ``steps`` steps (Luo et al. 2023; notes 2.8).

    The grid the model was distilled on, {19, 39, ..., 999} for 50, is read from its top in even strides.
    """
    if not 1 <= steps <= original_steps:
        raise ValueError(f"steps is {steps}: a consistency model distilled on {original_steps} takes 1 to that many.")
    stride = _TRAINING_STEPS // original_steps
    grid = [stride * (k + 1) - 1 for k in range(original_steps)][::-1]
    return [grid[i * original_steps // steps] for i in range(steps)]
