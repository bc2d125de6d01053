"""Whether the compiled renderer can be had: numba is no requirement, for a ComfyUI that only edits never renders."""

import functools
import importlib
import sys
from types import ModuleType


@functools.cache
def _found() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"{__package__}.compiled"), ""
    except ImportError as error:  # also numba's for a numpy that is newer than it knows
        return None, str(error)


def kernels() -> ModuleType | None:
    """The module ``compiled``, or None where numba cannot be imported."""
    return _found()[0]


def why_slow() -> str:
    """What to tell who waits for many pictures from a processor; empty where the compiled renderer is there."""
    reason = _found()[1]
    advice = f"{sys.executable} -m pip install numba"
    return reason and f"Without numba ({reason}) processors render portraits at half the speed. To have it: {advice}"
