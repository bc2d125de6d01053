"""Pictures and latents of a diffusers pipeline that has a ``vae``."""

import torch


class VaePictures:
    """Encoding, decoding and cropping, for pipelines with a diffusers ``AutoencoderKL`` named ``vae``."""

    @property
    def vae_cell(self) -> int:
        """Pixels a side that one latent cell stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Images ``[B, 3, H, W]`` in 0..1 to scaled latents, the mode of the posterior as ComfyUI takes it."""
        posterior = self.vae.encode((image * 2 - 1).to(self.vae.dtype)).latent_dist
        return posterior.mode().float() * self.vae.config.scaling_factor

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Scaled latents to images ``[B, 3, H, W]`` in 0..1."""
        image = self.vae.decode((latent / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return ((image.float() + 1) / 2).clamp(0, 1)

    def _cropped(self, image: torch.Tensor) -> torch.Tensor:
        """The central part of ``[B, C, H, W]`` whose sides are multiples of the latent's cells."""
        height, width = (side - side % self.vae_cell for side in image.shape[-2:])
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        return image[..., top : top + height, left : left + width]
