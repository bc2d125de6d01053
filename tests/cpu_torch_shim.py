"""Lets ComfyUI start where torchvision's operators or torchaudio do not load (a CPU build of torch beside them).

`comfyui_environment.py` copies this file into the site-packages of the test environment, with a `.pth` line that
calls `install`. It is no part of the product: a user's machine has builds that match.

Runs at every interpreter start of that environment, so it imports nothing heavy: torch is imported only when
torchvision is.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_libraries = []  # a Library takes its operators with it when it is collected


def install(*packages):
    """Help the named packages ("torchvision", "torchaudio") to import."""
    finders = {"torchvision": TorchvisionFinder, "torchaudio": TorchaudioFinder}
    sys.meta_path[:0] = [finders[name]() for name in packages]


class TorchvisionFinder(MetaPathFinder):
    """Finds the installed torchvision and has its operators declared before it runs."""

    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == "torchvision" else None
        if spec is not None:
            spec.loader = TorchvisionLoader(spec.loader.name, spec.loader.path)
        return spec


class TorchvisionLoader(SourceFileLoader):
    """Declares the operators that torchvision registers fake kernels for; they exist but cannot be called."""

    def exec_module(self, module):
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(operator + SCHEMA)
        _libraries.append(library)
        super().exec_module(module)


class TorchaudioFinder(MetaPathFinder, Loader):
    """Supplies empty modules for torchaudio and all below it: they import, and fail when something is used."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchaudio":
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        return None
