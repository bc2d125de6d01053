"""One real ComfyUI server, with this checkout as its only custom node pack, for all tests of this folder."""

import sys
from pathlib import Path

import pytest
from comfyui_environment import load_script

ROOT = Path(__file__).resolve().parents[2]


# In sys.modules from here on, so that tests can import it.
comfyui_server = load_script("comfyui_server")


def _import_comfyui_on_cpu(folder):
    """Let tests of this folder import ComfyUI's modules in this process, as its main.py with --cpu would."""
    sys.path.insert(0, str(folder))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True


if comfyui_server.find_comfyui(ROOT) is not None:
    _import_comfyui_on_cpu(comfyui_server.find_comfyui(ROOT))
else:
    tests = Path(__file__).parent.glob("test_*.py")
    collect_ignore = [path.name for path in tests if "import comfy." in path.read_text()]


@pytest.fixture(scope="session")
def comfyui_dir():
    """The ComfyUI to test with; skips where there is none."""
    folder = comfyui_server.find_comfyui(ROOT)
    return folder or pytest.skip("no ComfyUI found: set COMFYUI_DIR, or run `python tests/run.py`, which says more")


@pytest.fixture(scope="session")
def server(comfyui_dir):
    """A running ComfyServer; skips where no Python can run it."""
    python = comfyui_server.find_python(comfyui_dir)
    if python is None:
        pytest.skip(f"no Python found that can run {comfyui_dir}: `python tests/run.py` makes one")
    with comfyui_server.ComfyServer(comfyui_dir, python) as running:
        yield running
