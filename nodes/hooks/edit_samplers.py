"""Samplers of text edits, in the form that ComfyUI's KSAMPLER calls.

They carry the target's latent through the guider as any sampler does; source and layout branch travel in the options of
each call. The picture that is edited is the ``latent_image`` of the run.
"""

import torch
from comfy.k_diffusion.sampling import default_noise_sampler
from comfy.patcher_extension import WrappersMP, get_wrappers_with_key

from ...pipelines.spl.inversion import Level, invert_by_ddim, sample_by_virtual_inversion, sample_from_inversion
from ..convert import interrupt_check, named_errors
from .edit_guider import EditBranches, EditGuider


def sample_virtual_inversion(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0,
                             noise_sampler=None):  # fmt: skip
    """Virtual inversion (InfEdit's DDCM) from ``x``, which is the source noised to ``sigmas[0]``."""
    with named_errors("Virtual Inversion Sampler"):
        run = _Run(model, x, sigmas, extra_args, callback)
    if run.steps < 1:
        return x
    noise_sampler = noise_sampler or default_noise_sampler(x, seed=(extra_args or {}).get("seed"))

    def predict(step, latents):
        source, target, *layout = latents
        branches = EditBranches(source, run.outside_mask(layout[0], source) if layout else None, run.source)
        clean = run.predict(step, target, branches)
        if not branches.answered:
            raise ValueError(
                "Virtual Inversion Sampler: another node of this model (LazyCache, for example) gave an earlier step's "
                "prediction again, but each step here has noise of its own: connect the model from before that node."
            )
        return [clean, branches.layout_clean] if layout else [clean]

    return sample_by_virtual_inversion(
        predict, run.source, x, run.levels, lambda step: noise_sampler(sigmas[step], sigmas[step + 1]),
        run.guider.control.settings.branches, eta,
    )  # fmt: skip


def sample_ddim_inversion(model, x, sigmas, extra_args=None, callback=None, disable=None, iterations=1):
    """DDIM inversion of the source up to ``sigmas[0]``, then DDIM sampling of the target; ``x`` is not used."""
    with named_errors("DDIM Inversion Sampler"):
        run = _Run(model, x, sigmas, extra_args, callback)
        if run.guider.control.settings.layout_branch:
            raise ValueError("layout_branch belongs to virtual inversion: switch it off in Edit Guider.")
        if get_wrappers_with_key(WrappersMP.CALC_COND_BATCH, "easycache", run.extra_args["model_options"], True):
            raise ValueError(
                "EasyCache reckons with noise that falls step by step, inversion raises it first: connect the model "
                "from before EasyCache."
            )
    if run.steps < 1:
        return x

    def predict(step, latents):
        source, target = latents
        return [run.predict(step, target, EditBranches(source, None, None))]

    trajectory = invert_by_ddim(run.predict_source, run.source, run.levels, iterations)
    return sample_from_inversion(predict, trajectory, run.levels)


class _Run:
    """One sampling run: its source latent, its noise levels and its calls of the model."""

    def __init__(self, model, x, sigmas, extra_args, callback):
        self.model, self.sigmas, self.callback = model, sigmas, callback
        self.extra_args = extra_args or {}
        self.guider, self.source, self.steps = model.inner_model, model.latent_image, len(sigmas) - 1
        self.ones = x.new_ones([x.shape[0]])
        self._check(sigmas)
        sampling = self.guider.inner_model.model_sampling
        self.levels = [_level(sampling, sigma) for sigma in sigmas]

    def predict(self, step: int, target: torch.Tensor, branches: EditBranches) -> torch.Tensor:
        """Clean estimate of the target as the guider, and whatever is wrapped around it, gives it.

        Outside of a latent noise mask ComfyUI puts the source into the target, noised with ``model.noise``. That has
        to be the noise of the source branch: where the two differ, attention carries the difference into the mask.
        """
        interrupt_check()
        options = branches.in_options(self.extra_args["model_options"])
        sigma, level = self.sigmas[step], self.levels[step]
        self.model.noise = (branches.source - level.signal * self.source) / level.noise
        clean = self.model(target, sigma * self.ones, **{**self.extra_args, "model_options": options})
        if self.callback is not None:
            self.callback({"x": target, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": clean})
        return clean

    def outside_mask(self, latent: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """``latent`` with ``source`` in the place of what a latent noise mask protects."""
        mask = self.extra_args.get("denoise_mask")
        return latent if mask is None else mask * latent + (1 - mask) * source

    def predict_source(self, step: int, x: torch.Tensor) -> torch.Tensor:
        """Clean prediction under the source prompt; not seen by wrappers, which refine pictures of the target."""
        interrupt_check()
        return self.guider.denoise_source(x, self.sigmas[step] * self.ones, self.extra_args["model_options"])

    def _check(self, sigmas):
        if not isinstance(self.guider, EditGuider):
            raise ValueError(f"the guider is a {type(self.guider).__name__}: connect Edit Guider.")
        if self.source is None or not torch.any(self.source):
            raise ValueError("the latent_image is empty: connect the photo that is edited, through VAE Encode.")
        if len(sigmas) > 1 and (sigmas[-1] != 0 or sigmas[0] < sigmas[-1]):
            raise ValueError(
                f"the noise levels go from {sigmas[0]:.4g} to {sigmas[-1]:.4g}: an edit needs falling ones that end "
                "at 0, as schedulers make them."
            )


def _level(sampling, sigma: torch.Tensor) -> Level:
    """What ``sigma`` means to the model: read off its own mixing of noise and latent, for every model family."""
    one, zero = sigma.new_ones(1, 1, 1, 1), sigma.new_zeros(1, 1, 1, 1)
    signal = sampling.noise_scaling(sigma.reshape(1), zero.clone(), one.clone())
    noise = sampling.noise_scaling(sigma.reshape(1), one.clone(), zero.clone())
    return Level(float(signal), float(noise))
