"""Which architecture it is, and the configuration that its tensors' shapes spell out.

Blocks and depths tell the architectures apart, widths are read off; so a small model of the same build is read too.
A configuration here is that of the diffusers or transformers class. What no shape tells (head counts, activations,
noise levels) is a fact of the family.
"""

Shapes = dict[str, tuple[int | None, ...]]  # None: any length, where shapes are wanted

# SDXL appends six embedded numbers (sizes and crops), 256 wide each, to the pooled prompt.
TIME_IDS, TIME_ID_WIDTH = 6, 256
HEAD_WIDTH = 64
NATIVE_LATENT = {"sd1": 64, "sd2": 64, "sdxl": 128}
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip
# Transformer blocks in the inner two levels of the distilled SDXL models.
KOALA = {(2, 5): "koala-700m-v1", (2, 6): "koala-1b-v1"}


def family_of(unet_config: dict) -> str:
    """``"sd1"``, ``"sd2"`` or ``"sdxl"`` of a diffusers UNet configuration."""
    if unet_config.get("addition_embed_type") == "text_time":
        return "sdxl"
    return "sd2" if unet_config.get("use_linear_projection") else "sd1"


def architecture_of(unet_config: dict, prediction_type: str) -> str:
    """The modelspec name of the architecture of a diffusers UNet configuration."""
    family = family_of(unet_config)
    if family == "sd1":
        return "stable-diffusion-v1"
    if family == "sd2":
        return "stable-diffusion-v2-768-v" if prediction_type == "v_prediction" else "stable-diffusion-v2-512"
    depths = unet_config["transformer_layers_per_block"]
    inner = tuple(depths[1:]) if isinstance(depths, (list, tuple)) else None
    if unet_config["layers_per_block"] == 1 and inner in KOALA:
        return KOALA[inner]
    return "stable-diffusion-xl-v1-base"


def count(shapes: Shapes, name: str) -> int:
    """How many of ``name.format(0)``, ``name.format(1)``, ... begin a key."""
    number = 0
    while any(key.startswith(name.format(number)) for key in shapes):
        number += 1
    return number


def unet_config(shapes: Shapes) -> dict:
    """Configuration of the ``UNet2DConditionModel`` whose LDM keys (without prefix) and shapes are given."""
    downsamplers = [n for n in range(count(shapes, "input_blocks.{}.")) if f"input_blocks.{n}.0.op.weight" in shapes]
    layers = downsamplers[0] - 1
    firsts = [1 + level * (layers + 1) for level in range(len(downsamplers) + 1)]
    widths = [shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in firsts]
    depths = [count(shapes, f"input_blocks.{n}.1.transformer_blocks.{{}}.") for n in firsts]
    attention = f"input_blocks.{firsts[[bool(depth) for depth in depths].index(True)]}.1."
    linear = len(shapes[attention + "proj_in.weight"]) == 2
    config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if count(shapes, "middle_block.{}.") else None,
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        # Levels without attention have no depth; the middle block takes the last level's.
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        "cross_attention_dim": shapes[attention + "transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": linear,
        # diffusers means the number of heads by this name.
        "attention_head_dim": [max(width // HEAD_WIDTH, 1) for width in widths] if linear else 8,
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_ID_WIDTH,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    family = family_of(config)
    return config | {"sample_size": NATIVE_LATENT[family], "upcast_attention": family == "sd2"}


def vae_config(shapes: Shapes, family: str) -> dict:
    """Configuration of the ``AutoencoderKL`` whose LDM keys (without prefix) and shapes are given."""
    levels = count(shapes, "encoder.down.{}.")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "layers_per_block": count(shapes, "encoder.down.0.block.{}."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "sample_size": NATIVE_LATENT[family] * 8,
        "scaling_factor": 0.13025 if family == "sdxl" else 0.18215,
        "force_upcast": True,
    }


def clip_config(shapes: Shapes, activation: str) -> dict:
    """Configuration of the CLIP text model whose transformers keys (without ``text_model.``) and shapes are given."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(shapes, "encoder.layers.{}."),
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "projection_dim": shapes.get("text_projection.weight", (width,))[0],
        "hidden_act": activation,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 1,
    }
