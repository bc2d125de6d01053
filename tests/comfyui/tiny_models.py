"""Models from ComfyUI's own classes with seeded random weights, mostly tiny, and a VAE that loses detail only."""

import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch

CPU = torch.device("cpu")
CONTEXT = 64


def fill(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter a seeded value: what ComfyUI's operations build is uninitialised memory."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = 1 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.05
        offset = 1.0 if parameter.ndim == 1 else 0.0
        parameter.data = offset * 0.5 + scale * torch.randn(parameter.shape, generator=generator)
        parameter.requires_grad_(False)
    return model


UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1, "use_linear_in_transformer": False, "context_dim": CONTEXT, "num_heads": 4,
    "num_head_channels": -1, "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False,
}  # fmt: skip


class TinySD15(comfy.supported_models.SD15):
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


def tiny_unet(seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """An SD1.5-type UNet (epsilon prediction, 4 latent channels) as a MODEL."""
    config = TinySD15(UNET)
    config.set_inference_dtype(torch.float32, None)
    return _patcher(config.get_model({}, device=CPU), seed)


FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": CONTEXT,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


def tiny_flux(seed: int = 0, double_blocks: int = 1) -> comfy.model_patcher.ModelPatcher:
    """A flow-matching transformer of the Flux family (16 latent channels) as a MODEL."""
    config = comfy.supported_models.Flux({**FLUX, "depth": double_blocks})
    config.set_inference_dtype(torch.float32, None)
    return _patcher(config.get_model({}, device=CPU), seed)


def _patcher(model, seed):
    fill(model.diffusion_model, seed)
    # Random layers amplify; predictions of about unit size are what samplers expect.
    last = list(model.diffusion_model.parameters())[-2:]
    for parameter in last:
        parameter.data *= 0.1
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=CPU, offload_device=CPU)


class BlockTransform(torch.nn.Module):
    """Latents are the lowest frequencies of 8x8 pixel blocks: decoding is exact, encoding a low-pass.

    An orthonormal basis: the three colour means and then luminance frequencies, as many as there are channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        position = (torch.arange(8) + 0.5) * torch.pi / 8
        waves = torch.stack([torch.cos(k * position) * (1 if k else 0.5**0.5) / 2 for k in range(8)])
        order = sorted(((i, j) for i in range(8) for j in range(8)), key=lambda ij: (sum(ij), ij))
        planes = [torch.outer(waves[i], waves[j]) for i, j in order]
        colors = torch.linalg.qr(torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]]).T).Q.T
        basis = [color[:, None, None] * planes[0] for color in colors]
        basis += [colors[0][:, None, None] * plane for plane in planes[1:]]
        # Divided by 8 so that latents have about unit range, as trained ones do.
        self.basis = torch.nn.Parameter(torch.stack(basis[:channels]), requires_grad=False)

    def encode(self, pixels):
        return torch.nn.functional.conv2d(pixels, self.basis, stride=8) / 8

    def decode(self, latent):
        return torch.nn.functional.conv_transpose2d(latent * 8, self.basis, stride=8)


def block_vae(channels: int = 4) -> comfy.sd.VAE:
    """ComfyUI's own VAE object around ``BlockTransform``."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.first_stage_model = BlockTransform(channels)
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = channels, 8, 8
    vae.vae_dtype = torch.float32
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, load_device=CPU, offload_device=CPU)
    return vae


class FrameTransform(BlockTransform):
    """The same for clips ``[B, C, T, H, W]``, frame by frame."""

    def encode(self, pixels):
        return self._each_frame(super().encode, pixels)

    def decode(self, latent):
        return self._each_frame(super().decode, latent)

    @staticmethod
    def _each_frame(function, clip):
        return torch.stack([function(clip[:, :, index]) for index in range(clip.shape[2])], dim=2)


def video_vae(channels: int = 4) -> comfy.sd.VAE:
    """A VAE of the video kind: latents have five axes and a batch of images is read as one clip."""
    vae = block_vae(channels)
    vae.first_stage_model = FrameTransform(channels)
    vae.latent_dim = 3
    vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, load_device=CPU, offload_device=CPU)
    return vae


def conditioning(seed: int, pooled: int = 0):
    generator = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn(1, pooled, generator=generator), "guidance": 3.5} if pooled else {}
    return [[torch.randn(1, 77, CONTEXT, generator=generator), extra]]


def tiny_velocity_unet(seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """An SD2.x-type UNet (velocity prediction, linear projections) as a MODEL."""
    config = TinySD15({**UNET, "use_linear_in_transformer": True})
    config.set_inference_dtype(torch.float32, None)
    velocity = comfy.model_base.ModelType.V_PREDICTION
    return _patcher(comfy.model_base.BaseModel(config, model_type=velocity, device=CPU), seed)


def tiny_sdxl(seed: int = 0) -> comfy.model_patcher.ModelPatcher:
    """An SDXL-type UNet (several transformer blocks a layer, pooled prompt and size embedded) as a MODEL."""
    config = comfy.supported_models.SDXL({
        **UNET, "use_linear_in_transformer": True, "transformer_depth": [0, 2], "transformer_depth_middle": 2,
        "transformer_depth_output": [0, 0, 2, 2], "adm_in_channels": 2816, "num_classes": "sequential",
    })  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    return _patcher(config.get_model({}, device=CPU), seed)


class StandInClip:
    """ComfyUI's real tokenizers before a table of seeded vectors in place of a text encoder."""

    def __init__(self, width: int, family: str = "sd1", pooled: int = 0):
        import comfy.sd1_clip
        import comfy.sdxl_clip
        import comfy.text_encoders.flux
        import comfy.text_encoders.sd2_clip

        tokenizers = {
            "sd1": comfy.sd1_clip.SD1Tokenizer, "sd2": comfy.text_encoders.sd2_clip.SD2Tokenizer,
            "sdxl": comfy.sdxl_clip.SDXLTokenizer, "flux": comfy.text_encoders.flux.FluxTokenizer,
        }  # fmt: skip
        self.tokenizer = tokenizers[family]()
        self.width, self.pooled = width, 1280 if family == "sdxl" else pooled

    def tokenize(self, text, **options):
        return self.tokenizer.tokenize_with_weights(text, **options)

    def encode_from_tokens_scheduled(self, tokens):
        attended = tokens.get("t5xxl") or next(iter(tokens.values()))
        flat = torch.tensor([token for chunk in attended for token, *_ in chunk])
        # Neighbours mix, so that the same token differs from place to place as behind a real encoder.
        vectors = _noise(flat, self.width) + 0.5 * _noise(flat.roll(1) + 17 * torch.arange(len(flat)), self.width)
        extra = {"pooled_output": _noise(flat[:2].sum()[None], self.pooled)} if self.pooled else {}
        return [[vectors[None], extra]]

    def embedded(self, text: str) -> torch.Tensor:
        return self.encode_from_tokens_scheduled(self.tokenize(text))[0][0]


def _noise(tokens: torch.Tensor, width: int) -> torch.Tensor:
    """A seeded vector for every number."""
    return torch.stack([torch.randn(width, generator=torch.Generator().manual_seed(int(token))) for token in tokens])


# Stable Diffusion's, full size.
FULL_VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
       "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip


def random_weights(module: torch.nn.Module, prefix: str, generator) -> dict:
    """fp16 weights of a module's shapes: unit gain for matrices, ones for norms' scales, zeros for biases."""
    weights = {}
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        if value.ndim > 1:
            weight = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        else:
            weight = torch.ones(value.shape) if name.endswith("weight") else torch.zeros(value.shape)
        weights[prefix + name] = weight.half().contiguous()
    return weights
