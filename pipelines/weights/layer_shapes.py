"""Names and shapes of the layers that published networks are made of, as torch writes them."""

from .architectures import Shapes


def linear(name: str, inputs: int, outputs: int | None, bias: bool = True) -> Shapes:
    """Shapes of a linear layer; ``outputs`` None: as many as there are."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    """Shapes of a normalisation with scale and shift."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def convolution(name: str, inputs: int, outputs: int, side: int = 3, bias: bool = False) -> Shapes:
    """Shapes of a convolution with square kernels."""
    return {f"{name}.weight": (outputs, inputs, side, side)} | ({f"{name}.bias": (outputs,)} if bias else {})


def batch_norm(name: str, width: int, affine: bool = True) -> Shapes:
    """Shapes of a batch normalisation; its counter of batches is no weight, and not every file has it."""
    running = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return running | (norm(name, width) if affine else {})
