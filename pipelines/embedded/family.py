"""The embedded models together: put into one folder in diffusers' layout, and loaded from it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import atomic_folder, write_json
from ..weights import BaseModel, load_base_model
from ..weights.pretrained import load_pretrained
from . import SHIPPED
from .architectures import SCHEDULE

# Which task's export holds which component.
COMPONENTS = {
    "autoencoder": ("vae",), "clip": ("text_encoder", "image_encoder", "tokenizer"), "text_to_image": ("unet",),
    "face_embedder": ("face_embedder",),
}  # fmt: skip
CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"], "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "safety_checker": [None, None], "feature_extractor": [None, None],
}  # fmt: skip


@dataclass
class EmbeddedFamily:
    """All embedded models, on the CPU."""

    base: BaseModel
    """UNet, VAE, text encoder, tokenizer and noise schedule: what ``StableDiffusionPipeline`` is made of."""
    text_tower: torch.nn.Module
    """transformers ``CLIPTextModelWithProjection``: the base model's text encoder, able to compare with pictures."""
    image_encoder: torch.nn.Module
    """transformers ``CLIPVisionModelWithProjection``; pictures [B, 3, 128, 128] in -1..1."""
    face_embedder: torch.nn.Module | None
    """transformers ``ConvNextModel``, see ``face_embedder.embed``; None in a folder that was made without one."""


def assemble(target: Path, exports: dict[str, Path]) -> None:
    """Make ``target`` (which must not exist) from the exports of the tasks, named as in ``COMPONENTS``.

    ``exports`` may lack the face embedder, which is a model of its own. Raises ``ValueError`` where one is missing.
    """
    found = []
    for task, components in COMPONENTS.items():
        if task not in exports:
            if task != "face_embedder":
                raise ValueError(f"the export of {task} is missing: all but the face embedder belong together.")
            continue
        found += [exports[task] / component for component in components]
        lacking = [path.name for path in found if not path.is_dir()]
        if lacking:
            raise ValueError(f"{exports[task]} has no {lacking[0]}: give the folder that the task {task} exported.")
    with atomic_folder(target) as folder:
        for path in found:
            shutil.copytree(path, folder / path.name)
        schedule = {**SCHEDULE, "_class_name": "DDIMScheduler", "set_alpha_to_one": False}
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", schedule)
        write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **CLASSES})


def load_family(folder: Path = SHIPPED, dtype: torch.dtype = torch.float32) -> EmbeddedFamily:
    """Load all embedded models. Raises ``ValueError`` where a file is missing or damaged."""
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection, ConvNextModel

    has_faces = (folder / "face_embedder").is_dir()
    return EmbeddedFamily(
        load_base_model(folder, dtype),
        load_pretrained(CLIPTextModelWithProjection, folder / "text_encoder", dtype),
        load_pretrained(CLIPVisionModelWithProjection, folder / "image_encoder", dtype),
        load_pretrained(ConvNextModel, folder / "face_embedder", dtype) if has_faces else None,
    )
