"""The embedded models together: put into one folder in diffusers' layout, and loaded from it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import atomic_folder, replace_folder, write_json
from ..weights import BaseModel, load_base_model
from ..weights.checks import model_hash
from ..weights.diffusers_folder import load_component
from ..weights.pretrained import load_pretrained
from . import SHIPPED
from .architectures import SCHEDULE
from .autoencoder import LATENT_PARTS
from .face_detector import FaceDetector, load_face_detector

# Which task's export holds which component.
COMPONENTS = {
    "autoencoder": ("vae",), "clip": ("text_encoder", "image_encoder", "tokenizer"), "text_to_image": ("unet",),
    "face_embedder": ("face_embedder",), "face_detector": ("face_detector",),
}  # fmt: skip
# Models of their own, which the others do without.
OPTIONAL = ("face_embedder", "face_detector")
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
    face_detector: FaceDetector | None
    """See ``face_detector``; None in a folder that was made without one."""


def assemble(target: Path, exports: dict[str, Path]) -> None:
    """Make ``target`` (which must not exist) from the exports of the tasks, named as in ``COMPONENTS``.

    ``exports`` may lack those of ``OPTIONAL``. Raises ``ValueError`` where another one is missing.
    """
    missing = [task for task in COMPONENTS if task not in exports and task not in OPTIONAL]
    if missing:
        raise ValueError(f"the export of {missing[0]} is missing: all but {' and '.join(OPTIONAL)} belong together.")
    found = components_of(exports)
    with atomic_folder(target) as folder:
        for path in found:
            shutil.copytree(path, folder / path.name)
        schedule = {**SCHEDULE, "_class_name": "DDIMScheduler", "set_alpha_to_one": False}
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", schedule)
        write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **CLASSES})


def make_room(target: Path) -> None:
    """Remove what a run of ``assemble`` left at ``target`` that ended before it was measured: it has no card.

    Raises ``ValueError`` where anything else is there.
    """
    if (target / "model_index.json").is_file() and not (target / "README.md").exists():
        shutil.rmtree(target)
    elif target.exists() and (target.is_file() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: choose a new folder, or measure this one again with --measure.")


def extend(target: Path, exports: dict[str, Path]) -> None:
    """Put exports of ``OPTIONAL`` into the family in ``target``, in place of what is there; the rest stays as it is.

    An autoencoder may be put there too if only its decoder is another, because the rest stands on its latents. Raises
    ``ValueError`` for others, and where ``target`` or an export is none.
    """
    others = [task for task in exports if task not in (*OPTIONAL, "autoencoder")]
    if others or not exports:
        raise ValueError(
            f"{others[0] if others else 'nothing'} cannot be put into a family that is there: give exports of "
            f"{' or '.join(OPTIONAL)} or an autoencoder with another decoder, or make a new one with --output."
        )
    if not (target / "model_index.json").is_file():
        raise ValueError(f"{target} holds no embedded models: give a folder that --output made.")
    found = components_of(exports)
    if "autoencoder" in exports and not _same_latents(exports["autoencoder"], target):
        raise ValueError(
            f"{exports['autoencoder']} makes other latents than the family's autoencoder, which the UNet was trained "
            "on: train its decoder alone (--decoder-of), or make a new family with --output."
        )
    for path in found:
        fresh = target / f".{path.name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(path, fresh)
        replace_folder(fresh, target / path.name)


def _same_latents(one: Path, other: Path) -> bool:
    """Whether the autoencoders in two folders have the same encoder, bit for bit."""
    first, second = (load_component(folder, "vae", torch.float32) for folder in (one, other))
    return all(model_hash(getattr(first, part)) == model_hash(getattr(second, part)) for part in LATENT_PARTS)


def components_of(exports: dict[str, Path]) -> list[Path]:
    """The folders of all components in these exports. Raises ``ValueError`` naming one that is missing."""
    found = []
    for task in (task for task in COMPONENTS if task in exports):
        found += [exports[task] / component for component in COMPONENTS[task]]
        lacking = [path.name for path in found if not path.is_dir()]
        if lacking:
            raise ValueError(f"{exports[task]} has no {lacking[0]}: give the folder that the task {task} exported.")
    return found


def load_family(folder: Path = SHIPPED, dtype: torch.dtype = torch.float32) -> EmbeddedFamily:
    """Load all embedded models. Raises ``ValueError`` where a file is missing or damaged."""
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection, ConvNextModel

    embedder, detector = folder / "face_embedder", folder / "face_detector"
    return EmbeddedFamily(
        load_base_model(folder, dtype),
        load_pretrained(CLIPTextModelWithProjection, folder / "text_encoder", dtype),
        load_pretrained(CLIPVisionModelWithProjection, folder / "image_encoder", dtype),
        load_pretrained(ConvNextModel, embedder, dtype) if embedder.is_dir() else None,
        load_face_detector(detector).to(dtype) if detector.is_dir() else None,
    )
