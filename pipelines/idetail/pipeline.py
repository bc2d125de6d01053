"""Relighting on diffusers, for use without ComfyUI."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from ..euler import clean_from_output, euler_schedule, euler_steps, guided, noise_like, scaled
from ..images import check_image, check_mask
from ..vae_pictures import VaePictures
from ..weights.prompts import encode_prompts
from ..weights.word_vectors import encode_with_word, read_word
from .adapter import apply_adapter
from .conditioning import ORDERS, latent_mask, relight_input
from .prompts import PLACEHOLDER


class RelightPipeline(VaePictures, DiffusionPipeline):
    """Relights a portrait from a prompt (IDetail, section 4; notes 5): SD1.x, SD2.x, SDXL or KOALA with nine channels.

    ``unet`` has the widened first convolution already (``from_base``, or ``adapter.apply_adapter``); ``order`` is the
    order of its channels.
    """

    _optional_components = ["text_encoder_2", "tokenizer_2"]
    placeholder: list[Tensor] | None = None
    """Vectors that prompts' ``<c>`` is read as, for each text encoder; None: plain text."""

    def __init__(self, vae: AutoencoderKL, text_encoder, tokenizer, unet: UNet2DConditionModel,
                 scheduler: EulerDiscreteScheduler, text_encoder_2=None, tokenizer_2=None,
                 order: str = ORDERS[0]):  # fmt: skip
        super().__init__()
        if not isinstance(scheduler, EulerDiscreteScheduler):
            raise TypeError(
                f"the scheduler is a {type(scheduler).__name__}: "
                "use EulerDiscreteScheduler.from_config(scheduler.config)."
            )
        channels = 2 * vae.config.latent_channels + 1
        if unet.config.in_channels != channels:
            raise ValueError(
                f"the UNet has {unet.config.in_channels} input channels, relighting needs {channels}: apply a file of "
                "idetail-lora or idetail-conv-in to it first."
            )
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2,
        )  # fmt: skip
        self.register_to_config(order=order)

    @classmethod
    def from_base(
        cls, base, adapter: Path, strength: float = 1.0, placeholder: Path | None = None
    ) -> "RelightPipeline":
        """From a ``weights.BaseModel``, whose UNet is changed by an exported file. Raises ``ValueError``.

        placeholder: the file of a learnt placeholder that was exported with it.
        """
        order = apply_adapter(base.unet, adapter, strength)
        parts = dict(zip(("text_encoder", "text_encoder_2"), base.text_encoders, strict=False))
        parts |= dict(zip(("tokenizer", "tokenizer_2"), base.tokenizers, strict=False))
        scheduler = EulerDiscreteScheduler.from_config(base.scheduler.config)
        made = cls(vae=base.vae, unet=base.unet, scheduler=scheduler, order=order, **parts)
        made.placeholder = None if placeholder is None else read_word(placeholder, base.family)
        return made

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        prompt: str | list[str],
        mask: Tensor,
        negative_prompt: str | list[str] = "",
        steps: int = 25,
        guidance_scale: float = 5.0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Relight ``image`` ``[B, 3, H, W]`` in 0..1.

        ``mask``: the foreground, ``[B, H, W]`` or ``[B, 1, H, W]`` in 0..1, of all persons who are to stay; one prompt
        for all pictures, or one each. ``noise`` ``[B, C, h, w]`` stands for what ``generator`` would draw.
        ``on_step(done, total)`` may raise. Returns ``[B, 3, h, w]`` in 0..1, h and w rounded down to whole latent cells
        (cropped around the centre). Raises ``ValueError`` for what does not fit.
        """
        picture = check_image(self._cropped(check_image(image, "image", self.vae_cell)), "cropped image")
        foreground = self._cropped(check_mask(mask, tuple(image.shape[-2:]), image.shape[0]))
        if not foreground.any():
            raise ValueError("the mask is black, so nobody would be kept: make it white where the people are.")
        source = self.encode(picture.to(self.unet.device))
        condition = latent_mask(foreground, source.shape[-2:]).to(source), source
        sigmas, timesteps = euler_schedule(self.scheduler, steps, 1.0, self.unet.device)
        if noise is not None and noise.shape != source.shape:
            raise ValueError(f"noise is {tuple(noise.shape)}, the latents are {tuple(source.shape)}: give that shape.")
        noise = noise_like(source, generator) if noise is None else noise.to(source)
        embedded = self.embed(negative_prompt, prompt, len(source))
        # A model that was trained with noise only up to some level starts there with signal and noise in proportion.
        start = noise * (sigmas[0] ** 2 + 1).sqrt()
        return self.decode(self.sample(start, sigmas, timesteps, embedded, condition, guidance_scale, on_step))

    def sample(
        self, x: Tensor, sigmas: Tensor, timesteps, embedded: tuple[dict, dict], condition: tuple[Tensor, Tensor],
        guidance_scale: float, on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """The clean latents, by Euler's method from ``x`` at noise level sigmas[0].

        ``embedded``: what ``embed`` returns; ``condition``: (mask ``[B, 1, h, w]``, scaled source latent).
        """
        negative, positive = embedded
        rows = positive if guidance_scale == 1 else {name: torch.cat([negative[name], positive[name]])
                                                     for name in positive}  # fmt: skip

        def predict_clean(x, sigma, step):
            given = relight_input(scaled(x, sigma), *condition, order=self.config.order)
            output = self._predict(given, timesteps[step], rows)
            if guidance_scale != 1:
                output = guided(*output.chunk(2), guidance_scale)
            return clean_from_output(x, sigma, output, self.scheduler.config.prediction_type)

        return euler_steps(predict_clean, x, sigmas, on_step)

    def _predict(self, given: Tensor, timestep, rows: dict[str, Tensor]) -> Tensor:
        dtype, count = self.unet.dtype, len(rows["prompt"]) // len(given)
        added = None
        if "pooled" in rows:
            height, width = (side * self.vae_cell for side in given.shape[-2:])
            sizes = torch.tensor([height, width, 0, 0, height, width], device=given.device, dtype=dtype)
            added = {"text_embeds": rows["pooled"], "time_ids": sizes.expand(len(rows["prompt"]), 6)}
        given = given.repeat(count, 1, 1, 1).to(dtype)
        return self.unet(given, timestep, encoder_hidden_states=rows["prompt"], added_cond_kwargs=added).sample.float()

    def embed(self, negative: str | list[str], prompt: str | list[str], batch: int) -> tuple[dict, dict]:
        """(negative, positive): ``{"prompt": [B, 77, W]}``, for SDXL also ``"pooled"``."""
        encoders = [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None]
        tokenizers = [tokenizer for tokenizer in (self.tokenizer, self.tokenizer_2) if tokenizer is not None]
        word = self.placeholder

        def of(texts):
            texts = [texts] * batch if isinstance(texts, str) else list(texts)
            if len(texts) != batch:
                raise ValueError(f"{len(texts)} prompts for {batch} images: give one prompt, or one for each image.")
            if word is None:
                found = encode_prompts(encoders, tokenizers, texts)
            else:
                found = encode_with_word(PLACEHOLDER, word, encoders, tokenizers, texts)
            return {name: tensor.to(self.unet.device, self.unet.dtype) for name, tensor in found.items()}

        return of(negative), of(prompt)
