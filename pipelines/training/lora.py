"""Low-rank adapters on a UNet (Hu et al. 2021), and the file format every LoRA loader reads (kohya's)."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ..randomness import seed_of
from ..weights.checks import save_finite

LAYERS = ("attention", "attention+convolution", "idetail", "all")
_IDETAIL = (
    *(".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj", ".ff.net.2"),
    *(".conv1", ".conv2", ".conv_shortcut", "samplers.0.conv"),
    *("time_embedding.linear_1", "time_embedding.linear_2"),
)


def target_layers(unet: nn.Module, layers: str) -> list[str]:
    """Names of the layers that get an adapter.

    attention: every linear layer and 1x1 convolution of the transformer blocks; attention+convolution: those of the
    residual, down- and upsampling blocks too; idetail: projections of attention, feed-forward, convolutions of the
    residual blocks and samplers, and the time embedding, which is what the parameter counts printed by IDetail
    (section 5) mean; all: every linear layer and convolution there is.
    """
    parts = {
        "attention": (".attentions.",),
        "attention+convolution": (".attentions.", ".resnets.", ".downsamplers.", ".upsamplers."),
        "all": ("",),
    }
    layers_of = [name for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if layers == "idetail":
        return [name for name in layers_of if name.endswith(_IDETAIL)]
    return [name for name in layers_of if any(part in f".{name}." for part in parts[layers])]


class Adapter(nn.Module):
    """The product of two small matrices beside a linear or convolutional layer: (alpha / rank) up(down(x)).

    A convolution's ``down`` has its kernel, stride and padding, its ``up`` is 1x1 (kohya's LoCon). Starts as zero.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float):
        super().__init__()
        if isinstance(layer, nn.Conv2d):
            shape = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
            self.down = nn.Conv2d(layer.in_channels, rank, **shape, bias=False)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.down.weight.dtype)
        return self.up(self.down(x)) * self.scale


def add_lora(unet: nn.Module, layers: str, rank: int, alpha: float, seed: int) -> None:
    """Freeze ``unet`` and give it float32 adapters that change nothing yet; the same seed gives the same ones.

    They hang on their layers as the submodule ``lora``, so every other parameter keeps its name.
    """
    unet.requires_grad_(False)
    targets = [unet.get_submodule(name) for name in target_layers(unet, layers)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "lora"))
        for layer in targets:
            layer.lora = Adapter(layer, rank, alpha)
            layer.register_forward_hook(_add_adapter)


def _add_adapter(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output + layer.lora(inputs[0]).to(output.dtype)


def kohya_tensors(weights: dict[str, Tensor], alpha: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Adapter weights by parameter name to kohya's keys: ``lora_unet_...``, ``.lora_down``, ``.lora_up``, ``.alpha``.

    The adapter adds (alpha / rank) up(down(x)).
    """
    tensors = {}
    for name, tensor in weights.items():
        layer, _, part = name.removesuffix(".weight").partition(".lora.")
        key = "lora_unet_" + layer.replace(".", "_")
        tensors[f"{key}.lora_{part}.weight"] = tensor.detach().to("cpu", dtype).contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(alpha), dtype=dtype)
    return tensors


@torch.no_grad()
def merge_kohya(unet: nn.Module, tensors: dict[str, Tensor], strength: float = 1.0) -> None:
    """Add a LoRA in kohya's form to the weights of a diffusers UNet: W + strength (alpha / rank) up down.

    Raises ``ValueError`` naming a tensor that has no place in this UNet, or another shape.
    """
    layers = {"lora_unet_" + name.replace(".", "_"): module for name, module in unet.named_modules()}
    for name in tensors:
        key, _, part = name.partition(".")
        if key not in layers or part not in ("lora_up.weight", "lora_down.weight", "alpha"):
            raise ValueError(f"{name} has no place in this UNet: the file was trained on another base model.")
        if part != "lora_up.weight":
            continue
        up, down = tensors[name].float(), tensors[f"{key}.lora_down.weight"].float()
        scale = float(tensors.get(f"{key}.alpha", torch.tensor(float(len(down))))) / len(down)
        weight = layers[key].weight
        change = (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        if change.shape != weight.shape:
            raise ValueError(
                f"{name} changes a weight of {tuple(change.shape)}, this UNet's is {tuple(weight.shape)}: "
                "the file was trained on another base model."
            )
        weight.copy_(weight.float() + strength * scale * change.to(weight.device))


def save_lora(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a LoRA file, whole or not at all."""
    save_finite(path, tensors, metadata, "export it again with --export-dtype fp32 or bf16")


def lora_metadata(
    tensors: dict[str, Tensor], *, title: str, facts: dict[str, str], resolution: int, rank: int, alpha: float,
    convolutions: bool, caption_dropout: float, min_snr_gamma: float = 0.0,
) -> dict[str, str]:  # fmt: skip
    """What LoRA managers (``ss_``) and ComfyUI (``modelspec.``, version 1.0.1) show of the file; all values are text.

    facts: the trainer's (``ss_...``, ``date``) and the task's (``describe``); convolutions: whether 3x3 ones have an
    adapter too.
    """
    versions = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
    modelspec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{facts['architecture']}/lora",
        "implementation": "https://github.com/huggingface/diffusers",
        "title": title,
        "resolution": f"{resolution}x{resolution}",
        "prediction_type": {"v_prediction": "v"}.get(facts["prediction_type"], facts["prediction_type"]),
        "date": facts["date"],
        "hash_sha256": _tensor_hash(tensors),
        "license": f"as its base model {facts['base']}: {facts['licence']}",
    }
    network = {
        "ss_base_model_version": versions[facts["family"]],
        "ss_v2": str(facts["family"] == "sd2"),
        "ss_sd_model_name": facts["base"],
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": f'{{"conv_dim": "{rank}", "conv_alpha": "{alpha}"}}' if convolutions else "{}",
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_min_snr_gamma": str(min_snr_gamma or None),
        "ss_caption_dropout_rate": str(caption_dropout),
    }
    rest = {name: value for name, value in facts.items() if name.startswith(("ss_", "likeness_"))}
    return {**rest, **network, **{f"modelspec.{name}": value for name, value in modelspec.items()}}


def _tensor_hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return f"0x{digest.hexdigest()}"
