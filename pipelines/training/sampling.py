"""Validation pictures of a text-to-image UNet, by diffusers' own pipelines from embeddings made beforehand."""

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn


@torch.no_grad()
def sample_picture(
    base, unet: nn.Module, positive: dict[str, Tensor], negative: dict[str, Tensor], size: tuple[int, int],
    steps: int, guidance_scale: float, seed: int, check_stop: Callable[..., None],
) -> Tensor:  # fmt: skip
    """One picture ``[3, H, W]`` in 0..1 with DDIM; ``check_stop`` is called in each step and may raise.

    base: the ``BaseModel`` (its VAE decodes, in float32); positive, negative: ``prompt`` ``[1, 77, W]`` and, for SDXL,
    ``pooled``; size: ``(H, W)``, multiples of the VAE's cell.
    """
    pipeline = stock_pipeline(base, unet)
    device = next(unet.parameters()).device
    embeddings = {"prompt_embeds": positive["prompt"], "negative_prompt_embeds": negative["prompt"]}
    if "pooled" in positive:
        embeddings |= {"pooled_prompt_embeds": positive["pooled"], "negative_pooled_prompt_embeds": negative["pooled"]}

    def on_step_end(pipeline, step, timestep, state):
        check_stop()
        return state

    latent = pipeline(
        **{name: tensor.to(device, unet.dtype) for name, tensor in embeddings.items()},
        height=size[0], width=size[1], num_inference_steps=steps, guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed), output_type="latent", callback_on_step_end=on_step_end,
    ).images  # fmt: skip
    return decode(base.vae, latent)[0]


def stock_pipeline(base, unet: nn.Module):
    """diffusers' own pipeline of this family with DDIM, for embeddings made beforehand."""
    config = dict(base.scheduler.config)
    if config.get("rescale_betas_zero_snr"):  # such a model must be started from pure noise
        config["timestep_spacing"] = "trailing"
    parts = {"vae": base.vae, "text_encoder": None, "tokenizer": None, "unet": unet,
             "scheduler": DDIMScheduler.from_config(config)}  # fmt: skip
    if base.family == "sdxl":
        pipeline = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def decode(vae: nn.Module, latent: Tensor) -> Tensor:
    """Scaled latents to images ``[B, 3, H, W]`` in 0..1, on the latents' device; the VAE is back on the CPU after."""
    vae.to(latent.device)
    try:
        image = vae.decode(latent.to(vae.dtype) / vae.config.scaling_factor).sample
    finally:
        vae.to("cpu")
    return ((image.float() + 1) / 2).clamp(0, 1)
