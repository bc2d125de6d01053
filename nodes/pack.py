"""Loads the pack for scripts: by file location, under an alias, the way ComfyUI does.

The checkout never goes on ``sys.path``: its folder ``nodes`` would hide ComfyUI's module of that name. Standard library
only, so that a script can import it first.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALIAS = "likeness"


def load_pack():
    """Make ``import likeness.pipelines...`` work; returns the pack's module."""
    if ALIAS not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            ALIAS, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[ALIAS] = module
        spec.loader.exec_module(module)
    return sys.modules[ALIAS]


def quiet_libraries() -> None:
    """Keep transformers from telling of optional packages and from showing bars where a script shows its own."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
