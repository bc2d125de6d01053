"""The trained files: one that every LoRA loader takes, the widened first convolution included, exactly.

A convolution of k x k with C channels is the product of its difference as a matrix [out, C k k] and the identity
[C k k, C, k, k]: a LoRA of rank C k k without any loss. ``reshape_weight`` has ComfyUI pad the base model's weight with
zero channels first. The same in two files serves separate strengths: half a first convolution is not half an effect.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .conditioning import ORDERS, slots

# Trained on the embedded models; its card lies beside it.
SHIPPED = Path(__file__).with_name("weights") / "relight.safetensors"
CONV_IN = "lora_unet_conv_in"
ORDER = "likeness_idetail_channels"


def padded(base: nn.Conv2d, channels: int) -> Tensor:
    """The weight of a convolution with zeros for further input channels, ``[out, channels, k, k]`` in float32."""
    weight = torch.zeros(base.out_channels, channels, *base.kernel_size, device=base.weight.device)
    weight[:, : base.in_channels] = base.weight.detach().float()
    return weight


class WidenedConv(nn.Conv2d):
    """A first convolution of more input channels: that of the base, padded with zeros, plus a trained ``change``.

    So what is trained is what a file says, whichever base it is for.
    """

    def __init__(self, base: nn.Conv2d, change: Tensor, bias_change: Tensor):
        super().__init__(change.shape[1], base.out_channels, base.kernel_size, padding=base.padding)
        self.weight = nn.Parameter(padded(base, change.shape[1]), requires_grad=False)
        self.bias = nn.Parameter(base.bias.detach().float(), requires_grad=False)
        self.change, self.bias_change = nn.Parameter(change.float()), nn.Parameter(bias_change.float())

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight + self.change, self.bias + self.bias_change
        return self._conv_forward(x, weight.to(x.dtype), bias.to(x.dtype))

    def plain(self, dtype: torch.dtype) -> nn.Conv2d:
        """The same as one ordinary convolution."""
        conv = nn.Conv2d(self.in_channels, self.out_channels, self.kernel_size, padding=self.padding)
        conv.weight = nn.Parameter((self.weight + self.change).to(dtype), requires_grad=False)
        conv.bias = nn.Parameter((self.bias + self.bias_change).to(dtype), requires_grad=False)
        return conv


def train_conv_in(
    unet: nn.Module, order: str = ORDERS[0], into: str = "noisy", change: tuple[Tensor, Tensor] | None = None
) -> None:
    """Give a diffusers UNet the nine channels, with a ``WidenedConv`` as its first layer.

    ``change``: (of the weight, of the bias) as trained before; None: the weights of the base model stand in the slot
    ``into`` and zeros in the others, so the network predicts as the base does. Raises ``ValueError`` where the UNet is
    no text-to-image model.
    """
    check_base(unet)
    base, latent = unet.conv_in, unet.config.out_channels
    channels = 2 * latent + 1
    if change is None:
        weight = -padded(base, channels)
        weight[:, slots(order, latent)[into]] += base.weight.detach().float()
        change = weight, torch.zeros_like(base.bias, dtype=torch.float32)
    unet.conv_in = WidenedConv(base, *(part.to(base.weight.device) for part in change))
    unet.register_to_config(in_channels=channels)


def check_base(unet: nn.Module) -> None:
    """Raise ``ValueError`` where the UNet is no text-to-image model, or one that was widened already."""
    have, wanted = unet.conv_in.in_channels, unet.config.out_channels
    if have != wanted:
        raise ValueError(f"the UNet has {have} input channels, a text-to-image model {wanted}: give the base model.")


def conv_in_tensors(change: Tensor, bias_change: Tensor) -> dict[str, Tensor]:
    """The change ``[out, 9, k, k]`` of the padded first convolution as a LoRA, in float32."""
    rank = change[0].numel()
    return {
        f"{CONV_IN}.lora_up.weight": change.float().reshape(len(change), rank, 1, 1).contiguous(),
        f"{CONV_IN}.lora_down.weight": torch.eye(rank).reshape(rank, *change.shape[1:]).contiguous(),
        f"{CONV_IN}.alpha": torch.tensor(float(rank)),
        f"{CONV_IN}.reshape_weight": torch.tensor(change.shape),
        f"{CONV_IN}.diff_b": bias_change.float().contiguous(),
    }


def conv_in_change(tensors: dict[str, Tensor], base: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """The inverse of ``conv_in_tensors``, for the model whose first convolution is ``base``.

    Raises ``ValueError`` where tensors are missing or belong to a model of another width.
    """
    names = [f"{CONV_IN}.{part}" for part in ("lora_up.weight", "lora_down.weight", "reshape_weight", "diff_b")]
    lacking = [name for name in names if name not in tensors]
    if lacking:
        raise ValueError(f"the file has no {lacking[0]}: give one that idetail-conv-in or idetail-lora exported.")
    up, down, shape, bias = (tensors[name] for name in names)
    shape = tuple(int(side) for side in shape)
    wanted = (base.out_channels, 2 * base.in_channels + 1, *base.kernel_size)
    if shape != wanted:
        raise ValueError(
            f"the file's first convolution is {shape}, this model's would be {wanted}: it was trained on another base."
        )
    return (up.float().flatten(1) @ down.float().flatten(1)).reshape(shape), bias.float()


def is_conv_in(name: str) -> bool:
    """Whether a tensor of the file belongs to the first convolution."""
    return name.startswith(f"{CONV_IN}.")


def split_adapter(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(first convolution, all the rest)."""
    return (
        {name: tensor for name, tensor in tensors.items() if is_conv_in(name)},
        {name: tensor for name, tensor in tensors.items() if not is_conv_in(name)},
    )


def read_adapter(path: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors, order of the channels) of a file that one of the two tasks exported.

    Raises ``ValueError`` for another file, or one whose order of channels is not known here.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            order = (file.metadata() or {}).get(ORDER)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give a file of idetail-lora or idetail-conv-in.") from error
    if order is None:
        raise ValueError(f"{path} does not say the order of its channels: it is no file of IDetail's training here.")
    slots(order)
    return tensors, order


def apply_conv_in(unet: nn.Module, tensors: dict[str, Tensor], order: str = ORDERS[0]) -> None:
    """Widen the UNet of a base model for good and give it the trained first convolution."""
    check_base(unet)
    dtype = unet.dtype  # asked before the first layer, which it is read from, is another one in float32
    train_conv_in(unet, order, change=conv_in_change(tensors, unet.conv_in))
    unet.conv_in = unet.conv_in.plain(dtype)


def apply_adapter(unet: nn.Module, path: Path, strength: float = 1.0) -> str:
    """Merge a whole exported file into a diffusers UNet; returns the order of its channels.

    ``strength`` is of the LoRA; the first convolution is always whole. Raises ``ValueError`` as ``read_adapter``.
    """
    from ..training.lora import merge_kohya  # the whole trainer, which reading a file in ComfyUI need not wait for

    tensors, order = read_adapter(path)
    first, rest = split_adapter(tensors)
    apply_conv_in(unet, first, order)
    merge_kohya(unet, rest, strength)
    return order
