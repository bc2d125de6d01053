"""The Python that runs a real ComfyUI in the tests; standard library only.

ComfyUI needs an environment of its own: it brings torchvision, which beside a CPU build of torch breaks
`import diffusers` for the headless tests.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

TESTS = Path(__file__).resolve().parent
SHIM = TESTS / "cpu_torch_shim.py"


def load_script(name: str) -> ModuleType:
    """Load `nodes/<name>.py` from its file: with the checkout on sys.path our `nodes` would hide ComfyUI's."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS.parent / "nodes" / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


environment = load_script("environment")
for name in ("terminal", "pack", "comfyui_server"):  # scripts import them by name
    load_script(name)


def comfyui_python(comfyui_dir: Path | None) -> Path | None:
    """Return the Python that runs `comfyui_dir` in tests, or None if there is no ComfyUI.

    $COMFYUI_PYTHON if set, else `.venv-comfyui` of this checkout, which is built first where needed.
    Raises environment.SetupError.
    """
    if comfyui_dir is None:
        return None
    if os.environ.get("COMFYUI_PYTHON"):
        return _checked(Path(os.environ["COMFYUI_PYTHON"]))
    ours = environment.requirement_lines(environment.ROOT / "requirements.txt")
    # No torchaudio: none loads beside a CPU build of torch, and no test of ours hears anything.
    theirs = [
        line
        for line in environment.requirement_lines(Path(comfyui_dir, "requirements.txt"))
        if re.split(r"[^\w-]", line)[0] not in ("torch", "torchvision", "torchaudio")
    ]
    torch, torchvision = environment.TESTED_BUILDS
    steps = [[torch], ["--no-deps", torchvision], [*theirs, *ours, "pytest", "pytest-xdist"]]
    return environment.create_environment(
        environment.ROOT / ".venv-comfyui", steps, finish=_mend_imports, salt=SHIM.read_text(encoding="utf-8")
    )


def _mend_imports(python: Path) -> None:
    """Install the work-around of `cpu_torch_shim.py` into this environment for the packages that do not import."""
    site_packages = Path(_output(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    path_file = site_packages / "likeness_cpu_torch.pth"
    path_file.unlink(missing_ok=True)
    broken = [name for name in ("torchvision", "torchaudio") if not _imports(python, name)]
    if not broken:
        return
    shutil.copy(SHIM, site_packages)
    path_file.write_text(f"import {SHIM.stem}; {SHIM.stem}.install(*{broken})\n", encoding="utf-8")
    still_broken = [name for name in broken if not _imports(python, name)]
    if still_broken:
        raise environment.SetupError(f"{python} cannot import {', '.join(still_broken)} even with {SHIM.name}.")


def _checked(python: Path) -> Path:
    if not _imports(python, "pytest"):
        raise environment.SetupError(
            f"COMFYUI_PYTHON is {str(python)!r}, which does not start or has no pytest: install pytest there, or unset "
            "the variable to have an environment made."
        )
    return python


def _imports(python: Path, name: str) -> bool:
    return environment.runs(python, "-c", f"import {name}")


def _output(python: Path, code: str) -> str:
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
