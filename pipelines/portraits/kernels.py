"""Whether the compiled renderer can be had: numba is no requirement, for a ComfyUI that only edits never renders."""

import functools
import importlib
import sys
from types import ModuleType

ON_DISK = True  # whether what is compiled is kept for the next process


@functools.cache
def _found() -> tuple[ModuleType | None, str]:
    """The module and "", or None and the reason. What numba raises where it is half installed, or does not know numpy,
    or what it kept is damaged, is anything."""
    global ON_DISK
    reason = ""
    try:
        importlib.import_module("numba")
    except ModuleNotFoundError:
        return None, f'it is not installed: "{sys.executable}" -m pip install numba'
    except Exception as error:
        return None, f"it cannot be loaded: {error}"
    for on_disk in (True, False):
        ON_DISK = on_disk
        sys.modules.pop(f"{__package__}.compiled", None)
        try:
            compiled = importlib.import_module(f"{__package__}.compiled")
            compiled.try_out()
            return compiled, ""
        except Exception as error:
            reason = f"it fails: {type(error).__name__}: {error}"
    return None, reason


def kernels() -> ModuleType | None:
    """The module ``compiled``, or None where numba is of no use."""
    return _found()[0]


def why_slow() -> str:
    """What to tell who waits for many pictures from a processor; empty where the compiled renderer is there."""
    reason = _found()[1]
    return reason and f"Without numba processors render portraits at half the speed, and {reason}"
