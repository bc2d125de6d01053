"""What the benchmarks share: the pack under its alias, peak memory, tables in README."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from comfyui_environment import load_script  # noqa: E402


def load_pack() -> None:
    load_script("pack").load_pack()


def best_seconds(action: Callable[[], object], repeats: int = 3, clock=time.perf_counter) -> float:
    """The best of ``repeats`` times by ``clock``, after one run that does not count."""
    action()
    taken = []
    for _ in range(repeats):
        start = clock()
        action()
        taken.append(clock() - start)
    return min(taken)


def reset_resident_peak() -> None:
    """Linux: 5 resets the peak to what the process holds now, so that what came before does not count."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> float:
    """Peak resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def write_into_readme(name: str, text: str) -> None:
    """Put ``text`` between the marks of the benchmark ``name``."""
    from likeness.pipelines.files import write_between

    write_between(ROOT / "README.md", f"benchmark:{name}", text)
