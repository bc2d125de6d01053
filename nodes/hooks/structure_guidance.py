"""Carries SPL into ComfyUI's sampler: prepared by an OUTER_SAMPLE wrapper, applied by a PREDICT_NOISE wrapper.

PREDICT_NOISE sees the final clean prediction of every guider, whatever its number of conditionings. All state belongs
to one sampling run and lives in that run's options, so the patched MODEL can be shared, re-queued and run again.
"""

import logging
import uuid
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP

from ...pipelines.images import check_mask, match_batch, same_aspect
from ...pipelines.spl.guidance import StructureGuidance
from ...pipelines.spl.settings import StructureSettings
from ..convert import compute_device, interrupt_check, to_pipeline

_KEY = "likeness_structure_guidance"


@contextmanager
def _named_errors():
    """Puts the node's name before errors that surface in the sampler's node."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Structure Guidance: {error}") from error


class _Latents:
    """Encodes and decodes the latents of one sampling run with the user's VAE, in the model's latent scale."""

    def __init__(self, vae, model):
        self.vae, self.model = vae, model

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        images = self.vae.decode(self.model.process_latent_out(latent))
        if images.ndim == 5:
            images = images.flatten(0, 1)
        return to_pipeline(images).float().to(compute_device(latent.device))

    def encode(self, images: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        latent = encode_images(self.vae, images.movedim(1, -1), like.ndim, like.shape[0])
        return self.model.process_latent_in(latent.to(like))


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
        patched.set_additional_models(key, [self.vae.patcher])
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, _Sampling(self, key))
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, _Prediction(self, key))
        return patched

    def begin(self, latent: torch.Tensor, sigmas: torch.Tensor) -> StructureGuidance:
        """Prepare a run on ``latent`` (any shape ComfyUI samples); everything that cannot work fails here, early."""
        if latent.ndim not in (4, 5):
            raise ValueError(f"the latent has the shape {tuple(latent.shape)}: use an image or video latent.")
        frames = 1 if latent.ndim == 4 else latent.shape[2]
        encoded = encode_images(self.vae, self.source, latent.ndim, self.source.shape[0] if frames == 1 else 1)
        self._check_latent(encoded, latent)
        reference = self.vae.decode(encoded)
        if reference.ndim == 5:
            reference = reference.flatten(0, 1)
        reference = to_pipeline(reference).float().clamp(0, 1)
        if frames == 1:
            reference = match_batch(reference, latent.shape[0], "source image")
        return StructureGuidance(reference, sigmas.tolist(), self.settings, self.start, self._cropped_mask(reference))

    def _check_latent(self, encoded: torch.Tensor, latent: torch.Tensor) -> None:
        if encoded.shape[1] != latent.shape[1]:
            raise ValueError(
                f"the VAE makes latents of {encoded.shape[1]} channels, the model samples {latent.shape[1]}: "
                "connect the VAE that belongs to this model."
            )
        have, want = tuple(encoded.shape[-2:]), tuple(latent.shape[-2:])
        if have != want and not same_aspect(have, want):
            height, width = self.source.shape[1:3]
            pixels = f"{width * want[1] // have[1]}x{height * want[0] // have[0]}"
            raise ValueError(
                f"the source image is {width}x{height}, the picture being sampled is {pixels}: crop the source, or "
                "sample a latent made from it (VAE Encode)."
            )

    def _cropped_mask(self, reference: torch.Tensor) -> torch.Tensor | None:
        """The mask, cropped as the VAE crops the source when its sides are no multiples of the latent's cells."""
        if self.mask is None:
            return None
        mask = self.mask.float()
        if mask.shape[-2:] == self.source.shape[1:3]:
            mask = self.vae.vae_encode_crop_pixels(mask[..., None].expand(-1, -1, -1, 3))[..., 0]
        return check_mask(mask, tuple(reference.shape[-2:]), reference.shape[0])


@dataclass(frozen=True, eq=False)
class _Sampling:
    """OUTER_SAMPLE wrapper: makes the run's guidance before sampling and forgets it after."""

    hook: StructureGuidanceHook
    key: str

    def __call__(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        options = executor.class_obj.model_options["transformer_options"]
        try:
            with _named_errors():
                options[self.key] = guidance = self.hook.begin(noise, sigmas)
            result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            if not guidance.refinements:
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
        guidance = model_options["transformer_options"][self.key]
        sigma = float(timestep.flatten()[0])
        if not guidance.wants(sigma):
            return x0
        latents = _Latents(self.hook.vae, executor.class_obj.inner_model)
        # Using the VAE marks the models of this run as unused, so that they could be unloaded mid-sampling.
        in_use = comfy.model_management.loaded_models(only_currently_used=True)
        with _named_errors():
            refined = guidance.refine(
                x0, sigma, latents.decode, lambda images: latents.encode(images, x0), interrupt_check
            )
        comfy.model_management.load_models_gpu(in_use)
        return refined
