"""Sets up and runs the checks of this repository: `python tests/run.py [--slow] [pytest arguments]`.

Needs nothing but a Python >= 3.10. Lints, runs the tests that need no ComfyUI in `.venv`, then those in
`tests/comfyui` in a real ComfyUI, if there is one, with a Python of its own. Ends with 0 only if nothing failed.

Without pytest arguments two files of tests run at a time, where there are two cores: most tests are of models too small
to gain from a second thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from comfyui_environment import comfyui_python, environment, load_script

MODULES = (
    *("torch", "diffusers", "transformers", "safetensors", "insightface", "cv2", "numpy", "einops", "huggingface_hub"),
    *("skimage", "aiohttp", "accelerate", "tensorboardX", "tomlkit"),
    *("pytest", "xdist", "ruff", "piq", "webdataset", "numba"),
)
EXTRA_REQUIREMENTS = ("pytest", "pytest-xdist", "ruff", "webdataset", "numba")
# piq wants torchvision for scores that we do not compare with, and torchvision a matching build of torch.
WITHOUT_DEPENDENCIES = ("piq==0.8.0",)
NO_TESTS_COLLECTED = 5
WORKERS = 2


def main(arguments: list[str]) -> int:
    """Run every part, also after one has failed; return the exit code."""
    started = time.perf_counter()
    environment.ensure_environment(MODULES, EXTRA_REQUIREMENTS, WITHOUT_DEPENDENCIES)
    slow = "--slow" in arguments
    chosen = [argument for argument in arguments if argument != "--slow"]
    selection = chosen if slow else ["-m", "not slow", *chosen]
    if not chosen:
        selection += _side_by_side()
    results = {
        "lint": _run("Lint", [sys.executable, "-m", "ruff", "check", "."], environment.ROOT),
        "unit tests": _pytest("Tests without ComfyUI", sys.executable, [".", "--ignore=comfyui", *selection]),
        "ComfyUI tests": _comfyui_tests(selection),
    }
    verdict = _verdict(list(results.values()), tests_were_chosen=bool(chosen))
    words = {0: "passed", None: "SKIPPED", NO_TESTS_COLLECTED: "no tests"}
    summary = ", ".join(f"{name}: {words.get(code, 'FAILED')}" for name, code in results.items())
    print(f"\n== {summary} ({time.perf_counter() - started:.0f} s)")
    return verdict


def _side_by_side() -> list[str]:
    """Arguments that let files of tests run beside each other, each with one thread."""
    workers = min(WORKERS, os.cpu_count() or 1)
    if workers == 1:
        return []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ["-n", str(workers), "--dist", "loadfile"]


def _comfyui_tests(selection: list[str]) -> int | None:
    """Run tests/comfyui; return pytest's exit code, or None when they were skipped."""
    try:
        comfyui_dir = load_script("comfyui_server").find_comfyui(environment.ROOT)
        python = comfyui_python(comfyui_dir)
    except (ValueError, environment.SetupError) as error:
        print(f"\nThe tests in a real ComfyUI could not start. {error}", flush=True)
        return 1
    if python is None:
        _announce_skip()
        return None
    os.environ.update(COMFYUI_DIR=str(comfyui_dir), COMFYUI_PYTHON=str(python))
    return _pytest(f"Tests in the ComfyUI at {comfyui_dir}", str(python), ["comfyui", *selection])


def _pytest(title: str, python: str, arguments: list[str]) -> int:
    # In tests/, because `-m pytest` puts the working directory on sys.path, where our `nodes` would hide ComfyUI's.
    return _run(title, [python, "-m", "pytest", *arguments], Path(__file__).resolve().parent)


def _run(title: str, command: list[str], folder: Path) -> int:
    print(f"\n== {title}", flush=True)
    return subprocess.call(command, cwd=folder)


def _announce_skip() -> None:
    bar = "!" * 100
    print(
        f"\n{bar}\n"
        "!! SKIPPED: the integration tests (tests/comfyui). No ComfyUI was found.\n"
        "!! Nothing was checked inside a real ComfyUI: nodes, hooks and graphs are untested by this run.\n"
        "!! Looked at: the variable COMFYUI_DIR (not set), a custom_nodes folder around this checkout, ~/ComfyUI.\n"
        "!! To run them: set COMFYUI_DIR to a ComfyUI folder (0.28 or newer) and start this again.\n"
        f"{bar}",
        flush=True,
    )


def _verdict(codes: list[int | None], tests_were_chosen: bool) -> int:
    """Return 0 if no part failed and a test ran. A choice of tests (-k ...) may leave one part without any."""
    harmless = {0, None, NO_TESTS_COLLECTED} if tests_were_chosen else {0, None}
    lint, *tests = codes
    return 0 if lint == 0 and 0 in tests and set(tests) <= harmless else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
