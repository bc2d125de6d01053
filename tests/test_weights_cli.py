"""The command line for external weights, as a person starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from likeness.pipelines.weights.manifest import read_manifest
from loopback_hub import Hub

SCRIPT = Path(__file__).resolve().parents[1] / "nodes" / "weights_cli.py"
WEIGHT = next(
    weight for weight in read_manifest() if weight.repository and weight.sha256 is None and weight.size is None
)


def cli(*arguments, home, **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COMFYUI_", "HF_"))}
    environment.update(HOME=str(home), USERPROFILE=str(home), **variables)
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=120)


def test_list_download_check_and_where(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    at = ("--models", models)
    path = models / WEIGHT.folder / WEIGHT.save_as
    missing = cli("check", WEIGHT.name, *at, home=tmp_path)
    assert (missing.returncode, "missing" in missing.stdout) == (1, True)
    with Hub({WEIGHT.file: b"weights" * 1000}) as hub:
        got = cli("download", WEIGHT.name, *at, home=tmp_path, HF_ENDPOINT=hub.address)
    assert (got.returncode, got.stderr.count("Traceback")) == (0, 0), got.stderr
    assert str(path) in got.stdout and path.read_bytes() == b"weights" * 1000
    assert cli("check", WEIGHT.name, "--checksums", *at, home=tmp_path).returncode == 0
    assert cli("where", WEIGHT.name, *at, home=tmp_path).stdout.strip() == str(path)
    listed = cli("list", WEIGHT.name, *at, home=tmp_path).stdout
    assert f"{WEIGHT.name}  [present]" in listed and WEIGHT.licence in listed


def test_list_is_for_everybody_and_for_programs(tmp_path):
    listed = cli("list", home=tmp_path)
    assert listed.returncode == 0 and "no ComfyUI was found" in listed.stderr
    assert all(weight.name in listed.stdout for weight in read_manifest())
    entries = json.loads(cli("list", "--json", home=tmp_path).stdout)
    assert [entry["name"] for entry in entries] == [weight.name for weight in read_manifest()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("download", WEIGHT.name), "no ComfyUI was found"),
        (("check", "nonsense"), "no weights are called 'nonsense'"),
        (("where", "--models", "nowhere"), "--models nowhere is no folder"),
        (("list", "--method", "magic"), "--method is 'magic': give one of"),
    ],
)
def test_bad_input_is_refused(tmp_path, arguments, message):
    if arguments[0] == "check":
        arguments = (*arguments, "--models", tmp_path)
    done = cli(*arguments, home=tmp_path)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_offline_says_where_the_file_goes(tmp_path):
    done = cli("download", WEIGHT.name, "--models", tmp_path, home=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert f"save it as {tmp_path / WEIGHT.folder / WEIGHT.save_as}" in done.stderr
