"""Image-to-image with structure guidance on diffusers, for use without ComfyUI."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, EulerDiscreteScheduler, UNet2DConditionModel

from ..euler import clean_from_output, euler_schedule, euler_steps, guided, noise_like, scaled
from ..images import check_image, check_mask
from ..vae_pictures import VaePictures
from ..weights.prompts import padded_tokens
from .guidance import StructureGuidance
from .optimise import preserve_structure
from .settings import StructureSettings


class StructureGuidedImg2ImgPipeline(VaePictures, DiffusionPipeline):
    """SD1.x / SD2.x image-to-image that keeps the structure of its input (epsilon or v prediction, Euler steps).

    The same two uses of the image-space optimiser as the ComfyUI nodes: the late steps of sampling are pulled towards
    the VAE round trip of the source, the finished picture towards the source itself.
    """

    def __init__(self, vae: AutoencoderKL, text_encoder, tokenizer, unet: UNet2DConditionModel,
                 scheduler: EulerDiscreteScheduler):  # fmt: skip
        super().__init__()
        if not isinstance(scheduler, EulerDiscreteScheduler):
            raise TypeError(
                f"the scheduler is a {type(scheduler).__name__}: "
                "use EulerDiscreteScheduler.from_config(scheduler.config)."
            )
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        image: torch.Tensor,
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] = "",
        steps: int = 15,
        strength: float = 0.6,
        guidance_scale: float = 2.0,
        settings: StructureSettings | None = None,
        start: float = 0.8,
        mask: torch.Tensor | None = None,
        refine: bool = True,
        generator: torch.Generator | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Edit ``image`` ``[B, 3, H, W]`` in 0..1 towards ``prompt``.

        ``settings`` None samples without guidance. ``strength`` in 0..1 is the fraction of the schedule that is run;
        ``start`` the fraction of those steps after which the guidance begins. ``generator`` is one of the CPU, so that
        a seed means the same noise everywhere. ``on_step(done, total)`` may raise.
        Returns ``[B, 3, h, w]`` in 0..1, where h and w are H and W rounded down to multiples of ``vae_cell``: image and
        mask are cropped around their centre, as ComfyUI's VAE Encode does it.
        """
        window = settings.window if settings else 1
        source = check_image(self._cropped(check_image(image, "image", self.vae_cell)), "cropped image", window)
        source = source.to(self.unet.device)
        if mask is not None:
            mask = self._cropped(check_mask(mask, tuple(image.shape[-2:]), image.shape[0]))
        sigmas, timesteps = euler_schedule(self.scheduler, steps, strength, self.unet.device)
        guidance = None
        clean = self.encode(source)
        if settings is not None:
            guidance = StructureGuidance(self.decode(clean), sigmas.tolist(), settings, start, mask)
        noise = noise_like(clean, generator)
        latent = self.sample(
            clean + noise * sigmas[0], sigmas, timesteps, self._embed(negative_prompt, prompt, len(source)),
            guidance_scale, guidance, on_step,
        )  # fmt: skip
        result = self.decode(latent)
        return preserve_structure(result, source, mask, settings) if settings is not None and refine else result

    def sample(self, x, sigmas, timesteps, embeddings, guidance_scale, guidance=None, on_step=None) -> torch.Tensor:
        """Euler steps from noise level sigmas[0].

        ``x``: noisy latent ``[B, 4, h, w]`` float32, signal plus sigma times noise; ``sigmas``: ``[T+1]`` falling;
        ``timesteps``: ``[T]``; ``embeddings``: (negative, positive), each ``[B, tokens, width]``.
        """

        def predict_clean(x, sigma, step):
            x0 = self._predict_clean(x, sigma, timesteps[step], embeddings, guidance_scale)
            return x0 if guidance is None else guidance.refine(x0, float(sigma), self.decode, self.encode)

        return euler_steps(predict_clean, x, sigmas, on_step)

    def _predict_clean(self, x, sigma, timestep, embeddings, guidance_scale) -> torch.Tensor:
        negative, positive = embeddings
        given = scaled(x, sigma).to(self.unet.dtype)
        if guidance_scale == 1:
            output = self.unet(given, timestep, encoder_hidden_states=positive).sample.float()
        else:
            both = self.unet(torch.cat([given] * 2), timestep, encoder_hidden_states=torch.cat([negative, positive]))
            output = guided(*both.sample.float().chunk(2), guidance_scale)
        return clean_from_output(x, sigma, output, self.scheduler.config.prediction_type)

    def _embed(self, negative: str | list[str], prompt: str | list[str], batch: int):
        def embed(texts):
            texts = [texts] * batch if isinstance(texts, str) else list(texts)
            if len(texts) != batch:
                raise ValueError(f"{len(texts)} prompts for {batch} images: give one prompt, or one for each image.")
            tokens = padded_tokens(self.tokenizer, texts, self.tokenizer.model_max_length)
            return self.text_encoder(tokens.to(self.unet.device))[0]

        return embed(negative), embed(prompt)
