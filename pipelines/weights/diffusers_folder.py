"""Loading from a folder in the layout of diffusers: model_index.json and one folder for each component."""

import json
import re
from pathlib import Path

import torch

from .architectures import family_of
from .clip_layouts import from_ldm, text_encoder
from .tokenizer import load_tokenizer

COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}


def load_folder(path: Path, dtype: torch.dtype, parts: tuple[str, ...], prediction_type: str | None) -> dict:
    """The components of ``BaseModel`` and ``unet_config`` from a diffusers folder; ``ValueError`` where one fails."""
    index = _read_json(path / "model_index.json", "is no diffusers folder: give the one that holds model_index.json")
    unet_config = _read_json(path / "unet" / "config.json", "has no UNet configuration: download the folder again")
    suffixes = ["", "_2"] if family_of(unet_config) == "sdxl" else [""]
    wanted = [part for part in ("unet", "vae") if part in parts]
    wanted += ["text_encoder" + suffix for suffix in suffixes if "text" in parts]
    for component in wanted:
        _check_class(path, index, component)
    loaded = {component: load_component(path, component, dtype) for component in wanted}
    encoders = [module for component, module in loaded.items() if component.startswith("text")]
    tokenizers = [load_tokenizer(path / f"tokenizer{suffix}") for suffix in suffixes if "text" in parts]
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        _check_vocabulary(path, tokenizer, encoder)
    return {
        "unet_config": unet_config,
        "licence": model_card_licence(path),
        "unet": loaded.get("unet"),
        "vae": loaded.get("vae"),
        "text_encoders": encoders,
        "tokenizers": tokenizers,
        "scheduler": load_scheduler(path, prediction_type),
    }


def _read_json(file: Path, complaint: str) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file.parent} {complaint}.") from None
    except ValueError as error:
        raise ValueError(f"{file} is no valid JSON ({error}): download it again.") from None


def _check_class(path: Path, index: dict, component: str) -> None:
    entry = index.get(component)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if found != COMPONENTS[component]:
        raise ValueError(
            f"{path} is a {index.get('_class_name', 'pipeline')} whose {component} is {found or 'missing'}: supported "
            f"are SD1.x, SD2.x, SDXL and KOALA, where it is {COMPONENTS[component]}."
        )


def load_component(path: Path, component: str, dtype: torch.dtype) -> torch.nn.Module:
    """One component of the folder, from safetensors only, with every weight present."""
    return load_part(path / component, COMPONENTS[component], dtype)


def load_part(folder: Path, name: str, dtype: torch.dtype) -> torch.nn.Module:
    """The network of the class ``name`` of diffusers or transformers in ``folder``, as ``load_component``."""
    from safetensors import SafetensorError

    is_text = name.startswith("CLIPText")
    variant = _variant(folder, "model" if is_text else "diffusion_pytorch_model")
    try:
        module, missing = (_load_text_encoder if is_text else _load_diffusers)(folder, name, variant, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded ({error}): download it again.") from error
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} weights, {missing[0]} first: download it again.")
    return module


def _load_diffusers(folder: Path, name: str, variant: str | None, dtype):
    import diffusers

    module, report = getattr(diffusers, name).from_pretrained(
        str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True,
        variant=variant,
    )  # fmt: skip
    return module, sorted(report["missing_keys"])


def _load_text_encoder(folder: Path, name: str, variant: str | None, dtype):
    import transformers
    from safetensors.torch import load_file

    weights = from_ldm(load_file(folder / (f"model.{variant}.safetensors" if variant else "model.safetensors")))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    encoder, missing = text_encoder(getattr(transformers, name), config, weights)
    return encoder.to(dtype), missing


def _variant(folder: Path, stem: str) -> str | None:
    """None for plain weight files, ``"fp16"`` where only those are there; ``ValueError`` where there are none."""
    files = [file.name for file in folder.glob("*")] if folder.is_dir() else []
    if f"{stem}.safetensors" in files or f"{stem}.safetensors.index.json" in files:
        return None
    if f"{stem}.fp16.safetensors" in files or f"{stem}.safetensors.index.fp16.json" in files:
        return "fp16"
    if any(name.endswith((".bin", ".pt", ".ckpt", ".pth")) for name in files):
        raise ValueError(
            f"{folder} holds its weights as a pickle only, which can run code when opened: "
            "get or convert it to safetensors (save_pretrained with safe_serialization=True)."
        )
    raise ValueError(f"{folder} has no {stem}.safetensors: download the folder again, it is not complete.")


def _check_vocabulary(path: Path, tokenizer, encoder) -> None:
    if len(tokenizer) > encoder.config.vocab_size:
        raise ValueError(
            f"The tokenizer of {path} has {len(tokenizer)} tokens, its text encoder knows "
            f"{encoder.config.vocab_size}: they are not of the same model, download the folder again."
        )


def load_scheduler(path: Path, prediction_type: str | None):
    """The noise schedule of the training as a ``DDPMScheduler``, whatever sampler the folder names."""
    from diffusers import DDPMScheduler

    file = path / "scheduler" / "scheduler_config.json"
    config = _read_json(file, "has no noise schedule: download the folder again")
    if "beta_schedule" not in config:
        raise ValueError(
            f"{file} is of {config.get('_class_name')}, which has no betas: supported are models with a DDPM noise "
            "schedule."
        )
    if prediction_type is not None:
        config["prediction_type"] = prediction_type
    # Latents are not bound to -1..1.
    return DDPMScheduler.from_config(config, clip_sample=False)


def model_card_licence(path: Path) -> str | None:
    """The licence that the front matter of the folder's README.md names, or None."""
    card = path / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    fields = dict(re.findall(r"^(license(?:_name)?):[ \t]*(\S.*?)\s*$", front[1], re.MULTILINE)) if front else {}
    licence = fields.get("license_name") if fields.get("license") == "other" else None
    return (licence or fields.get("license") or "").strip("\"'") or None
