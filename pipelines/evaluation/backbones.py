"""Networks that turn pictures into features, by name. Nothing is downloaded: all but the embedded one come from files
that are in place, where the manifest of weights says or where the user does."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..embedded import SHIPPED
from ..optional import need
from ..weights.manifest import destination, find, named, select, shipped
from ..weights.pretrained import load_pretrained
from ..weights.prompts import padded_tokens
from ..weights.tokenizer import load_tokenizer

CLIP_MEAN, CLIP_SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EMBEDDED = "embedded CLIP"


@dataclass(frozen=True)
class Backbone:
    """A network under the name that its scores carry.

    embed: pictures [B, 3, H, W] in 0..1 of any size to features [B, D], by their middle square unless said otherwise;
    as they come, because published Fréchet distances and MMDs are of features that were not scaled.
    embed_text: texts to features [B, D] beside them; None for networks that know no words.
    maps: pictures to features [B, C, h, w] of the whole picture, stretched to a square; None where it has none.
    modules: what these run.
    """

    name: str
    embed: Callable[[Tensor], Tensor]
    embed_text: Callable[[Sequence[str]], Tensor] | None = None
    maps: Callable[[Tensor], Tensor] | None = None
    modules: tuple[torch.nn.Module, ...] = ()

    def to(self, device: str | torch.device) -> "Backbone":
        """The same network moved to ``device``; pictures are sent there, and features come back to the CPU.

        Raises ``ValueError`` where torch does not know the device, or not on this machine.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"the device {device} cannot be used here ({error}): choose another, or cpu.") from error
        for module in self.modules:
            module.to(device)

        def there(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda pictures: function(pictures.to(device)).cpu()

        return replace(self, embed=there(self.embed), maps=self.maps and there(self.maps))


@dataclass(frozen=True)
class Preparation:
    """How pictures are made ready: ``size`` in pixels, ``mean`` and ``spread`` of R, G and B in 0..1.

    shorter: pixels that the shorter side is scaled to before the middle is cut out, at least ``size``; None for
    ``size``, so that nothing of that side is lost.
    """

    size: int
    mean: tuple[float, float, float]
    spread: tuple[float, float, float]
    shorter: int | None = None

    def middle(self, pictures: Tensor) -> Tensor:
        """The middle square, [B, 3, size, size], bicubic, as the networks' own preparations cut it (transformers)."""
        shorter, least = self.shorter or self.size, min(pictures.shape[-2:])
        # The longer side is rounded down, there as here: another pixel would shift the whole picture.
        height, width = (side * shorter // least for side in pictures.shape[-2:])
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return self._scaled(pictures, (height, width))[..., top : top + self.size, left : left + self.size]

    def whole(self, pictures: Tensor) -> Tensor:
        """All of the picture, stretched: a mask of the same picture lies on it cell by cell."""
        return self._scaled(pictures, (self.size, self.size))

    def _scaled(self, pictures: Tensor, size: tuple[int, int]) -> Tensor:
        pictures = pictures.float()
        if tuple(pictures.shape[-2:]) != size:
            pictures = interpolate(pictures, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, spread = (pictures.new_tensor(x)[:, None, None] for x in (self.mean, self.spread))
        return (pictures - mean) / spread


def embedded_clip(folder: Path = SHIPPED) -> Backbone:
    """The CLIP that comes with the pack; it knows the portrait world and no photographs.

    Raises ``ValueError`` where a file is missing or damaged.
    """
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    image = load_pretrained(CLIPVisionModelWithProjection, folder / "image_encoder")
    text = load_pretrained(CLIPTextModelWithProjection, folder / "text_encoder")
    half = (0.5, 0.5, 0.5)
    prepare = Preparation(image.config.image_size, half, half)
    return _clip(EMBEDDED, image, text, load_tokenizer(folder / "tokenizer"), prepare)


def clip(folder: Path) -> Backbone:
    """OpenAI's CLIP or one of its layout, in a folder as transformers saves it, under the folder's name.

    Raises ``ValueError`` where a file is missing or damaged.
    """
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    image = load_pretrained(CLIPVisionModelWithProjection, folder)
    text = load_pretrained(CLIPTextModelWithProjection, folder)
    prepare = _preparation(folder, image.config.image_size, CLIP_MEAN, CLIP_SPREAD)
    return _clip(Path(folder).name, image, text, load_tokenizer(folder), prepare)


def dinov2(folder: Path) -> Backbone:
    """DINOv2 (Oquab et al. 2023), in a folder as transformers saves it; its class token. Raises ``ValueError``."""
    from transformers import Dinov2Model

    model = load_pretrained(Dinov2Model, folder)
    prepare = _preparation(folder, 224, IMAGENET_MEAN, IMAGENET_SPREAD)

    @torch.no_grad()
    def embed(pictures: Tensor) -> Tensor:
        return model(prepare.middle(pictures)).last_hidden_state[:, 0].float()

    @torch.no_grad()
    def maps(pictures: Tensor) -> Tensor:
        return _as_map(model(prepare.whole(pictures)).last_hidden_state)

    return Backbone(Path(folder).name, embed, None, maps, (model,))


def vgg16(file: Path) -> Backbone:
    """torchvision's VGG16 trained on ImageNet, from its weights file; the Clothing score's network in IDetail.

    Features are those of the last convolution. Raises ``ValueError``, or ``ImportError`` without torchvision.
    """
    network = need("torchvision.models", "torchvision").vgg16(weights=None).features[:30].eval()
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(
            {name.removeprefix("features."): value for name, value in weights.items() if name.startswith("features.")}
        )
    except Exception as error:
        raise ValueError(f"{file} does not hold torchvision's VGG16 ({error}): give vgg16-397923af.pth.") from error
    prepare = Preparation(224, IMAGENET_MEAN, IMAGENET_SPREAD)

    @torch.no_grad()
    def maps(pictures: Tensor) -> Tensor:
        return network(prepare.whole(pictures))

    @torch.no_grad()
    def embed(pictures: Tensor) -> Tensor:
        return network(prepare.middle(pictures)).mean((2, 3))

    return Backbone("VGG16", embed, None, maps, (network,))


def inception(file: Path) -> Backbone:
    """The Inception v3 of the FID and KID, by torch-fidelity, which torchmetrics uses too; the whole picture.

    The Fréchet distance on its 2048 features is the FID. Raises ``ValueError``, or ``ImportError`` without
    torch-fidelity.
    """
    extractor = need("torch_fidelity", "torch-fidelity").FeatureExtractorInceptionV3
    try:
        # torch-fidelity unpickles anything: what this reads without error holds weights only.
        torch.load(file, map_location="cpu", weights_only=True)
        network = extractor("inception", ["2048"], feature_extractor_weights_path=str(file))
    except Exception as error:
        raise ValueError(f"{file} does not hold torch-fidelity's Inception ({error}): get it again.") from error

    @torch.no_grad()
    def embed(pictures: Tensor) -> Tensor:
        return network((pictures * 255).round().to(torch.uint8))[0]

    return Backbone("Inception, as for FID", embed, modules=(network,))


def _clip(name: str, image, text, tokenizer, prepare: Preparation) -> Backbone:
    @torch.no_grad()
    def embed(pictures: Tensor) -> Tensor:
        return image(prepare.middle(pictures)).image_embeds.float()

    @torch.no_grad()
    def embed_text(texts: Sequence[str]) -> Tensor:
        tokens = padded_tokens(tokenizer, list(texts), text.config.max_position_embeddings)
        return text(tokens.to(text.device)).text_embeds.float().cpu()

    @torch.no_grad()
    def maps(pictures: Tensor) -> Tensor:
        return _as_map(image(prepare.whole(pictures)).last_hidden_state)

    return Backbone(name, embed, embed_text, maps, (image, text))


def _as_map(tokens: Tensor) -> Tensor:
    """Tokens [B, 1 + n n, C], the class token first, as [B, C, n, n]."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))


def _preparation(folder: Path, size: int, mean, spread) -> Preparation:
    """As the folder's ``preprocessor_config.json`` says, or the given values where it has none."""
    file = folder / "preprocessor_config.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    crop = said.get("crop_size", size)
    crop = crop["height"] if isinstance(crop, dict) else crop
    shorter = said.get("size", crop)
    shorter = shorter.get("shortest_edge", crop) if isinstance(shorter, dict) else shorter
    return Preparation(crop, tuple(said.get("image_mean", mean)), tuple(said.get("image_std", spread)), shorter)


@dataclass(frozen=True)
class Network:
    """How a network is loaded from its place, and the groups of the manifest of weights that it can be."""

    load: Callable[[Path], Backbone]
    groups: tuple[str, ...]


NETWORKS = {
    "clip": Network(clip, ("clip-vit-l14", "clip-vit-b32")),
    "dinov2": Network(dinov2, ("dinov2-base",)),
    "vgg16": Network(vgg16, ("lpips-vgg16",)),
    "inception": Network(inception, ("fid-inception",)),
}


def place_of(group: str, models: Sequence[Path]) -> Path | None:
    """Where the files of a group of the manifest lie below one of ``models``: their folder, or the only file."""
    weights = select(shipped(), [group])
    found = [find(weight, models) for weight in weights]
    if not all(found):
        return None
    return found[0][0] if len(found) == 1 else found[0][0].parent


def where_it_belongs(group: str, models: Sequence[Path]) -> str:
    """What to do about a group of the manifest that is not in place, as the end of a message."""
    folder = destination(named(group), models[0])
    command = f"nodes/weights_cli.py download {group} --models {models[0]}"
    return f"the place for it is {folder}: run {command} (or get it by hand)."


def load_network(name: str, models: Sequence[Path], place: Path | None = None) -> Backbone:
    """The network ``name`` of ``NETWORKS``, or "embedded-clip": from ``place``, else from below ``models`` folders.

    Raises ``ValueError`` for an unknown name and where its files are missing, saying where they belong.
    """
    if name == "embedded-clip":
        return embedded_clip()
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}: choose embedded-clip, {', '.join(NETWORKS)}.")
    place = place or _installed(name, models)
    if place is None:
        raise ValueError(f"{name} is not there; {where_it_belongs(NETWORKS[name].groups[0], models)}")
    return NETWORKS[name].load(place)


def lazy_clip(name: str, models: Sequence[Path]) -> Backbone:
    """``load_network`` of "clip" or "embedded-clip", put off to its first use, as its errors are; on the CPU."""
    load = cache(lambda: load_network(name, models))
    place = None if name == "embedded-clip" else _installed(name, models)
    return Backbone(
        EMBEDDED if name == "embedded-clip" else place.name if place else name,
        lambda pictures: load().embed(pictures),
        lambda texts: load().embed_text(texts),
        lambda pictures: load().maps(pictures),
    )


def _installed(name: str, models: Sequence[Path]) -> Path | None:
    places = (place_of(group, models) for group in NETWORKS[name].groups)
    return next((found for found in places if found is not None), None)
