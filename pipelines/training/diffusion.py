"""The loss of denoising diffusion, and how noise levels are weighed."""

from diffusers.training_utils import compute_snr
from torch import Tensor


def diffusion_target(clean: Tensor, noise: Tensor, timesteps: Tensor, scheduler) -> Tensor:
    """What the network should predict: the noise, or the velocity (Salimans and Ho 2022, appendix D)."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)
    raise ValueError(f"prediction_type is {kind!r}: only epsilon and v_prediction can be trained.")


def min_snr_weights(timesteps: Tensor, scheduler, gamma: float) -> Tensor:
    """Weight of each timestep's squared error ``[B]`` (Hang et al. 2023, *Min-SNR*, section 3.4).

    min(SNR, gamma) / SNR where noise is predicted, min(SNR, gamma) / (SNR + 1) where velocity is: both are
    min(SNR, gamma) on the error of the clean image. Where there is no signal at all, noise weighs its limit, 1.
    """
    snr = compute_snr(scheduler, timesteps)
    divisor = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr
    return (snr.clamp(max=gamma) / divisor).nan_to_num(nan=1.0)


def diffusion_loss(
    prediction: Tensor, clean: Tensor, noise: Tensor, timesteps: Tensor, scheduler, min_snr_gamma: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean squared error of a prediction ``[B, C, H, W]``, in float32; ``min_snr_gamma`` 0 weighs all levels alike.

    weight: ``[B, 1, H, W]``, how much places of a sample count against each other; only ratios matter.
    """
    target = diffusion_target(clean, noise, timesteps, scheduler)
    squares = (prediction.float() - target.float()).square()
    if weight is not None:
        squares = squares * (weight / weight.mean(dim=(1, 2, 3), keepdim=True))
    errors = squares.mean(dim=(1, 2, 3))
    if min_snr_gamma > 0:
        errors = errors * min_snr_weights(timesteps, scheduler, min_snr_gamma)
    return errors.mean()


def noisy_latents(clean: Tensor, random, scheduler, latest: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(noisy latents, noise, timesteps) with the random numbers of ``random`` (a ``BatchRandom``).

    ``latest``: the noisiest timestep there is, None for that of the scheduler.
    """
    steps = scheduler.config.num_train_timesteps if latest is None else latest + 1
    noise = random.normal("noise", tuple(clean.shape[1:])).to(clean.device)
    timesteps = random.integers("timestep", 0, steps).to(clean.device)
    return scheduler.add_noise(clean, noise, timesteps), noise, timesteps


def sample_posterior(mean: Tensor, std: Tensor, random) -> Tensor:
    """A draw from the VAE's posterior, ``[B, C, h, w]``."""
    return mean + std * random.normal("posterior", tuple(mean.shape[1:])).to(mean.device)

