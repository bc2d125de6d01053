"""Between ComfyUI's tensors (channels last) and the ones of ``pipelines`` (channels first)."""

from collections.abc import Callable
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import torch


def to_pipeline(image: torch.Tensor) -> torch.Tensor:
    """IMAGE ``[B, H, W, C]`` as ``[B, C, H, W]``."""
    return image.movedim(-1, 1)


def to_comfy(image: torch.Tensor) -> torch.Tensor:
    """``[B, C, H, W]`` as an IMAGE ``[B, H, W, C]`` on the device ComfyUI keeps images on."""
    return image.movedim(1, -1).contiguous().to(comfy.model_management.intermediate_device())


def compute_device(device: torch.device | None = None) -> torch.device:
    """Where image optimisation runs: ``device`` (default: ComfyUI's) if it is a CUDA or ROCm GPU, else the CPU.

    The CPU version is the faster choice next to any other kind of device.
    """
    device = device or comfy.model_management.get_torch_device()
    return device if device.type == "cuda" else torch.device("cpu")


def interrupt_check(*_progress) -> None:
    """Raise ComfyUI's interrupt if a person pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def node_progress() -> Callable[[int, int], None]:
    """``on_step(done, total)`` for the loops of ``pipelines``: moves the node's bar, and lets Cancel end the work."""
    bar = comfy.utils.ProgressBar(1)

    def on_step(done: int, total: int) -> None:
        interrupt_check()
        bar.update_absolute(done, total)

    return on_step


@contextmanager
def named_errors(node: str):
    """Puts a node's name before errors that surface in another one, such as the sampler's."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error
