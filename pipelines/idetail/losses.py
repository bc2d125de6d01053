"""The four losses of IDetail (paper, section 4.4), each one function; all of them in the latent space.

Shapes: latents ``[B, C, h, w]``, ``mask`` ``[B, 1, h, w]`` in 0..1 (foreground of the input). Every loss is in float32,
a mean over all elements (the paper leaves the reduction open), the identity loss a cosine per sample and then a mean.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss, smooth_l1_loss

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


def identity_loss(clean: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """1 - cosine of the foregrounds of the estimate and of the *input* latent (section 4.4, L_id).

    A sample without foreground counts as 0: it has no identity to keep. Blind to a common factor of the latent.
    """
    one, other = (mask * clean).flatten(1).float(), (mask * source).flatten(1).float()
    norms = one.norm(dim=1) * other.norm(dim=1)
    cosine = (one * other).sum(1) / (norms + EPSILON)
    return ((1 - cosine) * has_foreground(mask)).mean()


def foreground_loss(clean: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Smooth L1 with threshold 1 between the foregrounds of estimate and target (L_fg)."""
    return smooth_l1_loss((mask * clean).float(), (mask * target).float(), beta=1.0)


def background_loss(clean: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L1 between the backgrounds (L_bg; the printed equation lacks the absolute value, its text has it)."""
    return l1_loss(((1 - mask) * clean).float(), ((1 - mask) * target).float())


def noise_loss(estimate: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the noise (L_noise)."""
    return mse_loss(estimate.float(), noise.float())


def has_foreground(mask: Tensor) -> Tensor:
    """1 for each sample whose mask covers anything, else 0: ``[B]`` float32."""
    return (mask.flatten(1).amax(1) > 0).float()


def relight_losses(
    noise_estimate: Tensor, noise: Tensor, clean_estimate: Tensor, source: Tensor, target: Tensor, mask: Tensor,
    weights: LossWeights,
) -> dict[str, Tensor]:  # fmt: skip
    """The weighted losses by name; their sum is the paper's equation 6."""
    losses = {
        "identity": (weights.identity, lambda: identity_loss(clean_estimate, source, mask)),
        "foreground": (weights.foreground, lambda: foreground_loss(clean_estimate, target, mask)),
        "background": (weights.background, lambda: background_loss(clean_estimate, target, mask)),
        "noise": (weights.noise, lambda: noise_loss(noise_estimate, noise)),
    }
    return {name: weight * loss() for name, (weight, loss) in losses.items() if weight}
