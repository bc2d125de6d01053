"""What every script owes to a terminal: Ctrl-C is no traceback at any moment, and no letter ends a script."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from comfyui_environment import load_script
from likeness.pipelines.configuration import read_toml
from likeness.pipelines.generation import DatasetSettings, prepare_dataset, worker
from likeness.pipelines.generation.dataset import table_of
from likeness.pipelines.stop import Stopped, StopRequest
from tile_recipes import Tiles, TilesSettings

NODES = Path(__file__).resolve().parents[1] / "nodes"
for needed in ("environment", "comfyui_server", "pack"):  # the scripts import these by name
    load_script(needed)
STARTS = [
    ("train_cli", ["train", "lora"], 0), ("train_cli", ["list-tasks"], 0), ("dataset_cli", ["generate", "tiles"], 0),
    ("dataset_cli", ["status", "."], 1), ("evaluate_cli", ["score", "edit.png"], 0), ("weights_cli", ["list"], 1),
    ("weights_cli", ["download", "yunet"], 0), ("quickstart", [], 1),
]  # fmt: skip


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal's script has it: what was started in a shell's background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("name", "words", "expected"), STARTS)
def test_an_interrupt_while_libraries_load_is_a_stop(monkeypatch, capsys, name, words, expected):
    script = load_script(name)

    def half_imported():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("partially initialized module 'torch' has no attribute 'jit'") from None

    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    monkeypatch.setattr(script.pack, "load_pack", half_imported)
    before = signal.getsignal(signal.SIGINT)
    assert (script.main() if name == "quickstart" else script.main(words)) == expected
    assert f"{name}: stopped by SIGINT; " in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_that_nobody_asked_for_is_not_hidden(monkeypatch):
    script = load_script("weights_cli")
    monkeypatch.setattr(script.pack, "load_pack", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        script.main(["list"])


def on_windows_console(script: str, *words) -> subprocess.CompletedProcess:
    """A script whose output is redirected on a Windows of western Europe."""
    variables = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    command = [sys.executable, str(NODES / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, env=variables, timeout=200)


def test_letters_that_a_console_lacks_end_no_script(tmp_path):
    models = tmp_path / "モデル"
    models.mkdir()
    done = on_windows_console("weights_cli.py", "where", "yunet", "--models", models)
    assert done.returncode == 1 and not done.stderr
    assert "???" in done.stdout.decode("cp1252") and "(missing)" in done.stdout.decode("cp1252")


def test_settings_that_are_redirected_into_a_file_come_back(tmp_path):
    words = ("--model", "模型.safetensors", "--data", "写真", "--output", "Läufe", "--dump-config")
    done = on_windows_console("train_cli.py", "train", "lora", *words)
    assert done.returncode == 0, done.stderr
    for encoding in ("utf-8", "utf-16"):  # by the command prompt, and by PowerShell
        path = tmp_path / f"{encoding}.toml"
        path.write_text(done.stdout.decode("utf-8"), encoding=encoding)
        settings = read_toml(path)
        assert (settings["task"]["data"], settings["run"]["output"]) == ("写真", "Läufe")


# What a restarted script does with Ctrl-C: it takes its time to save.
SAVES = """
import signal, sys, time
def save(number, frame):
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGINT, save)
print("ready", flush=True)
time.sleep(60)
"""
RESTARTS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import environment
sys.argv, os.name = [sys.argv[2]], "nt"
environment._restart(sys.executable)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends a signal to a process group, as a terminal does")
def test_a_script_that_windows_starts_anew_may_save_before_it_ends(tmp_path):
    script = tmp_path / "saves.py"
    script.write_text(SAVES)
    command = [sys.executable, "-c", RESTARTS, str(NODES), str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as started:
        assert started.stdout.readline() == "ready\n"
        os.killpg(started.pid, signal.SIGINT)
        assert started.wait(30) == 0
        assert started.stdout.read() == "saved\n"


@pytest.mark.parametrize(
    "name", ["dataset_cli", "evaluate_cli", "family_cli", "quickstart", "train_cli", "weights_cli"]
)
def test_scripts_find_each_other_with_a_python_that_starts_isolated(name):
    """As the one does that ComfyUI's portable build brings."""
    words = ["generate", "--help"] if name == "dataset_cli" else ["--help"]
    done = subprocess.run([sys.executable, "-I", NODES / f"{name}.py", *words], capture_output=True, timeout=200)
    assert done.returncode == 0 and b"usage" in done.stdout, done.stderr.decode()


def test_the_home_folder_is_known_where_no_shell_puts_it_in(monkeypatch):
    monkeypatch.setenv("HOME" if os.name != "nt" else "USERPROFILE", "/somewhere/me")
    terminal = load_script("terminal")
    assert terminal.typed(["score", "~/a b.png", "~", "--prompt", "~5 years old", "x~/y"]) == [
        "score", "/somewhere/me/a b.png", "/somewhere/me", "--prompt", "~5 years old", "x~/y"]  # fmt: skip


def test_the_stop_file_counts_as_windows_names_it(tmp_path):
    with StopRequest(tmp_path) as stop:
        assert not stop.requested
        (tmp_path / "STOP.txt").touch()
        with pytest.raises(Stopped, match=r"STOP\.txt"):
            stop.check()
    assert not list(tmp_path.iterdir())


def test_on_windows_a_worker_asks_about_its_input_and_leaves_no_read_waiting(monkeypatch):
    """A waiting read holds up the libraries that ask about the same pipe while they load (numpy 24290)."""
    asked = []

    def peek(handle, size):
        asked.append((handle, size))
        if len(asked) > 2:
            raise BrokenPipeError(109, "the pipe has been ended")
        return 0, 0

    monkeypatch.setitem(sys.modules, "_winapi", SimpleNamespace(PeekNamedPipe=peek))
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(get_osfhandle=lambda number: 70 + number))
    ended = []
    monkeypatch.setattr(worker, "os", SimpleNamespace(name="nt", _exit=ended.append))
    monkeypatch.setattr(worker, "POLL_INPUT", 0.01)
    stop = StopRequest()
    worker._stop_at_end_of_input(stop, 0)
    assert asked == [(70, 0)] * 3 and stop.reason == worker.INPUT_ENDED and ended == [worker.EXIT_STOPPED]


def test_models_are_found_beside_the_pack_in_the_desktop_app(monkeypatch, tmp_path):
    """Its program lies elsewhere: no main.py is beside them."""
    server, pack = load_script("comfyui_server"), tmp_path / "ComfyUI" / "custom_nodes" / "likeness"
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.setattr(server.Path, "home", lambda: tmp_path)
    assert server.find_models(pack) is None
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    assert server.find_models(pack) == tmp_path / "ComfyUI" / "models"
    assert server.find_models(tmp_path / "likeness") is None


def test_an_environment_too_deep_for_windows_is_refused_before_anything_is_installed(monkeypatch):
    environment = load_script("environment")
    monkeypatch.setattr(environment, "os", SimpleNamespace(name="nt"))
    monkeypatch.setattr(environment, "_allows_long_paths", lambda: False)
    environment._check_length(Path("/" + "d" * 60))
    with pytest.raises(environment.SetupError, match="up to 293 characters, this Windows allows 259"):
        environment._check_length(Path("/" + "d" * 100))
    monkeypatch.setattr(environment, "_allows_long_paths", lambda: True)
    environment._check_length(Path("/" + "d" * 100))


def test_what_is_not_installed_ends_the_work_and_not_one_worker_after_the_other(tmp_path):
    def make(*arguments):
        raise ImportError("torchvision is needed here")

    dataset = prepare_dataset(tmp_path, Tiles(TilesSettings()), DatasetSettings(total=4))
    job = worker.Job(str(tmp_path), table_of(TilesSettings()), dataset.fingerprint, stop_at_end_of_input=False)
    assert worker.worker_main(type("Lacking", (Tiles,), {"make": make}), job) == worker.EXIT_HOPELESS
