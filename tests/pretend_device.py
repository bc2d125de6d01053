"""A second device for machines that have none: it counts on the CPU, and refuses what a GPU refuses.

What runs on a GPU must not mix tensors of two devices nor take numpy arrays from it; a test on a CPU alone cannot tell.
Tensors of this device name it as theirs, so such mistakes end here in the errors that they end in there. Numbers are
the CPU's, so results can be compared exactly. Not shown: speed, memory, and what kernels of a real GPU do.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
CPU = torch.device("cpu")
COPIES = ("aten._to_copy.default", "aten.copy_.default")  # which may go from one device to another
INDEXED = ("aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default", "aten._index_put_impl_.default")


class PretendTensor(torch.Tensor):
    """Says that it is on the device; ``inner`` on the CPU holds its numbers."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=torch.device(NAME, 0), **layout)

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _computed(function, args, kwargs or {})

    def __repr__(self):
        return f"{NAME}({self.inner})"

    def tolist(self):
        return self.inner.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy


def _is_there(value) -> bool:
    return isinstance(value, PretendTensor)


def _inner(value):
    return value.inner if _is_there(value) else value


def _check_devices(function, args, tensors) -> None:
    """The error of torch for tensors of two devices. Single numbers and indices may be the CPU's, as on a GPU."""
    name = str(function)
    if name in COPIES or not any(map(_is_there, tensors)):
        return
    strangers = [tensor for tensor in tensors if tensor.ndim and not _is_there(tensor)]
    if name in INDEXED and _is_there(args[0]):
        strangers = [tensor for tensor in strangers if tensor.dtype in (torch.bool, torch.uint8, torch.int64)]
        strangers = [tensor for tensor in strangers if all(tensor is not index for index in args[1])]
    if strangers:
        places = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {places}")


def _goes_there(function, args, kwargs, tensors) -> bool:
    """Whether the results are on the device."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type == NAME
    return any(map(_is_there, args[:1] if str(function) == "aten.copy_.default" else tensors))


def _check_apple(function, args, kwargs, result) -> None:
    """Errors of what Apple's GPUs cannot do, or do wrong: a copy from here that goes on while its source may be freed.

    Such copies stand last in the arguments of ``copy_``, by name in those of ``_to_copy``.
    """
    if any(getattr(leaf, "dtype", None) is torch.float64 for leaf in tree_leaves(result)):
        raise TypeError(f"{NAME} has no float64, as Apple's GPUs have none ({function})")
    goes_on = kwargs.get("non_blocking") or (str(function) == "aten.copy_.default" and args[2:] == (True,))
    if goes_on and not all(map(_is_there, (leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)))):
        raise RuntimeError(f"{NAME} may read a tensor of the CPU after it is freed: copy it without non_blocking")


def _computed(function, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    _check_devices(function, args, tensors)
    there = _goes_there(function, args, kwargs, tensors)
    on_cpu = {name: value for name, value in (("device", CPU), ("pin_memory", False)) if kwargs.get(name) is not None}
    with _disable_current_modes():
        result = function(*tree_map(_inner, args), **{**tree_map(_inner, kwargs), **on_cpu})
    if there and getattr(torch, NAME).apple:
        _check_apple(function, args, kwargs, result)
    known = {id(_inner(tensor)): tensor for tensor in tensors if _is_there(tensor) == there}

    def outer(value):
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else PretendTensor(value) if there else value

    return tree_map(outer, result)


class _Generator(torch.Generator):
    """A generator of the device is one of the CPU."""

    def __new__(cls, device=CPU):
        return super().__new__(cls, CPU if torch.device(device).type == NAME else device)


class _Mode(TorchDispatchMode):
    """Sees what is made on the device, beside what its tensors see themselves."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _computed(function, args, kwargs or {})


class _Module:
    """What torch asks about a kind of device; there is none but in ``pretend_device``."""

    active, apple = False, True

    def is_available(self) -> bool:
        return self.active

    is_initialized = is_available

    def device_count(self) -> int:
        return int(self.active)

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def register_device() -> bool:
    """Tell torch of the device, which none sees before ``pretend_device``; whether torch can be told.

    To be called before the first gradient of a process: autograd counts kinds of devices once.
    """
    register = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if register is not None and not hasattr(torch, NAME):
        register(NAME, _Module())
    return register is not None


@contextmanager
def pretend_device(apple: bool = True):
    """The device, for as long as the block lasts; the test is skipped where torch cannot be given one.

    apple: whether it is as weak as Apple's GPUs: no float64, no copies from the CPU that do not wait.
    """
    if not register_device():
        pytest.skip(f"torch {torch.__version__} takes no device written in Python: nothing was tried beside the CPU")
    module, generator, lifts = getattr(torch, NAME), torch.Generator, torch._C._only_lift_cpu_tensors()
    module.active, module.apple, torch.Generator = True, apple, _Generator
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes its tensor here and then sends it
    try:
        with _Mode():
            yield torch.device(NAME, 0)
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        module.active, torch.Generator = False, generator
