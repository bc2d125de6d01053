"""The photo generator's networks, from a models folder as ``weights_manifest.json`` lays it out."""

from pathlib import Path

import torch
from diffusers import ControlNetModel

from ..faces import BackendSettings, FaceBackend, load_backend
from ..faces.insightface import FILES, pack_folder
from ..image_prompt import load_image_prompt_adapter
from ..weights import BaseModel, load_base_model
from ..weights.checks import check_weights
from ..weights.diffusers_folder import load_part
from ..weights.manifest import destination, find, named
from .instantid import InstantId, InstantIdSettings, check_backend

PACK = "antelopev2"
BASE, ADAPTER = "sdxl/checkpoint", "instantid/adapter"
IDENTITY_NET = ("instantid/controlnet-config", "instantid/controlnet")
MODEL_FILES = (".safetensors", ".json", ".txt")
CANNY_NET = ("controlnet-canny-sdxl/config", "controlnet-canny-sdxl/controlnet")


def weight_file(name: str, models: Path) -> Path:
    """Where the manifest's entry ``name`` lies in ``models``. Raises ``ValueError`` saying how to get it."""
    weight = named(name)
    found = find(weight, [models])
    if found is None:
        file = destination(weight, models) / weight.names[0]
        raise ValueError(
            f"{file} is missing. {weight.purpose} To get it: python nodes/weights_cli.py download {weight.group} "
            f"--models {models}"
        )
    return found[0]


def needed_files(
    models: Path, model: Path | None, settings: InstantIdSettings, tokenizer: Path | None = None
) -> list[Path]:
    """All files that the two loaders below read. Raises ``ValueError`` for one that is missing."""
    if model is not None and not model.exists():
        raise ValueError(f"{model}: no such file or folder. Give an SDXL checkpoint, or a diffusers folder of one.")
    base = model or weight_file(BASE, models)
    if base.is_file() and tokenizer is None:
        raise ValueError(
            f"{base} holds no tokenizer: give --tokenizer a folder with vocab.json and merges.txt, such as ComfyUI's "
            "comfy/sd1_tokenizer."
        )
    names = [ADAPTER, *(IDENTITY_NET if settings.identity_scale else ()), *(CANNY_NET if settings.canny_scale else ())]
    whole = sorted(path for path in base.rglob("*") if path.suffix in MODEL_FILES) if base.is_dir() else [base]
    return [*whole, *(weight_file(name, models) for name in names), *face_pack(models)]


def face_pack(models: Path) -> list[Path]:
    """Detector and embedder of the InsightFace pack that InstantID reads. Raises ``ValueError`` if one is missing."""
    root = models / "insightface"
    try:
        folder = root / "models" / pack_folder(root, PACK)
    except ValueError as error:
        raise ValueError(f"{error} To get it: python nodes/weights_cli.py download {PACK} --models {models}") from None
    return [folder / file for file in FILES[PACK]]


def load_instantid(
    models: Path, settings: InstantIdSettings, device: str = "cpu", model: Path | None = None,
    tokenizer: Path | None = None,
) -> InstantId:  # fmt: skip
    """The photo generator on ``device``: in half precision on a GPU, but for the VAE, which overflows there.

    models: ComfyUI's models folder, or one like it; model: an SDXL checkpoint or diffusers folder (default: SDXL's base
    in ``models``); tokenizer: as in ``load_base_model``. Raises ``ValueError`` for what is missing or does not fit.
    """
    needed_files(models, model, settings, tokenizer)
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    base = load_base_model(model or weight_file(BASE, models), dtype, tokenizer)
    for part in (base.unet, base.vae.float(), *base.text_encoders):
        part.to(device).requires_grad_(False)
    adapter = load_image_prompt_adapter(weight_file(ADAPTER, models), base.unet)
    identity_net = load_controlnet(IDENTITY_NET[0], models, base) if settings.identity_scale else None
    canny_net = load_controlnet(CANNY_NET[0], models, base) if settings.canny_scale else None
    return InstantId(base, adapter, identity_net, canny_net, settings)


def load_controlnet(config: str, models: Path, base: BaseModel) -> ControlNetModel:
    """The ControlNet whose configuration is the manifest's entry ``config``, for ``base``. Raises ``ValueError``."""
    folder, unet = weight_file(config, models).parent, base.unet
    network = load_part(folder, ControlNetModel.__name__, unet.dtype)
    check_weights(network, f"the ControlNet in {folder}")
    if network.config.cross_attention_dim != unet.config.cross_attention_dim:
        raise ValueError(
            f"the ControlNet in {folder} reads contexts {network.config.cross_attention_dim} wide, {base.name} has "
            f"{unet.config.cross_attention_dim}: take one for SDXL."
        )
    return network.to(unet.device).requires_grad_(False)


def load_face_backend(models: Path, device: str = "cpu") -> FaceBackend:
    """InsightFace with antelopev2, whose embeddings InstantID reads. Raises ``ValueError`` where it is missing."""
    face_pack(models)
    place = torch.device(device)
    kind = "cpu" if place.type == "cpu" else "auto"
    backend = load_backend("insightface", BackendSettings(models, PACK, kind, place.index or 0))
    check_backend(backend)
    return backend
