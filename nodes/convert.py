"""Between ComfyUI's tensors (channels last) and the ones of ``pipelines`` (channels first)."""

import logging
from collections.abc import Callable
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import torch

from ..pipelines import images


def to_pipeline(image: torch.Tensor) -> torch.Tensor:
    """IMAGE ``[B, H, W, C]`` as ``[B, C, H, W]``."""
    return image.movedim(-1, 1)


def to_comfy(image: torch.Tensor) -> torch.Tensor:
    """``[B, C, H, W]`` as an IMAGE ``[B, H, W, C]`` on the device ComfyUI keeps images on."""
    return image.movedim(1, -1).contiguous().to(comfy.model_management.intermediate_device())


def cut_as_encoded(
    source: torch.Tensor, image: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``source`` ``[B, 3, H, W]``, and a ``mask`` of its size, cut to the size of ``image`` that was made from it.

    Where what VAE Encode cuts off a photo explains the two sizes the source loses it, too; others stay as they are.
    """
    size, own = tuple(image.shape[-2:]), tuple(source.shape[-2:])
    source, mask = images.cut_as_encoded(source, size, mask)
    if tuple(source.shape[-2:]) != own:
        logging.info("The source is %dx%d, the picture %dx%d: its border is cut off, as VAE Encode does.", *own[::-1],
                     *size[::-1])  # fmt: skip
    return source, mask


def warn_of_black(mask: torch.Tensor | None, node: str) -> None:
    """Tell in the log that a mask leaves ``node`` nothing to do: a picture that comes out as it went in tells no one.

    No error: a mask that another node made is rightly black where it found nothing.
    """
    if mask is not None and not mask.any():
        logging.warning(
            "%s: the mask is black, so nothing is done. Load Image gives a black mask of 64x64 for a picture without "
            "transparency: for the whole picture leave the mask unconnected.", node,
        )  # fmt: skip


def make_room(device: torch.device, size: tuple[int, int], planes: int) -> None:
    """Let ComfyUI free memory of ``device`` for that many float32 planes of ``size`` ``(H, W)``."""
    if device.type != "cpu":
        comfy.model_management.free_memory(4 * planes * size[0] * size[1], device)


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
