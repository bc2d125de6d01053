"""Carries SPL into ComfyUI's sampler: prepared by an OUTER_SAMPLE wrapper, applied by a PREDICT_NOISE wrapper.

PREDICT_NOISE sees the final clean prediction of every guider, whatever its number of conditionings. All state belongs
to one sampling run and lives in that run's options, so the patched MODEL can be shared, re-queued and run again.
"""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

from ...pipelines.images import check_mask, match_batch, match_size, same_aspect
from ...pipelines.spl.guidance import StructureGuidance
from ...pipelines.spl.settings import StructureSettings
from ..convert import compute_device, interrupt_check, named_errors, to_pipeline

_KEY = "likeness_structure_guidance"


class _Latents:
    """Encodes and decodes the latents of one sampling run with the user's VAE, in the model's latent scale.

    reload: brings back the models of the run; using the VAE may have unloaded them, and with them what other nodes
    have changed about them, the latent's scale included.
    """

    def __init__(self, vae, model, reload: Callable[[], None]):
        self.vae, self.model, self.reload = vae, model, reload

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return _decoded(self.vae, self.model.process_latent_out(latent)).to(compute_device(latent.device))

    def encode(self, images: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        latent = encode_images(self.vae, images.movedim(1, -1), like.ndim, like.shape[0])
        self.reload()
        return self.model.process_latent_in(latent.to(like))


def _decoded(vae, latent: torch.Tensor) -> torch.Tensor:
    """Pictures of a latent, the frames of clips one after the other, float32 ``[N, 3, H, W]``."""
    images = vae.decode(latent)
    if images.ndim == 5:
        images = images.flatten(0, 1)
    return to_pipeline(images).float()


def encode_images(vae, images: torch.Tensor, dimensions: int, batch: int) -> torch.Tensor:
    """Encode IMAGEs ``[N, H, W, 3]`` to ``batch`` latents of ``dimensions`` axes.

    A video VAE reads a batch of images as one clip, so each latent's frames go through on their own.
    """
    if dimensions == 5:
        latent = torch.cat([vae.encode(frames) for frames in images.chunk(batch)])
        return latent if latent.ndim == 5 else latent.unsqueeze(2)
    return vae.encode(images)


@dataclass(frozen=True, eq=False)
class StructureGuidanceHook:
    """Structure Guidance of one node: ``source`` IMAGE ``[N, H, W, 3]``, ``mask`` MASK or None."""

    vae: object
    source: torch.Tensor
    mask: torch.Tensor | None
    settings: StructureSettings
    start: float

    def attach(self, model):
        """A clone of ``model`` with this guidance; several can be attached one after the other."""
        key = f"{_KEY}_{uuid.uuid4().hex}"
        patched = model.clone()
        # A VAE that cannot be loaded anew would keep ComfyUI from giving each of several GPUs a copy of the MODEL.
        if getattr(self.vae.patcher, "cached_patcher_init", True):
            patched.set_additional_models(key, [self.vae.patcher])
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, _Sampling(self, key))
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, _Prediction(self, key))
        return patched

    def begin(self, latent: torch.Tensor, sigmas: torch.Tensor) -> StructureGuidance | None:
        """Prepare a run on ``latent`` (any shape ComfyUI samples); what cannot work fails here, before the first step.

        None if there is nothing to guide: no step, or noise levels that rise (unsampling).
        """
        if len(sigmas) < 2 or sigmas[0] < sigmas[-1]:
            return None
        if latent.ndim not in (4, 5):
            raise ValueError(f"the latent has the shape {tuple(latent.shape)}: use an image or video latent.")
        source, mask = self._at_sampled_size(latent)
        clip = latent.ndim == 5 and latent.shape[2] > 1
        if not clip:
            match_batch(source, latent.shape[0], "source image")
        if mask is not None:
            mask = check_mask(mask, tuple(source.shape[1:3]), mask.shape[0] if clip else latent.shape[0])
        encoded = encode_images(self.vae, source, latent.ndim, 1 if clip else source.shape[0])
        if encoded.shape[1] != latent.shape[1]:
            raise ValueError(
                f"the VAE makes latents of {encoded.shape[1]} channels, the model samples {latent.shape[1]}: "
                "connect the VAE that belongs to this model."
            )
        reference = _decoded(self.vae, encoded).clamp(0, 1)
        if reference.shape[1] != 3:
            raise ValueError(f"the VAE makes pictures of {reference.shape[1]} channels: connect one for RGB pictures.")
        return StructureGuidance(reference, sigmas.tolist(), self.settings, self.start, mask)

    def _at_sampled_size(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Source, at the sampled picture's size, and mask, both cropped to whole latent cells as the VAE does it."""
        cell = self.vae.spacial_compression_encode()
        want = tuple(side * cell for side in latent.shape[-2:])
        source = self.vae.vae_encode_crop_pixels(self.source)
        have = tuple(source.shape[1:3])
        if not same_aspect(have, want):
            height, width = self.source.shape[1:3]
            raise ValueError(
                f"the source image is {width}x{height}, the picture being sampled is {want[1]}x{want[0]}: crop the "
                "source, or sample a latent made from it (VAE Encode)."
            )
        if min(want) < self.settings.window:
            raise ValueError(
                f"the picture being sampled is {want[1]}x{want[0]}, smaller than the window of {self.settings.window}: "
                "use a larger latent or a smaller radius."
            )
        mask = None if self.mask is None else self.mask.float().reshape(-1, *self.mask.shape[-2:])
        if mask is not None and mask.shape[-2:] == self.source.shape[1:3]:
            mask = self.vae.vae_encode_crop_pixels(mask[..., None].expand(-1, -1, -1, 3))[..., 0]
        return match_size(to_pipeline(source), want, "source image", "sampled picture").movedim(1, -1), mask


@dataclass(frozen=True, eq=False)
class _Sampling:
    """OUTER_SAMPLE wrapper: makes the run's guidance before sampling and forgets it after."""

    hook: StructureGuidanceHook
    key: str

    def __call__(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        options = executor.class_obj.model_options["transformer_options"]
        try:
            with named_errors("Structure Guidance"):
                options[self.key] = guidance = self.hook.begin(noise, sigmas)
            result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            if guidance is None:
                logging.warning("Structure Guidance did nothing: this run has no step, or its noise levels rise.")
            elif not guidance.refinements:
                # dpm_fast and dpm_adaptive choose their own noise levels and may end before the last step of few.
                logging.warning(
                    "Structure Guidance changed nothing: this sampler made no prediction after %.0f%% of the steps. "
                    "Lower start (now %g), use more steps or another sampler.",
                    100 * self.hook.start, self.hook.start,
                )  # fmt: skip
            return result
        finally:
            options.pop(self.key, None)


@dataclass(frozen=True, eq=False)
class _Prediction:
    """PREDICT_NOISE wrapper: refines the clean prediction of the late steps."""

    hook: StructureGuidanceHook
    key: str

    def __call__(self, executor, x, timestep, model_options=None, seed=None):
        x0 = executor(x, timestep, model_options, seed)
        guidance = model_options["transformer_options"].get(self.key)
        sigma = float(timestep.flatten()[0])
        if guidance is None or not guidance.wants(sigma):
            return x0
        guider, model = executor.class_obj, executor.class_obj.inner_model
        rows = 2 * getattr(guider, "branches", 1) * x.shape[0]  # Edit Guider has several latents in a call
        needed = model.memory_required([rows, *x.shape[1:]])
        # Using the VAE marks the models of this run as unused, so that they could be unloaded mid-sampling.
        in_use = comfy.model_management.loaded_models(only_currently_used=True)
        latents = _Latents(
            self.hook.vae, model, lambda: comfy.model_management.load_models_gpu(in_use, memory_required=needed)
        )
        with named_errors("Structure Guidance"):
            return guidance.refine(
                x0, sigma, latents.decode, lambda images: latents.encode(images, x0), interrupt_check
            )
