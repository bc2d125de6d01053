"""What all tasks on a base model share: loading it, encoding pictures and prompts once, one prediction of its UNet."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..configuration import option
from ..weights import load_base_model, model_hash
from .image_folder import text_checksum
from .task import Source

# Words that different vocabularies and merges split differently.
PROBE = "a photograph of Zoë's great-grandmother, 85mm, f/1.4; golden hour"


@dataclass(frozen=True)
class BaseModelSettings:
    """Which base model is trained, and at which size of pictures."""

    model: Path = option(help="SD1.x, SD2.x, SDXL or KOALA: a diffusers folder or a .safetensors file")
    data: Path = option(help="folder of pictures, each with its caption in NAME.txt, or in metadata.jsonl")
    tokenizer: Path | None = option(None, "folder with vocab.json and merges.txt, for single-file models "
                                    "(default: that of a ComfyUI, where one is found)")  # fmt: skip
    prediction_type: str | None = option(None, "where the model does not say it",
                                         choices=("epsilon", "v_prediction"), fixed=True)  # fmt: skip
    resolution: int = option(512, "pictures are trained at about this squared pixels", minimum=8, fixed=True)
    bucket_step: int = option(64, "sides are multiples of this", minimum=8, fixed=True)


class BaseModelTask:
    """The part of ``task.Task`` that is the same for all tasks on a base model.

    A subclass has ``settings`` of ``BaseModelSettings``, a ``picture`` for each source of kind "latents", and calls
    ``load_base`` in its ``load``.
    """

    def __init__(self, settings: BaseModelSettings, seed: int = 0):
        self.settings, self.seed = settings, seed
        self._prompts: dict[str, Tensor] | None = None

    def check_model_path(self) -> None:
        """Raises ``ValueError`` where ``model`` is not there."""
        if not self.settings.model.exists():
            raise ValueError(f"--model {self.settings.model}: no such file or folder.")

    def load_base(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Load all of the model, frozen; returns its UNet in ``dtype``, still on the CPU."""
        settings = self.settings
        options = {"tokenizer": settings.tokenizer, "prediction_type": settings.prediction_type}
        # The VAE encodes in float32: SDXL's makes NaN in fp16.
        self.base = load_base_model(settings.model, torch.float32, parts=("vae", "text"), **options)
        self.unet = load_base_model(settings.model, dtype, parts=("unet",), **options).unet
        for module in (self.base.vae, self.unet, *self.base.text_encoders):
            module.requires_grad_(False)
        self._check_model()
        # Before a task changes it: what a run was begun with is told by its content, wherever it lies now.
        self._model_checksum = model_hash(self.unet)
        # Before its first use, which changes the state of some tokenizers.
        self._hashes = {"latents": model_hash(self.base.vae), "prompt": self._text_hash()}
        self.device = device
        return self.unet

    @property
    def cell(self) -> int:
        """Pixels a side that one latent cell stands for."""
        return 2 ** (len(self.base.vae.config.block_out_channels) - 1)

    def _check_model(self) -> None:
        channels = self.unet.config.in_channels
        if channels != self.base.vae.config.latent_channels:
            raise ValueError(f"--model {self.settings.model} has a UNet of {channels} input channels, an inpainting or "
                             "edit model: give the text-to-image model it was made from.")  # fmt: skip
        if self.settings.bucket_step % self.cell:
            raise ValueError(
                f"--bucket-step is {self.settings.bucket_step}: this model needs a multiple of {self.cell}."
            )

    def _text_hash(self) -> str:
        words = [[sorted(tokenizer.get_vocab().items()), tokenizer(PROBE).input_ids, str(tokenizer.special_tokens_map)]
                 for tokenizer in self.base.tokenizers]  # fmt: skip
        return " ".join([*map(model_hash, self.base.text_encoders), text_checksum(json.dumps(words))])

    # ---- encoding

    @contextmanager
    def encoders(self, kind: str) -> Iterator[None]:
        modules = {"latents": [self.base.vae], "prompt": self.base.text_encoders}.get(kind, [])
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module in modules:
                module.to("cpu")

    def encoder_hash(self, kind: str) -> str:
        return self._hashes[kind]

    def picture(self, source: Source) -> Tensor:
        """The picture ``[1, 3, H, W]`` in 0..1 of a source of kind "latents"."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, source: Source) -> dict[str, Tensor]:
        if source.kind == "prompt":
            return {name: tensor[0].cpu().half() for name, tensor in self.base.encode_prompts([source.payload]).items()}
        posterior = self.base.vae.encode(self.picture(source).to(self.device) * 2 - 1).latent_dist
        return {"mean": posterior.mean[0].cpu(), "std": posterior.std[0].cpu()}

    def release_encoders(self) -> None:
        self.validation_prompts()
        self.base.text_encoders = []

    def validation_texts(self) -> Iterable[str]:
        """Every text that validation conditions on."""
        raise NotImplementedError

    @torch.no_grad()
    def validation_prompts(self) -> dict[str, dict[str, Tensor]]:
        """The encodings of ``validation_texts``, made once."""
        if self._prompts is None:
            with self.encoders("prompt"):
                self._prompts = {
                    text: self.base.encode_prompts([text]) for text in dict.fromkeys(self.validation_texts())
                }
        return self._prompts

    # ---- prediction

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The UNet's output for ``batch``: ``prompt``, for SDXL also ``pooled`` and ``time_ids``."""
        dtype = self.unet.dtype
        added = None
        if "pooled" in batch:
            added = {"text_embeds": batch["pooled"].to(dtype), "time_ids": batch["time_ids"]}
        return network(noisy.to(dtype), timesteps, batch["prompt"].to(dtype), added_cond_kwargs=added,
                       return_dict=False)[0]  # fmt: skip

    def describe_base(self) -> dict[str, str]:
        """Facts about the base model for ``describe``."""
        return {
            "family": self.base.family,
            "architecture": self.base.architecture,
            "base": self.base.name,
            "model_sha256": self._model_checksum,
            "licence": self.base.licence or "not stated there",
            "prediction_type": self.base.prediction_type,
        }


def prompt_source(text: str) -> Source:
    """The source of a prompt."""
    return Source("prompt", text_checksum(text), "", text)


def time_ids_of(size: tuple[int, int], corner: tuple[int, int], bucket: tuple[int, int]) -> Tensor:
    """What SDXL is told of a picture: original size, top left corner of the crop, size (Podell et al. 2023, 2.2)."""
    return torch.tensor([*size, *corner, *bucket])
