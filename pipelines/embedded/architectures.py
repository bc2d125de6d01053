"""What the embedded models look like: stock classes of diffusers and transformers in small.

Widths are whole multiples of the first one, because the layouts that ComfyUI builds know nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    ConvNextModel,
)

from ..randomness import seed_of

TEXT_WIDTH = 128
# Stable Diffusion's 32 groups would be of a channel or two here, and so lose the mean colour of a picture.
GROUPS = 8
TOKENS = 77
CLIP_IMAGE_SIZE = 128
FACE_SIZE = 64

# Narrow where pictures are large: half the time of a step, and most of the weights where the picture is summed up.
AUTOENCODER = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [16, 32, 64, 128],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1, "norm_num_groups": GROUPS, "sample_size": 128, "scaling_factor": 1.0,
}  # fmt: skip
# The lowest level sees 2x2 cells of a portrait: little to know there for so many weights.
UNET = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [64, 128, 128, 64],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 1, "cross_attention_dim": TEXT_WIDTH, "attention_head_dim": 8,
    "norm_num_groups": GROUPS,
    "sample_size": 16,
}  # fmt: skip
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip
_TRANSFORMER = {
    "hidden_size": TEXT_WIDTH, "intermediate_size": 4 * TEXT_WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4,
    "projection_dim": TEXT_WIDTH, "hidden_act": "quick_gelu",
}  # fmt: skip
# Layer scales start near zero to tame networks of dozens of blocks; these have five.
CONVNEXT = {
    "hidden_sizes": [32, 64, 96, 160], "depths": [1, 1, 2, 1], "patch_size": 2, "num_channels": 3,
    "image_size": FACE_SIZE, "layer_scale_init_value": 0.0,
}  # fmt: skip
# Telling people apart takes more samples than pixels: patches of 4x4 make a step three times as fast.
FACE_CONVNEXT = CONVNEXT | {"depths": [2, 2, 2, 1], "patch_size": 4}


def autoencoder() -> AutoencoderKL:
    """4 latent channels, an eighth of each side."""
    return AutoencoderKL(**AUTOENCODER)


def unet() -> UNet2DConditionModel:
    """The blocks of SD1.5, each with one layer."""
    return UNet2DConditionModel(**UNET)


def text_encoder(vocabulary_size: int) -> CLIPTextModelWithProjection:
    """CLIP's text tower; the last two entries of the vocabulary are the start and the end token."""
    special = {"bos_token_id": vocabulary_size - 2, "eos_token_id": vocabulary_size - 1,
               "pad_token_id": vocabulary_size - 1}  # fmt: skip
    config = CLIPTextConfig(
        vocab_size=vocabulary_size, max_position_embeddings=TOKENS, **_TRANSFORMER, **special
    )  # fmt: skip
    return CLIPTextModelWithProjection(config)


def image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP's image tower on 8x8 patches of 16x16 pixels."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=CLIP_IMAGE_SIZE, patch_size=16, **_TRANSFORMER))


def convnext() -> ConvNextModel:
    """Pictures of 64x64 pixels or so, [B, 3, H, W] in -1..1, to ``pooler_output`` [B, 160]; no batch statistics."""
    return ConvNextModel(ConvNextConfig(**CONVNEXT))


def face_convnext() -> ConvNextModel:
    """The face embedder: ``convnext`` for aligned faces, with coarser patches and more blocks."""
    return ConvNextModel(ConvNextConfig(**FACE_CONVNEXT))


def build(make: Callable[..., nn.Module], *arguments, seed: int) -> nn.Module:
    """``make(*arguments)`` with random weights that are a function of the seed."""
    with seeded(seed, make.__name__):
        return make(*arguments)


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Block in which the global CPU generator, which weights are drawn from, starts from these keys."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*keys))
        yield
