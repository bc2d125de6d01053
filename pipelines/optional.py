"""Packages that are imported when they are needed, with an error that says how to get them."""

import importlib
import sys
from types import ModuleType


def need(module: str, package: str) -> ModuleType:
    """Import ``module``; where that fails, raise ``ImportError`` with the line that installs ``package``."""
    try:
        found = importlib.import_module(module)
        if getattr(found, "__file__", None) is None:
            raise ModuleNotFoundError(f"{module!r} is only a folder of that name, {list(found.__path__)}")
        return found
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{package} is needed here and not installed ({error}): run {sys.executable} -m pip install {package}"
        ) from error
    except ImportError as error:
        raise ImportError(
            f"{package} is installed but cannot be loaded ({error}). If a system library is missing on Debian or "
            "Ubuntu: sudo apt install libgl1 libglib2.0-0"
        ) from error
