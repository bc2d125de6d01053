"""Loading from a single-file checkpoint in the LDM layout, the one that ComfyUI loads and saves."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .architectures import NOISE_SCHEDULE, Shapes, clip_config, family_of, unet_config, vae_config
from .clip_layouts import from_ldm, from_open_clip, text_encoder
from .tokenizer import load_tokenizer

UNET, VAE = "model.diffusion_model.", "first_stage_model."
# The text encoders of a family: where they are, in which layout.
OPEN_CLIP_SD2 = ("cond_stage_model.model.", "conditioner.embedders.0.model.")
LDM_CLIP_SD1 = ("cond_stage_model.transformer.",)
LDM_CLIP_SDXL, OPEN_CLIP_SDXL = ("conditioner.embedders.0.transformer.",), ("conditioner.embedders.1.model.",)

SUPPORTED = "Supported are checkpoints of SD1.x, SD2.x, SDXL, KOALA-700M and KOALA-1B, saved as one .safetensors file."
# What else people have in their folders, by a part of a key; the first that is found counts.
OTHERS = (
    ("a LoRA (give the base model that it belongs to)", (".lora_down.", ".lora_A.", ".hada_w1", ".lokr_w")),
    ("a ControlNet", ("control_model.", "controlnet_", "input_hint_block.")),
    ("a Stable Video Diffusion model", (".time_stack.",)),
    ("a Flux transformer", ("double_blocks.",)),
    ("a Stable Diffusion 3 transformer", ("joint_blocks.",)),
    ("an unCLIP model", ("embedder.model.visual.",)),
    ("a Playground 2.5 or other EDM model", ("edm_mean", "edm_vpred.")),
    ("one component of a diffusers folder (give the folder that holds model_index.json)",
     ("down_blocks.0.", "encoder.down_blocks.")),
    ("another diffusion transformer", ("transformer_blocks.0.attn.", "blocks.0.self_attn.", "layers.0.attention.")),
)  # fmt: skip
# Size of the label embedding where an SDXL-shaped UNet is no SDXL.
OTHER_LABELS = {2560: "the SDXL refiner", 1536: "an unCLIP model", 2048: "an unCLIP model"}
# Of the modelspec standard, and of ComfyUI's Save Checkpoint.
PREDICTION_FIELDS = ("modelspec.prediction_type", "modelspec.predict_key")
METADATA_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
V_PREDICTION_SIGN, V_PREDICTION_SPREAD = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09

logger = logging.getLogger(__name__)


@dataclass
class Header:
    """What a safetensors file says about itself before any weight is read."""

    shapes: Shapes
    metadata: dict[str, str]

    def below(self, prefix: str) -> Shapes:
        """Shapes of the tensors whose names begin with ``prefix``, without it."""
        return {key.removeprefix(prefix): shape for key, shape in self.shapes.items() if key.startswith(prefix)}

    def prefix(self, candidates: tuple[str, ...]) -> str | None:
        """The first of ``candidates`` that some name begins with."""
        return next((one for one in candidates if any(key.startswith(one) for key in self.shapes)), None)


def read_header(path: Path) -> Header:
    """Names, shapes and metadata of a ``.safetensors`` file; ``ValueError`` where it is none or is cut short."""
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{path} is no .safetensors file. Other checkpoints are pickles, which can run code when opened: load it "
            "in ComfyUI and save it with Save Checkpoint."
        )
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            return Header(shapes, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not fully downloaded ({error}): get it again.") from error


def read_unet_config(path: Path, header: Header) -> dict:
    """The diffusers UNet configuration of a checkpoint; ``ValueError`` saying what was found where it is none."""
    other = next((name for name, parts in OTHERS if any(part in key for key in header.shapes for part in parts)), None)
    if other:
        raise ValueError(f"{path} is {other}. {SUPPORTED}")
    unet = header.below(UNET)
    label = unet.get("label_emb.0.0.weight", (0, 0))[1]
    if label in OTHER_LABELS:
        raise ValueError(f"{path} is {OTHER_LABELS[label]}. {SUPPORTED}")
    if "input_blocks.0.0.weight" not in unet:
        found = ", ".join(sorted(header.shapes)[:3]) or "nothing"
        raise ValueError(f"{path} has no UNet (no key begins with {UNET}input_blocks); it holds {found}. {SUPPORTED}")
    with _expecting(path, "UNet"):
        return unet_config(unet)


@contextmanager
def _expecting(path: Path, part: str) -> Iterator[None]:
    """Turn what goes wrong when tensors are missing or have other shapes into a ``ValueError``."""
    try:
        yield
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        # torch begins with a headline; the second line names the first tensor.
        lines = str(error).splitlines()
        reason = (lines[1] if len(lines) > 1 else repr(error)).strip()[:300]
        raise ValueError(f"{path}: its {part} is not built as expected ({reason}). {SUPPORTED}") from error


def load_file(path: Path, dtype, parts, prediction_type: str | None, tokenizer: str | Path | None) -> dict:
    """The components of ``BaseModel`` and ``unet_config`` from one file; ``ValueError`` where one fails."""
    header = read_header(path)
    config = read_unet_config(path, header)
    family = family_of(config)
    _check_complete(path, header, family, parts)
    tokenizers = _tokenizers(tokenizer, family) if "text" in parts else []
    scheduler = _scheduler(path, header, family, prediction_type)
    return {
        "unet_config": config,
        "licence": header.metadata.get("modelspec.license"),
        "unet": _load_unet(path, config, dtype) if "unet" in parts else None,
        "vae": _load_vae(path, header, family, dtype) if "vae" in parts else None,
        "text_encoders": _load_text_encoders(path, header, family, dtype) if "text" in parts else [],
        "tokenizers": tokenizers,
        "scheduler": scheduler,
    }


def _text_layouts(family: str) -> list:
    """(prefixes, converter, activation) of each text encoder."""
    if family == "sd1":
        return [(LDM_CLIP_SD1, from_ldm, "quick_gelu")]
    if family == "sd2":
        return [(OPEN_CLIP_SD2, from_open_clip, "gelu")]
    return [(LDM_CLIP_SDXL, from_ldm, "quick_gelu"), (OPEN_CLIP_SDXL, from_open_clip, "gelu")]


def _check_complete(path: Path, header: Header, family: str, parts) -> None:
    missing = []
    if "vae" in parts and not header.below(VAE):
        missing.append("VAE")
    if "text" in parts:
        layouts = _text_layouts(family)
        names = ["text encoder"] if len(layouts) == 1 else ["first text encoder", "second text encoder"]
        missing += [name for name, layout in zip(names, layouts, strict=True) if header.prefix(layout[0]) is None]
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(missing)}: give a full checkpoint (ComfyUI's Save Checkpoint writes one)."
        )


def _tokenizers(folder: str | Path | None, family: str) -> list:
    if folder is None:
        raise ValueError(
            "A single-file checkpoint holds no tokenizer: give tokenizer = folder with vocab.json and merges.txt, "
            "for example ComfyUI's comfy/sd1_tokenizer."
        )
    # OpenCLIP was trained with token 0 as padding, which is the exclamation mark.
    pads = {"sd1": [None], "sd2": ["!"], "sdxl": [None, "!"]}[family]
    return [load_tokenizer(folder, pad) for pad in pads]


def _read(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118


def _load_unet(path: Path, config: dict, dtype) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with _expecting(path, "UNet"):
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
        return _filled(unet, convert_ldm_unet_checkpoint(_read(path, UNET), unet.config), dtype)


def _load_vae(path: Path, header: Header, family: str, dtype) -> torch.nn.Module:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    with _expecting(path, "VAE"):
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(vae_config(header.below(VAE), family))
        return _filled(vae, convert_ldm_vae_checkpoint(_read(path, VAE), vae.config), dtype)


def _filled(module: torch.nn.Module, weights: dict, dtype) -> torch.nn.Module:
    """``module`` with ``weights`` in place of its own, in ``dtype``; each must be there and fit."""
    # Popped, so that a large model is not in memory in two types.
    weights = {key: weights.pop(key).to(dtype) for key in list(weights)}
    module.load_state_dict(weights, strict=True, assign=True)
    return module


def _load_text_encoders(path: Path, header: Header, family: str, dtype) -> list:
    import transformers

    classes = [transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection]
    encoders = []
    for encoder_class, (prefixes, convert, activation) in zip(classes, _text_layouts(family), strict=False):
        prefix = header.prefix(prefixes)
        weights = convert({key.removeprefix(prefix): value for key, value in _read(path, prefix).items()})
        if encoder_class is classes[0]:
            weights.pop("text_projection.weight", None)
        with _expecting(path, "text encoder"):
            encoders.append(_load_text_encoder(encoder_class, weights, family, activation).to(dtype))
    return encoders


def _load_text_encoder(encoder_class, weights: dict, family: str, activation: str) -> torch.nn.Module:
    config = clip_config({key: tuple(value.shape) for key, value in weights.items()}, activation)
    config["num_hidden_layers"] = text_layers(family, config["num_hidden_layers"])
    beyond = f"encoder.layers.{config['num_hidden_layers']}."
    weights = {key: value for key, value in weights.items() if not key.startswith(beyond)}
    encoder, missing = text_encoder(encoder_class, config, weights)
    if missing:
        raise ValueError(f"it lacks {len(missing)} weights, {missing[0]} first")
    return encoder


def text_layers(family: str, stored: int) -> int:
    """How many of the ``stored`` layers of a text encoder are used.

    SD2.x takes the output of the last but one, so diffusers keeps 23 of 24; files written from its folders have 23.
    """
    return stored - 1 if family == "sd2" and stored != 23 else stored


def _scheduler(path: Path, header: Header, family: str, prediction_type: str | None):
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        **NOISE_SCHEDULE,
        prediction_type=prediction_type or _prediction_type(path, header, family),
        rescale_betas_zero_snr="ztsnr" in header.shapes,
    )


def _prediction_type(path: Path, header: Header, family: str) -> str:
    """What the file says, else what ComfyUI would take it for."""
    said = next((header.metadata[key] for key in PREDICTION_FIELDS if key in header.metadata), None)
    if said in METADATA_PREDICTION:
        return METADATA_PREDICTION[said]
    if "v_pred" in header.shapes:
        return "v_prediction"
    return _measured_prediction_type(path) if family == "sd2" else "epsilon"


def _measured_prediction_type(path: Path) -> str:
    """SD2.x of both kinds has equal shapes; ComfyUI tells them apart by the spread of one bias, and so do we."""
    bias = _read(path, V_PREDICTION_SIGN).get(V_PREDICTION_SIGN, torch.zeros(1))
    guess = "v_prediction" if bias.float().std(correction=0) > V_PREDICTION_SPREAD else "epsilon"
    logger.info(
        "%s does not say whether it predicts noise or velocity; its weights look like %s, as ComfyUI takes it too. "
        "Give prediction_type to say otherwise.", path, guess,
    )  # fmt: skip
    return guess
