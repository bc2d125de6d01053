"""Nodes that load models: the embedded portrait model as ComfyUI's own objects."""

import json
from pathlib import Path

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..pipelines.embedded import SHIPPED

# How many rows ComfyUI's CLIP has for tokens, whatever the vocabulary.
COMFYUI_VOCABULARY = 49408


class LoadEmbeddedPortraitModel(io.ComfyNode):
    """MODEL, CLIP, VAE and CLIP_VISION of the small models that come with the pack."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessLoadEmbeddedPortraitModel",
            display_name="Load Embedded Portrait Model",
            category="Likeness/models",
            description="The small text-to-image model that comes with this pack. It draws people of a made-up world, "
            "128x128 pixels, in seconds and without a GPU: for trying graphs out, for tests and for learning. It "
            "works with every node that a Stable Diffusion 1.5 checkpoint works with.",
            search_aliases=["checkpoint", "embedded", "portrait world", "tiny model"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The diffusion model; it knows portraits of 128x128 pixels."),
                io.Clip.Output(tooltip="The text encoder. It knows the words that the help page lists."),
                io.Vae.Output(tooltip="The autoencoder: 4 channels, an eighth of each side, as Stable Diffusion's."),
                io.ClipVision.Output(tooltip="The image encoder that was trained with the text encoder."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_embedded(SHIPPED))


def load_embedded(folder: Path) -> tuple:
    """(MODEL, CLIP, VAE, CLIP_VISION) from a folder that ``embedded.family.assemble`` made."""
    model, clip, vae = model_from(folder), clip_from(folder), vae_from(folder)
    # ComfyUI loads them anew with these where it cannot use what it has: without dynamic VRAM for torch.compile and
    # hooks, and on every other GPU.
    factories = ((model, model_from), (clip.patcher, clip_patcher_from), (vae.patcher, vae_patcher_from))
    for patcher, factory in factories:
        patcher.cached_patcher_init = (factory, (folder,))
    vision = load_clip_vision(_weights(folder, "image_encoder"), _config(folder, "image_encoder"))
    return model, clip, vae, vision


def model_from(folder: Path, disable_dynamic: bool = False):
    """The MODEL in ``folder``; disable_dynamic: without ComfyUI's dynamic VRAM."""
    config, scale = _config(folder, "unet"), _config(folder, "vae")["scaling_factor"]
    return load_unet(_weights(folder, "unet"), config, scale, disable_dynamic)


def clip_from(folder: Path, disable_dynamic: bool = False):
    """The CLIP in ``folder``; disable_dynamic: without ComfyUI's dynamic VRAM."""
    component = "text_encoder"
    return load_clip(_weights(folder, component), _config(folder, component), folder / "tokenizer", disable_dynamic)


def clip_patcher_from(folder: Path, disable_dynamic: bool = False):
    return clip_from(folder, disable_dynamic).patcher


def vae_from(folder: Path):
    """The VAE in ``folder``."""
    config = _config(folder, "vae")
    vae = comfy.sd.VAE(sd=_weights(folder, "vae"), config={"params": autoencoder_parameters(config)})
    set_groups(vae.first_stage_model, config["norm_num_groups"])
    return vae


def vae_patcher_from(folder: Path, disable_dynamic: bool = False):
    vae = vae_from(folder)
    if not disable_dynamic:
        return vae.patcher
    # ComfyUI's VAE has no such switch: the same network under the plain management, which casts no weights as it runs.
    network = vae.first_stage_model.to(vae.vae_dtype)
    return comfy.model_patcher.ModelPatcher(network, vae.patcher.load_device, vae.patcher.offload_device)


def _config(folder: Path, component: str) -> dict:
    return json.loads((folder / component / "config.json").read_text(encoding="utf-8"))


def _weights(folder: Path, component: str) -> dict[str, torch.Tensor]:
    file = next((folder / component).glob("*.safetensors"), None)
    if file is None:
        raise ValueError(
            f"Load Embedded Portrait Model: {folder / component} has no weights: install the pack again, whole."
        )
    return comfy.utils.load_torch_file(str(file), safe_load=True)


def unet_parameters(config: dict) -> dict:
    """ComfyUI's description of a UNet in SD1.5's layout, from diffusers' configuration."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    has_text = [int(name.startswith("CrossAttn")) for name in config["down_block_types"]]
    return {
        "image_size": 32, "use_spatial_transformer": True, "legacy": False, "in_channels": config["in_channels"],
        "out_channels": config["out_channels"], "model_channels": widths[0], "use_linear_in_transformer": False,
        "channel_mult": [width // widths[0] for width in widths], "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [depth for depth in has_text for _ in range(layers)], "transformer_depth_middle": 1,
        "transformer_depth_output": [depth for depth in has_text for _ in range(layers + 1)],
        "context_dim": config["cross_attention_dim"], "adm_in_channels": None, "use_temporal_attention": False,
    }  # fmt: skip


def load_unet(weights: dict[str, torch.Tensor], config: dict, scaling_factor: float, disable_dynamic: bool = False):
    """A MODEL, loaded and managed as ComfyUI's own loader does it; disable_dynamic: without its dynamic VRAM."""

    class Latents(comfy.latent_formats.SD15):
        def __init__(self):
            super().__init__()
            self.scale_factor = scaling_factor

    class Family(comfy.supported_models.SD15):
        unet_extra_config = {"num_heads": config["attention_head_dim"], "num_head_channels": -1}
        latent_format = Latents

    family = Family(unet_parameters(config))
    names = comfy.utils.unet_to_diffusers(family.unet_config)
    named = {names[name]: tensor for name, tensor in weights.items()}
    device = comfy.model_management.get_torch_device()
    dtype = comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(named), supported_dtypes=family.supported_inference_dtypes
    )
    cast = comfy.model_management.unet_manual_cast(dtype, device, family.supported_inference_dtypes)
    family.set_inference_dtype(dtype, cast)
    offload = comfy.model_management.unet_offload_device()
    model = family.get_model(named, device=offload)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=offload)
    model.load_model_weights(named, "", assign=patcher.is_dynamic())
    set_groups(model.diffusion_model, config["norm_num_groups"])
    return patcher


def set_groups(model: torch.nn.Module, groups: int) -> None:
    """ComfyUI's networks normalise 32 groups of channels, whatever their width; the embedded ones have fewer."""
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = groups


def load_clip(weights: dict[str, torch.Tensor], config: dict, tokenizer_folder: Path, disable_dynamic: bool = False):
    """A CLIP with a vocabulary of its own; disable_dynamic: without ComfyUI's dynamic VRAM."""
    name = "text_model.embeddings.token_embedding.weight"
    rows = weights[name]
    padding = rows.new_zeros(COMFYUI_VOCABULARY - len(rows), rows.shape[1])
    weights = {**weights, name: torch.cat([rows, padding])}

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                str(tokenizer_folder), config["max_position_embeddings"], embedding_directory=embedding_directory,
                embedding_size=config["hidden_size"], tokenizer_data=tokenizer_data or {},
            )  # fmt: skip

    class TextEncoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            special = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["eos_token_id"]}
            super().__init__(
                device=device, dtype=dtype, textmodel_json_config=config, special_tokens=special,
                return_projected_pooled=False, model_options=model_options or {},
            )  # fmt: skip

    return comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"clip_l_tokenizer_class": Tokenizer},
        parameters=comfy.utils.calculate_parameters(weights), state_dict=[weights],
        model_options={"clip_l_class": TextEncoder}, disable_dynamic=disable_dynamic,
    )  # fmt: skip


def autoencoder_parameters(config: dict) -> dict:
    """ComfyUI's description of an autoencoder, from diffusers' configuration."""
    widths, channels = config["block_out_channels"], config["latent_channels"]
    details = {
        "double_z": True, "z_channels": channels, "resolution": 256, "in_channels": config["in_channels"],
        "out_ch": config["out_channels"], "ch": widths[0], "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"], "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    return {"embed_dim": channels, "ddconfig": details}


def load_clip_vision(weights: dict[str, torch.Tensor], config: dict):
    """A CLIP_VISION for pictures that were trained in -1..1."""
    model = comfy.clip_vision.ClipVisionModel({**config, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    missing, _ = model.load_sd(weights)
    if missing:
        raise ValueError(f"Load Embedded Portrait Model: the image encoder lacks {missing[0]}: install the pack again.")
    return model
