"""Loads the pack the way ComfyUI does: by file location, under an alias, without touching ``sys.path``."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load_pack(alias: str = "likeness"):
    if alias not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            alias, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module
        spec.loader.exec_module(module)
    return sys.modules[alias]


load_pack()
