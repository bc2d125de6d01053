"""Trained weights as folders of diffusers and transformers: config.json and one safetensors file in fp16."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_file, write_json

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"


def save_component(folder: Path, file: str, config: dict, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write ``folder/config.json`` and ``folder/file`` with ``facts`` as its metadata.

    Raises ``ValueError`` for weights that are not finite in fp16.
    """
    halves = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in weights.items()}
    bad = [name for name, tensor in halves.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{bad[0]} is not finite in fp16: train with a lower --learning-rate.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    with atomic_file(folder / file) as temporary:
        save_file(halves, temporary, metadata={"format": "pt", **facts})


def plain_config(module) -> dict:
    """The configuration of a diffusers or transformers model as its ``save_pretrained`` would write it."""
    if hasattr(module, "to_json_string"):  # diffusers
        return json.loads(module.to_json_string())
    config = module.config.to_dict()
    return {**config, "architectures": [type(module).__name__]}
