"""Euler's method for diffusion models that were trained on timesteps, as k-diffusion and ComfyUI scale them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def euler_steps(
    predict_clean: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, sigmas: Sequence[Tensor] | Tensor,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:  # fmt: skip
    """From noise level sigmas[0] to the last one (Karras et al. 2022, algorithm 2 without churn).

    ``x``: signal plus sigma times noise, float32; ``sigmas``: T+1 falling levels; ``predict_clean(x, sigma, step)`` is
    the clean prediction. ``on_step(done, total)`` may raise.
    """
    total = len(sigmas) - 1
    for step in range(total):
        sigma = sigmas[step]
        clean = predict_clean(x, sigma, step)
        x = x + (x - clean) / sigma * (sigmas[step + 1] - sigma)
        if on_step is not None:
            on_step(step + 1, total)
    return x


def clean_from_output(x: Tensor, sigma: Tensor, output: Tensor, prediction_type: str) -> Tensor:
    """The clean prediction that a network's ``output`` for ``scaled(x, sigma)`` means."""
    if prediction_type == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    return x - sigma * output


def scaled(x: Tensor, sigma: Tensor) -> Tensor:
    """``x`` as the network wants it: of about unit variance."""
    return x / (sigma**2 + 1).sqrt()


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, equation 6)."""
    return unconditional + scale * (conditional - unconditional)


def euler_schedule(scheduler, steps: int, strength: float, device) -> tuple[Tensor, Tensor]:
    """(sigmas [T+1], timesteps [T]) of the last ``steps`` of a diffusers ``EulerDiscreteScheduler``'s schedule.

    ``strength`` in 0..1 is the fraction of the schedule that is run. Raises ``ValueError`` for values out of range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}: use a fraction of the schedule above 0 and up to 1.")
    if steps < 1:
        raise ValueError(f"steps is {steps}: use at least 1.")
    scheduler.set_timesteps(int(steps / strength), device=device)
    return scheduler.sigmas[-steps - 1 :].to(device), scheduler.timesteps[-steps:]


def noise_like(latent: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise in float32, in the shape and on the device of ``latent``."""
    return torch.randn(latent.shape, generator=generator, dtype=torch.float32).to(latent.device)
