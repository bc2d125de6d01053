"""Checkpoints of the five methods in the forms in which they were published, by exact names and shapes.

``load_published`` reads a file (safetensors or pickle), takes off what wrappers put around the names, and holds the
tensors against the shapes of the network they belong to: nothing is left out and nothing is ignored silently.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .architectures import Shapes, count
from .face_networks import elite_mapper, elite_names, idsync_classifier, ir_network, retinaface, without_counters
from .layer_shapes import linear, norm
from .tensors import load_tensors

SHOWN = 5
# What training scripts put around a model's names.
WRAPPERS = ("module.", "state_dict.", "model_state_dict.", "_orig_mod.", "unet.", "model.net.")
LDM_UNET = ("model.diffusion_model.", "diffusion_model.")


@dataclass(frozen=True)
class Published:
    """One kind of checkpoint: the tensors wanted, and the files it goes by, the first being the usual one."""

    files: tuple[str, ...]
    shapes: Callable[[], Shapes]
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


def load_published(path: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names in our networks (diffusers' where it is one of theirs).

    path: the file, or a folder that holds it under one of its usual names; kind: a key of ``PUBLISHED``. Raises
    ``ValueError`` for a missing or damaged file, and where names or shapes differ, with the names.
    """
    if kind not in PUBLISHED:
        raise ValueError(f"no published checkpoint is called {kind!r}: known are {', '.join(PUBLISHED)}.")
    published, path = PUBLISHED[kind], Path(path)
    if path.is_dir():
        found = [path / name for name in published.files if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path} holds none of {', '.join(published.files)}: put the {kind} checkpoint there.")
        path = found[0]
    tensors = published.rename(unwrapped(load_tensors(path)))
    check_names(tensors, published.shapes(), f"{path} ({kind})")
    return tensors


def unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that all names share and that training scripts put there."""
    while prefix := next((one for one in WRAPPERS if tensors and all(name.startswith(one) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def check_names(tensors: dict[str, Tensor], wanted: Shapes, what: str) -> None:
    """Raise ``ValueError`` naming what is missing, what is not known, and what has another shape."""
    missing = sorted(set(wanted) - set(tensors))
    unknown = sorted(set(tensors) - set(wanted))
    other = [
        f"{name} {tuple(tensors[name].shape)}, wanted {tuple(wanted[name])}"
        for name in sorted(set(wanted) & set(tensors))
        if not _fits(tensors[name].shape, wanted[name])
    ]
    faults = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for kind, names in (("missing", missing), ("not known", unknown), ("of another shape", other))
        if names
    ]
    if faults:
        raise ValueError(f"{what} is not built as expected. {'; '.join(faults)}. Is it the right file, whole?")


def _fits(shape: Iterable[int], wanted: Iterable[int | None]) -> bool:
    """Whether a shape is the wanted one, where None is any length."""
    shape, wanted = tuple(shape), tuple(wanted)
    return len(shape) == len(wanted) and all(one in (None, other) for one, other in zip(wanted, shape, strict=True))


def diffusers_unet(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an SD1.x or SD2.x UNet under diffusers' names, from those or from ComfyUI's (LDM) names."""
    for prefix in LDM_UNET:
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        tensors = inside or tensors
    if not any(name.startswith("input_blocks.") for name in tensors):
        return tensors
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    layers = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    found = convert_ldm_unet_checkpoint({LDM_UNET[0] + name: tensor for name, tensor in tensors.items()}, layers)
    kept = {id(tensor) for tensor in found.values()}
    lost = [name for name, tensor in tensors.items() if id(tensor) not in kept]
    if lost:
        raise ValueError(f"{len(lost)} names belong to no UNet of SD1.x or SD2.x: {', '.join(lost[:SHOWN])}.")
    return found


def resampler(output: int, layers: int = 4, width: int = 1280, tokens: int = 16, inputs: int = 512) -> Shapes:
    """The perceiver that turns a face embedding into tokens (IP-Adapter's Resampler; MCLD, InstantID)."""
    shapes = {"latents": (1, tokens, width)} | linear("proj_in", inputs, width) | linear("proj_out", width, output)
    shapes |= norm("norm_out", output)
    for layer in range(layers):
        attention, feed_forward = f"layers.{layer}.0", f"layers.{layer}.1"
        shapes |= norm(f"{attention}.norm1", width) | norm(f"{attention}.norm2", width)
        shapes |= linear(f"{attention}.to_q", width, width, False)
        shapes |= linear(f"{attention}.to_kv", width, 2 * width, False)
        shapes |= linear(f"{attention}.to_out", width, width, False)
        shapes |= norm(f"{feed_forward}.0", width)
        shapes |= linear(f"{feed_forward}.1", width, 4 * width, False)
        shapes |= linear(f"{feed_forward}.3", 4 * width, width, False)
    return shapes


def pose_guider() -> Shapes:
    """MCLD's pose guider (its method notes, section 2)."""
    names = ["conv_in", *(f"blocks.{number}" for number in range(6)), "conv_out"]
    widths = (3, 16, 16, 32, 32, 96, 96, 256, 320)
    shapes = {}
    for name, inputs, outputs in zip(names, widths, widths[1:], strict=False):
        shapes |= {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}
    return shapes


def dreampose_adapter() -> Shapes:
    """DreamPose's image adapter at 640x512; MCDM's has another first layer (1024 wide)."""
    return linear("vae2clip", 1280, 768) | linear("linear1", 54, 50)


@cache
def sd15_unet() -> Shapes:
    """All names and shapes of diffusers' SD1.5 UNet."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    return {name: tuple(value.shape) for name, value in unet.state_dict().items()}


@cache
def sd15_text_encoder() -> Shapes:
    """All names and shapes of SD1.5's text encoder (CLIP ViT-L/14) as its published files have them."""
    return _text_encoder(768, 12, 12)


def _text_encoder(width: int, layers: int, heads: int) -> Shapes:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads
    )
    with torch.device("meta"):
        encoder = CLIPTextModel(config)
    # transformers 5.6 took the first level out of its own names; files have it.
    return {
        f"text_model.{name.removeprefix('text_model.')}": tuple(value.shape)
        for name, value in encoder.state_dict().items() if not name.endswith("position_ids")
    }  # fmt: skip


@cache
def sd21_unet() -> Shapes:
    """All names and shapes of diffusers' SD2.1 UNet, which IDSync fine-tunes."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True, sample_size=96
        )
    return {name: tuple(value.shape) for name, value in unet.state_dict().items()}


@cache
def sd21_text_encoder() -> Shapes:
    """All names and shapes of SD2.1's text encoder (OpenCLIP ViT-H/14 but its last layer), which IDSync fine-tunes."""
    return _text_encoder(1024, 23, 16)


def text_encoder_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of published files; the count of positions, which old files keep, is no weight."""
    return {
        f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in tensors.items() if not name.endswith("position_ids")
    }  # fmt: skip


def mcld_unet() -> Shapes:
    """SD1.5's UNet and the face branch's keys and values at each of its 16 cross-attention layers."""
    shapes = dict(sd15_unet())
    for name, shape in sd15_unet().items():
        for part in ("to_k", "to_v"):
            if name.endswith(f"attn2.{part}.weight"):
                shapes[name.replace(f".{part}.", f".processor.{part}_ip.")] = shape
    return shapes


def mcld_reference_unet() -> Shapes:
    """SD1.5's UNet without its end: only the features on the way are used."""
    return {name: shape for name, shape in sd15_unet().items() if not name.startswith(("conv_norm_out", "conv_out"))}


def ip_adapter_names(processors: Iterable[str]) -> dict[str, str]:
    """From the names in IP-Adapter files ("1.to_k_ip.weight") to those of a diffusers UNet's attention processors.

    processors: the keys of ``unet.attn_processors``, in their order, which the numbers count.
    """
    return {
        f"{number}.{part}_ip.weight": f"{name}.{part}_ip.weight"
        for number, name in enumerate(processors)
        if ".attn2." in name
        for part in ("to_k", "to_v")
    }


def resampler_like(tensors: dict[str, Tensor], output: int) -> Shapes:
    """The shapes of the resampler whose size these tensors tell, into contexts ``output`` wide.

    What they do not tell is as published, so that the tensors that lack are named.
    """
    sizes = {}
    if len(latents := tensors.get("latents", torch.empty(0)).shape) == 3:
        sizes |= {"tokens": latents[1], "width": latents[2]}
    if len(entry := tensors.get("proj_in.weight", torch.empty(0)).shape) == 2:
        sizes["inputs"] = entry[1]
    if layers := count(tensors, "layers.{}."):
        sizes["layers"] = layers
    return resampler(output, **sizes)


def split_instantid(path: Path, unet) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(image projector, attention weights by processor name) of InstantID's ``ip-adapter.bin`` for a UNet of diffusers.

    Sizes of the projector are read off its tensors; all else has to fit the UNet. Raises ``ValueError`` where names or
    shapes differ.
    """
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    tensors = load_tensors(path)
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"{path} is no InstantID adapter: it holds {name}; wanted are image_proj and ip_adapter.")
        parts[part][rest] = tensor
    width = unet.config.cross_attention_dim
    check_names(parts["image_proj"], resampler_like(parts["image_proj"], width), f"{path} (image_proj)")
    names, state = ip_adapter_names(unet.attn_processors), unet.state_dict()
    shapes = {
        name: tuple(state[place.replace(".processor.", ".").replace("_ip.", ".")].shape)
        for name, place in names.items()
    }  # fmt: skip
    check_names(parts["ip_adapter"], shapes, f"{path} (ip_adapter)")
    return parts["image_proj"], {names[name]: tensor for name, tensor in parts["ip_adapter"].items()}


PUBLISHED = {
    "sd15-unet": Published(("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"), sd15_unet,
                           diffusers_unet),  # also Arc2Face's arc2face/
    "sd15-text-encoder": Published(("model.safetensors", "pytorch_model.bin"), sd15_text_encoder,
                                   text_encoder_names),  # also Arc2Face's encoder/
    "sd21-unet": Published(("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"), sd21_unet,
                           diffusers_unet),  # also IDSync's
    "sd21-text-encoder": Published(("model.safetensors", "pytorch_model.bin"), sd21_text_encoder,
                                   text_encoder_names),  # also IDSync's
    "mcld-unet": Published(("denoising_unet.pth",), mcld_unet),
    "mcld-reference-unet": Published(("reference_unet.pth",), mcld_reference_unet, diffusers_unet),
    "mcld-pose-guider": Published(("pose_guider.pth",), pose_guider),
    # The README, the loader and the training of its authors each write another name.
    "mcld-projector": Published(("image_projector.pth", "image_proj_model.pth"), lambda: resampler(768)),
    "dreampose-adapter": Published(("adapter.pth", "custom_chkpts.pth"), dreampose_adapter),
    "elite-mapper": Published(("global_mapper.pt",), lambda: elite_mapper(sd15_unet()),
                              lambda tensors: elite_names(tensors, sd15_unet())),
    # Its authors' training names the file after run and accuracy: give the file, or this name of ours in a folder.
    "idsync-classifier": Published(("idsync_classifier.pth",), idsync_classifier, without_counters),
    "adaface-ir50": Published(("model.safetensors",), lambda: ir_network(50), without_counters),
    "adaface-ir101": Published(("model.safetensors",), lambda: ir_network(101), without_counters),
    "retinaface": Published(("Resnet50_Final.pth", "detection_Resnet50_Final.pth"), retinaface, without_counters),
}  # fmt: skip
