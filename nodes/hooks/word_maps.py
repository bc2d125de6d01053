"""Records a model's attention to a prompt while it looks at a noised picture."""

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import default_noise_sampler

from ...pipelines.spl.word_masks import MapRecorder, map_limit
from ..convert import interrupt_check
from .attention_patches import record_attention


class MapGuider(comfy.samplers.CFGGuider):
    """Guider of the conditioning "positive" alone that records its attention; does not touch the model."""

    def __init__(self, model, conditioning):
        super().__init__(model)
        self.inner_set_conds({"positive": conditioning})
        self.recorder: MapRecorder | None = None

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        size = tuple(x.shape[-2:])
        if self.recorder is None:
            self.recorder = MapRecorder(map_limit(size))
        options = record_attention(
            model_options["transformer_options"], self.inner_model.diffusion_model, self.recorder, size
        )
        return super().predict_noise(x, timestep, {**model_options, "transformer_options": options}, seed)


def _look(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A sampler that goes nowhere: the clean latent, noised anew to every level, is shown to the model."""
    clean, sampling = model.latent_image, model.inner_model.inner_model.model_sampling
    draw = default_noise_sampler(x, seed=extra_args.get("seed"))
    ones = x.new_ones([x.shape[0]])
    for step in range(len(sigmas) - 1):
        interrupt_check()
        if step:
            x = sampling.noise_scaling(sigmas[step], draw(sigmas[step - 1], sigmas[step]), clean)
        denoised = model(x, sigmas[step] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigmas[step], "sigma_hat": sigmas[step], "denoised": denoised})
    return clean


def attention_to_prompt(model, conditioning, latent: torch.Tensor, steps: int, seed: int, callback=None):
    """Mean attention maps ``[B, tokens, H, W]`` of ``latent`` ``[B, C, h, w]``, noised to ``steps`` levels (notes 5.C).

    The source branch of virtual inversion is at every step the source with fresh noise, and attends as if it were
    alone; so looking at noised copies of the picture records what a whole edit would.
    """
    guider = MapGuider(model, conditioning)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "sgm_uniform", steps)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    guider.sample(
        noise, latent, comfy.samplers.KSAMPLER(_look), sigmas, callback=callback, disable_pbar=True, seed=seed
    )
    return guider.recorder.mean()
