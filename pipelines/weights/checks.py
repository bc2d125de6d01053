"""What must hold of weights that are loaded or written, and the hash that names them."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..files import atomic_file


def check_weights(module: torch.nn.Module, name: str) -> None:
    """Raise ``ValueError`` naming the first tensor of ``module`` that was not loaded, or is NaN or infinite."""
    for key, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_meta:
            raise ValueError(f"{name} lacks the weights of {key}: get the whole file again.")
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise ValueError(
                f"{name}: {bad} of the {value.numel()} values of {key} are NaN or infinite, "
                "the model was saved broken: use another copy of it."
            )


def save_finite(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], mend: str) -> None:
    """Write a safetensors file, whole or not at all. Raises ``ValueError``, with ``mend``, for what is not finite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite in {tensor.dtype}: {mend}.")
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def model_hash(module: torch.nn.Module) -> str:
    """SHA-256 in hexadecimal over names, types, shapes and bytes of the module's state dict.

    Equal weights in equal types give equal hashes, whichever kind of file they came from.
    """
    digest = hashlib.sha256()
    for name, value in sorted((_canonical(name), value) for name, value in module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _canonical(name: str) -> str:
    # transformers 5.6 took this level out of CLIPTextModel.
    return name.removeprefix("text_model.")
