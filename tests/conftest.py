"""Makes ``import likeness.pipelines...`` work in tests, the way the scripts do."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("pack", Path(__file__).resolve().parents[1] / "nodes" / "pack.py")
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
pack.load_pack()
