"""Pictures and latents of a diffusers pipeline that has a ``vae``."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class VaePictures:
    """Encoding, decoding and cropping, for pipelines with a diffusers ``AutoencoderKL`` named ``vae``."""

    @property
    def vae_cell(self) -> int:
        """Pixels a side that one latent cell stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Images ``[B, 3, H, W]`` in 0..1 to scaled latents, the mode of the posterior as ComfyUI takes it."""
        with self._vae_that_holds() as vae:
            posterior = vae.encode((image * 2 - 1).to(vae.dtype)).latent_dist
            return posterior.mode().float() * vae.config.scaling_factor

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Scaled latents to images ``[B, 3, H, W]`` in 0..1."""
        with self._vae_that_holds() as vae:
            image = vae.decode((latent / vae.config.scaling_factor).to(vae.dtype)).sample
            return ((image.float() + 1) / 2).clamp(0, 1)

    @contextmanager
    def _vae_that_holds(self) -> Iterator:
        """The VAE; SDXL's, which overflows in float16, in float32 while it is used, as in diffusers' own pipelines."""
        is_xl, vae = getattr(self, "text_encoder_2", None) is not None, self.vae
        if not is_xl or vae.dtype != torch.float16 or not vae.config.force_upcast:
            yield vae
            return
        vae.to(torch.float32)
        try:
            yield vae
        finally:
            vae.to(torch.float16)

    def _cropped(self, image: torch.Tensor) -> torch.Tensor:
        """The central part of ``[B, C, H, W]`` whose sides are multiples of the latent's cells."""
        height, width = (side - side % self.vae_cell for side in image.shape[-2:])
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        return image[..., top : top + height, left : left + width]
