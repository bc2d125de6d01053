"""A base model for training or sampling, whole and checked, from a folder or from one file."""

from dataclasses import dataclass
from pathlib import Path

import torch

from .architectures import architecture_of, family_of
from .checks import check_weights
from .prompts import encode_prompts

PARTS = ("unet", "vae", "text")
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass
class BaseModel:
    """The parts of a latent diffusion model; those that were not asked for are None, or an empty list."""

    family: str
    """``"sd1"``, ``"sd2"`` or ``"sdxl"`` (KOALA is of the family of SDXL)."""
    architecture: str
    """Name after the modelspec standard, such as ``"stable-diffusion-xl-v1-base"``."""
    name: str
    """Name of the file or folder."""
    licence: str | None
    """What the file's metadata or the folder's model card says."""
    unet: torch.nn.Module | None
    """diffusers ``UNet2DConditionModel``."""
    vae: torch.nn.Module | None
    """diffusers ``AutoencoderKL``."""
    text_encoders: list
    """``[CLIPTextModel]``, for SDXL ``[CLIPTextModel, CLIPTextModelWithProjection]``."""
    tokenizers: list
    """A ``CLIPTokenizer`` for each text encoder."""
    scheduler: object
    """``DDPMScheduler`` with the noise schedule and the prediction type of the training."""

    @property
    def prediction_type(self) -> str:
        """``"epsilon"`` or ``"v_prediction"``."""
        return self.scheduler.config.prediction_type

    def encode_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """What the UNet is conditioned on: ``{"prompt": [B, 77, W]}``, for SDXL also ``"pooled": [B, P]``.

        The same as the stock pipelines, see ``prompts.encode_prompts``.
        """
        if not self.text_encoders:
            raise ValueError(f'{self.name} was loaded without its text encoders: add "text" to parts.')
        return encode_prompts(self.text_encoders, self.tokenizers, prompts)


def load_base_model(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    tokenizer: str | Path | None = None,
    parts: tuple[str, ...] = PARTS,
    prediction_type: str | None = None,
) -> BaseModel:
    """Load a base model from a diffusers folder or from a single-file ``.safetensors`` checkpoint, offline.

    ``tokenizer``: folder with ``vocab.json`` and ``merges.txt``, which a single file needs for its text encoders; a
    diffusers folder brings its own. ``parts``: which of ``PARTS`` to load. ``prediction_type``: ``"epsilon"`` or
    ``"v_prediction"`` where the file does not say it, or says it wrongly.
    Raises ``ValueError`` for what is missing, damaged, of another architecture, or not finite.
    """
    path = Path(path)
    _check_arguments(path, parts, prediction_type)
    if path.is_dir():
        from .diffusers_folder import load_folder

        loaded = load_folder(path, dtype, parts, prediction_type)
    else:
        from .single_file import load_file

        loaded = load_file(path, dtype, parts, prediction_type, tokenizer)
    config, predicts = loaded.pop("unet_config"), loaded["scheduler"].config.prediction_type
    if predicts not in PREDICTION_TYPES:
        raise ValueError(f"{path} predicts {predicts!r}: supported are {', '.join(PREDICTION_TYPES)}.")
    for part in [loaded["unet"], loaded["vae"], *loaded["text_encoders"]]:
        if part is not None:
            check_weights(part.eval(), f"{type(part).__name__} of {path}")
    for tokens, encoder in zip(loaded["tokenizers"], loaded["text_encoders"], strict=True):
        tokens.model_max_length = encoder.config.max_position_embeddings
    return BaseModel(
        family=family_of(config),
        architecture=architecture_of(config, predicts),
        name=path.name,
        **loaded,
    )


def _check_arguments(path: Path, parts: tuple[str, ...], prediction_type: str | None) -> None:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder. Give a diffusers folder or a .safetensors checkpoint.")
    if isinstance(parts, str) or not parts or set(parts) - set(PARTS):
        raise ValueError(f"parts is {parts!r}: choose from {', '.join(PARTS)}.")
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(f"prediction_type is {prediction_type!r}: choose from {', '.join(PREDICTION_TYPES)}.")
