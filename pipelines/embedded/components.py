"""Trained weights as folders of diffusers and transformers: config.json and one safetensors file in fp16."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..files import write_json
from ..training.export import check_same_file
from ..weights.checks import save_finite
from ..weights.diffusers_folder import load_component

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"
# In the metadata of an export: the metadata of the one it was trained on from.
CONTINUED = "likeness_continued"


def save_component(folder: Path, file: str, config: dict, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write ``folder/config.json`` and ``folder/file`` with ``facts`` as its metadata.

    Raises ``ValueError`` for weights that are not finite in fp16.
    """
    halves = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    save_finite(folder / file, halves, {"format": "pt", **facts}, "train with a lower --learning-rate")


def begun_with(folder: Path, component: str, facts: dict[str, str], option: str, made: str):
    """(the module in ``folder`` that a training went on from, the training's ``facts`` together with the module's).

    Raises ``ValueError`` where it is not the one any more whose checksum ``facts`` hold by the name of the ``option``.
    """
    facts = continued(folder / component / DIFFUSERS, facts, option, made)
    return load_component(folder, component, torch.float32), facts


def continued(file: Path, facts: dict[str, str], option: str, made: str) -> dict[str, str]:
    """A training's ``facts`` together with those of the ``file`` that it went on from; raises as ``begun_with``."""
    check_same_file(file, facts.get(f"{option}_sha256", ""), made)
    with safe_open(file, "pt") as opened:
        return {**facts, CONTINUED: json.dumps(opened.metadata() or {})}


def plain_config(module) -> dict:
    """The configuration of a diffusers or transformers model as its ``save_pretrained`` would write it."""
    if hasattr(module, "to_json_string"):  # diffusers
        config = json.loads(module.to_json_string())
        config.pop("_name_or_path", None)  # of the machine it was trained on
        return config
    config = module.config.to_dict()
    return {**config, "architectures": [type(module).__name__]}
