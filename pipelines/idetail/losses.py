"""The four losses of IDetail (paper, section 4.4), each one function; all of them in the latent space.

Shapes: latents ``[B, C, h, w]``, ``mask`` ``[B, 1, h, w]`` in 0..1 (foreground of the input). Every loss is in float32,
a mean over all elements (the paper leaves the reduction open), the identity loss a cosine per sample and then a mean.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import mse_loss, smooth_l1_loss

EPSILON = 1e-8


@dataclass(frozen=True)
class LossWeights:
    """Weights of the sum (paper, equation 6). A weight of 0 leaves its loss out."""

    identity: float = 1.0
    foreground: float = 10.0
    background: float = 0.2
    noise: float = 0.5


def estimate_clean(noisy: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The clean latent that a noise estimate means: (x_t - sqrt(1 - a) eps) / sqrt(a); ``alphas_cumprod`` ``[B]``."""
    signal = alphas_cumprod.float().reshape(-1, 1, 1, 1)
    return (noisy.float() - (1 - signal).sqrt() * noise.float()) / signal.sqrt()


def noise_of(output: Tensor, noisy: Tensor, timesteps: Tensor, scheduler) -> Tensor:
    """The noise that a network's output means, in float32: the output itself, or of a velocity sqrt(a) v + s x."""
    if scheduler.config.prediction_type == "epsilon":
        return output.float()
    signal = scheduler.alphas_cumprod.to(output.device)[timesteps].reshape(-1, 1, 1, 1)
    return signal.sqrt() * output.float() + (1 - signal).sqrt() * noisy.float()


def clean_of(output: Tensor, noisy: Tensor, timesteps: Tensor, scheduler) -> Tensor:
    """The clean latent that a network's output means, in float32 (equation 1; of a velocity sqrt(a) x - s v).

    A velocity says it also where there is no signal at all.
    """
    signal = scheduler.alphas_cumprod.to(output.device)[timesteps]
    if scheduler.config.prediction_type == "epsilon":
        return estimate_clean(noisy, output, signal)
    signal = signal.reshape(-1, 1, 1, 1)
    return signal.sqrt() * noisy.float() - (1 - signal).sqrt() * output.float()


def identity_loss(clean: Tensor, source: Tensor, mask: Tensor, weigh: Tensor | None = None) -> Tensor:
    """1 - cosine of the foregrounds of the estimate and of the *input* latent (equation 2).

    A sample without foreground counts as 0: it has no identity to keep. Blind to a common factor of the latent.
    """
    one, other = (mask * clean).flatten(1).float(), (mask * source).flatten(1).float()
    cosine = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1) + EPSILON)
    return _mean((1 - cosine) * (mask.flatten(1).amax(1) > 0), weigh)


def foreground_loss(clean: Tensor, target: Tensor, mask: Tensor, weigh: Tensor | None = None) -> Tensor:
    """Smooth L1 with threshold 1 between the foregrounds of estimate and target (equation 3)."""
    errors = smooth_l1_loss((mask * clean).float(), (mask * target).float(), beta=1.0, reduction="none")
    return _mean(errors.mean((1, 2, 3)), weigh)


def background_loss(clean: Tensor, target: Tensor, mask: Tensor, weigh: Tensor | None = None) -> Tensor:
    """L1 between the backgrounds (equation 4, which lacks the absolute value that its text has)."""
    return _mean(((1 - mask) * (clean - target)).float().abs().mean((1, 2, 3)), weigh)


def noise_loss(estimate: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the noise (equation 5)."""
    return mse_loss(estimate.float(), noise.float())


def _mean(losses: Tensor, weigh: Tensor | None) -> Tensor:
    return losses.mean() if weigh is None else (losses * weigh).mean()


def relight_losses(
    noise_estimate: Tensor, noise: Tensor, clean_estimate: Tensor, source: Tensor, target: Tensor, mask: Tensor,
    weights: LossWeights, weigh: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The weighted losses by name; their sum is the paper's equation 6.

    ``weigh`` ``[B]``: a factor of each sample on the three losses of the clean estimate, for other weights of noise
    levels than the paper's.
    """
    losses = {
        "identity": (weights.identity, lambda: identity_loss(clean_estimate, source, mask, weigh)),
        "foreground": (weights.foreground, lambda: foreground_loss(clean_estimate, target, mask, weigh)),
        "background": (weights.background, lambda: background_loss(clean_estimate, target, mask, weigh)),
        "noise": (weights.noise, lambda: noise_loss(noise_estimate, noise)),
    }
    return {name: weight * loss() for name, (weight, loss) in losses.items() if weight}
