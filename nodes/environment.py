"""Virtual environments for the commands of this repository; needs nothing but a bare Python >= 3.10.

`ensure_environment` lets a script start with any Python: it returns at once where everything is there, else it
makes `.venv` in the checkout and starts the script again in it. Scripts of this folder write `import environment`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The builds we test with. They bind our own set-up commands only: requirements.txt, which a user's ComfyUI reads,
# never pins torch. Without them a package that wants torchvision pulls the newest one and another torch with it.
TESTED_BUILDS = ("torch==2.13.0", "torchvision==0.28.0")

# Of the files that pip puts below an environment the one with the longest name, a licence of torch 2.13, and what a
# Windows without long paths takes.
LONGEST_NAME, WINDOWS_LIMIT = 192, 259

# Set across the restart, so that an environment which still lacks a module ends in an error, not in a loop.
RESTARTED = "LIKENESS_RESTARTED"


class SetupError(RuntimeError):
    """An environment could not be made; the message says which step failed and what to do."""


def ensure_environment(
    required_modules: Iterable[str], extra_requirements: Sequence[str] = (), without_dependencies: Sequence[str] = ()
) -> None:
    """Return if this interpreter finds every top-level module of `required_modules`; else restart in `.venv`.

    `.venv` gets requirements.txt, `extra_requirements`, and `without_dependencies` without what those ask for. Ends the
    process with a message where that fails.
    """
    restarted = os.environ.pop(RESTARTED, None)
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever starts a script may have less
        sys.exit(f"Likeness needs Python 3.10 or newer, this is {sys.version.split()[0]}: start it with a newer one.")
    missing = [name for name in required_modules if importlib.util.find_spec(name) is None]
    if not missing:
        return
    folder = ROOT / ".venv"
    if restarted:
        sys.exit(f"{folder} still lacks {', '.join(missing)} after its set-up: remove that folder and start again.")
    try:
        steps = [[*requirement_lines(ROOT / "requirements.txt"), *extra_requirements]]
        if without_dependencies:
            steps.append(["--no-deps", *without_dependencies])
        python = create_environment(folder, steps)
    except SetupError as error:
        sys.exit(f"Set-up failed. {error}")
    _restart(python)


def create_environment(
    folder: Path, steps: Sequence[Sequence[str]], finish: Callable[[Path], None] | None = None, salt: str = ""
) -> Path:
    """Make the virtual environment `folder` and return its Python; instant when it was made from the same input.

    steps: one list of `pip install` arguments per pip call; finish: called with the Python after the last one;
    salt: whatever else `finish` depends on. Raises SetupError.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    recipe = "\n".join([*TESTED_BUILDS, *(" ".join(step) for step in steps), salt])
    # One stamp per recipe: two scripts that want different extras share a folder without undoing each other. It is
    # written last, so an interrupted set-up is done again.
    stamp = folder / f"complete-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if stamp.exists() and python.exists():
        return python
    _check_length(folder)
    print(f"Setting up {folder} (first start, or the requirements changed). This can take some minutes.", flush=True)
    if not runs(python, "-m", "pip", "--version"):
        _make_venv(folder)
    for number, step in enumerate(steps, 1):
        print(f"  installing, step {number} of {len(steps)} ...", flush=True)
        _pip_install(python, step)
    if finish is not None:
        finish(python)
    stamp.write_text(recipe + "\n", encoding="utf-8")
    return python


def requirement_lines(path: Path) -> list[str]:
    """Return the requirements of a requirements file, without comments and blank lines. Raises SetupError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SetupError(f"{path} cannot be read ({error.strerror}): is the checkout complete?") from error
    return [line for line in (line.split("#")[0].strip() for line in lines) if line]


def runs(python: Path, *arguments: str) -> bool:
    """Return whether `python` starts and ends well with these arguments; what it prints is dropped."""
    try:
        return subprocess.run([str(python), *arguments], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _check_length(folder: Path) -> None:
    longest = len(str(folder.absolute())) + LONGEST_NAME
    if os.name == "nt" and longest > WINDOWS_LIMIT and not _allows_long_paths():
        raise SetupError(
            f"{folder} lies too deep: torch's files in it would have names of up to {longest} characters, this Windows "
            f"allows {WINDOWS_LIMIT}. Move the checkout up, to C:\\Likeness for example, or switch on Windows' long "
            "paths (LongPathsEnabled)."
        )


def _allows_long_paths() -> bool:
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return winreg.QueryValueEx(key, "LongPathsEnabled")[0] == 1
    except OSError:
        return False


def _make_venv(folder: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        raise SetupError(
            f"{sys.executable} has no venv or ensurepip module, so it cannot make {folder}. Debian and Ubuntu: "
            "`sudo apt install python3-venv`; elsewhere use a Python from python.org. Then start again."
        )
    # --clear: what is there has no working pip, so it is a half-made or a moved environment.
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(folder)]) != 0:
        raise SetupError(f"`{sys.executable} -m venv {folder}` failed: see its message above.")
    # The folder is no part of the checkout, whatever the checkout's own ignore list says.
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")


def _pip_install(python: Path, arguments: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch, "constraints.txt")
        constraints.write_text("\n".join(TESTED_BUILDS) + "\n", encoding="utf-8")
        pip = [str(python), "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check"]
        if subprocess.call([*pip, "-c", str(constraints), *arguments]) != 0:
            raise SetupError(
                f"pip could not install {' '.join(arguments)}: its message is above. If the network failed, "
                "start again: what is already installed is kept."
            )


def _restart(python: Path) -> None:
    os.environ[RESTARTED] = "1"
    command = [str(python), *sys.argv]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        # Windows' exec returns to the shell at once, before the new process has done anything. Ctrl-C reaches both
        # processes; what it means the new one knows, and it may have to save first.
        for name in ("SIGINT", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda number, frame: None)
        sys.exit(subprocess.call(command))
    os.execv(command[0], command)
