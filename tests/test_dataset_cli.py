"""The data engine as a person starts it, in processes that are stopped, killed and starved."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tile_recipes
from comfyui_environment import load_script
from likeness.pipelines.configuration import read_toml
from likeness.pipelines.files import MACHINE, process_is_alive
from likeness.pipelines.generation import (
    DatasetReader,
    DatasetSettings,
    Job,
    RunSettings,
    Survey,
    WorkerScript,
    generate,
    open_dataset,
    prepare_dataset,
    verify_dataset,
)
from likeness.pipelines.generation.worker import work
from likeness.pipelines.stop import StopRequest

for name in ("environment", "comfyui_server", "pack", "dataset_cli"):
    cli = load_script(name)
SCRIPT = Path(__file__).resolve().parents[1] / "nodes" / "dataset_cli.py"
TILES = f"{tile_recipes.__file__}:Tiles"
# 24 items in 4 shards, some 0.4 s a shard: long enough to be killed in.
SLOW = ("--total", "24", "--shard-size", "6", "--seconds", "0.05")


def command(*arguments) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


@pytest.fixture
def main(capfd):
    """The script's main function in this process, which has torch loaded already: (exit code, output, errors)."""

    def call(*arguments):
        try:
            code = cli.main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    return call


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "dataset.json"}


def workers_at_work(folder: Path, items: int = 0) -> dict[int, int]:
    """Process to shard, of the leases that have at least so many items."""
    found = {}
    for path in folder.glob("*.lease"):
        try:
            lease = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if lease["kept"] >= items and process_is_alive(lease["process"]):
            found[lease["process"]] = int(path.name[6:11])
    return found


def wait_for(condition, seconds: float = 60, what: str = "nothing happened"):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, bytes]:
    """The slow data set made by one worker, undisturbed."""
    folder = tmp_path_factory.mktemp("reference") / "set"
    assert cli.main(["generate", TILES, "--output", str(folder), *SLOW, "--workers", "1"]) == 0
    assert len(shards(folder)) == 8
    assert verify_dataset(open_dataset(folder)) == {}
    return shards(folder)


@pytest.mark.parametrize(("workers", "by", "code"), [(2, signal.SIGTERM, 71), (4, signal.SIGKILL, -9)])
def test_more_workers_with_one_killed_midway_make_the_same_bytes(tmp_path, reference, main, workers, by, code):
    killed = []

    def kill_one():
        killed.append(wait_for(lambda: workers_at_work(tmp_path)).popitem()[0])
        time.sleep(0.1)
        os.kill(killed[0], by)

    killer = threading.Thread(target=kill_one)
    killer.start()
    result, output, errors = main("generate", TILES, "--output", tmp_path, *SLOW, "--workers", workers)
    killer.join()
    assert result == 0, errors
    assert f"Worker {killed[0]} ended with code {code}; starting another." in errors
    assert "Finished: 24 items" in output
    assert shards(tmp_path) == reference


def test_a_stopped_run_ends_well_and_goes_on_to_the_same_bytes(tmp_path, reference, main):
    process = start("generate", TILES, "--output", tmp_path, *SLOW, "--workers", 2)
    working = wait_for(lambda: workers_at_work(tmp_path))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "Stopped by SIGTERM. Start the same command again to go on" in output
    assert not any(map(process_is_alive, working))
    left = shards(tmp_path)
    assert len(left) < 8
    assert all(reference[name] == content for name, content in left.items())  # nothing half made, no lease
    assert main("generate", TILES, "--output", tmp_path, *SLOW, "--workers", 1)[0] == 0
    assert shards(tmp_path) == reference


def test_workers_end_when_their_parent_is_killed(tmp_path):
    process = start("generate", TILES, "--output", tmp_path, *SLOW, "--workers", 1)
    (worker,) = wait_for(lambda: workers_at_work(tmp_path))
    process.kill()
    process.communicate()
    wait_for(lambda: not process_is_alive(worker), 20, "the worker lives on")
    assert not list(tmp_path.glob("*.lease"))
    assert not list(tmp_path.glob(".part-*"))


HANGING = ("--flaw", "hang", "--total", 8, "--shard-size", 4, "--workers", 1, "--patience", 1)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_hangs_in_its_item_outlives_no_stop(tmp_path, by):
    """SIGTERM: the run kills the worker, here a frozen one; SIGKILL: there is nobody but the worker itself."""
    process = start("generate", TILES, "--output", tmp_path, *HANGING)
    worker = wait_for(lambda: next((pid for pid, shard in workers_at_work(tmp_path).items() if shard == 1), None))
    if by == signal.SIGTERM:
        os.kill(worker, signal.SIGSTOP)
    process.send_signal(by)
    began = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == (0 if by == signal.SIGTERM else -9), output
    wait_for(lambda: not process_is_alive(worker), 20, "the worker lives on")
    assert time.monotonic() - began < 10
    assert "shards   2: 1 finished, 1 stale" in Survey(open_dataset(tmp_path), 60).look().summary()


def test_a_new_run_owes_nothing_to_failures_and_dead_workers(tmp_path, main):
    size = ("--total", 8, "--shard-size", 4, "--workers", 1)
    dataset = prepare_dataset(tmp_path, tile_recipes.Tiles(tile_recipes.TilesSettings()), DatasetSettings(8, 4))
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dataset.failure(0).write_text("bad luck")
    for number in range(3):
        lease = json.dumps({"machine": MACHINE, "process": process.pid})
        (tmp_path / f"shard-00001.{number}.lease").write_text(lease)
    (tmp_path / f".part-{process.pid}-{MACHINE}-dataset.json").write_text("{")
    code, output, errors = main("generate", TILES, "--output", tmp_path, *size)
    assert code == 0, errors
    left = {f"shard-0000{shard}.{kind}" for shard in (0, 1) for kind in ("tar", "json")}
    assert {path.name for path in tmp_path.iterdir()} == {"dataset.json", *left}


def test_two_machines_share_a_folder(tmp_path, reference):
    """A run of its own beside this process, as on two machines: the leases alone divide the work."""
    process = start("generate", TILES, "--output", tmp_path, *SLOW, "--workers", 1)
    wait_for(lambda: workers_at_work(tmp_path))
    dataset = open_dataset(tmp_path)
    recipe = tile_recipes.Tiles(tile_recipes.TilesSettings(seconds=0.05))
    work(dataset, recipe, Job(str(tmp_path), {}, dataset.fingerprint), StopRequest())
    assert Survey(dataset, 60).look().complete
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert shards(tmp_path) == reference


def test_from_python_with_a_stop_file(tmp_path):
    """As an importer does it who has loaded the pack under an alias."""
    recipe = tile_recipes.Tiles(tile_recipes.TilesSettings(seconds=0.1))
    dataset = prepare_dataset(tmp_path / "set", recipe, DatasetSettings(total=200, shard_size=100))
    ask = threading.Thread(target=lambda: (wait_for(lambda: workers_at_work(tmp_path / "set")),
                                           (tmp_path / "set" / "STOP").touch()))  # fmt: skip
    ask.start()
    lines = []
    with StopRequest(dataset.folder) as stop:
        script = WorkerScript(SCRIPT, ("work", TILES))
        state = generate(dataset, recipe, script, RunSettings(workers=1), stop, lines.append)
    ask.join()
    assert not state.complete
    assert "STOP" in stop.reason
    assert [path.name for path in dataset.folder.iterdir()] == ["dataset.json"]
    assert re.match(r"0/200 items, 0/s; 0 rejected; shards: 0/2 finished, 0 in work", lines[-1])


def test_a_shard_that_kills_its_workers_is_given_up_and_the_others_are_made(tmp_path, main):
    arguments = ("--total", 12, "--shard-size", 4, "--flaw", "kill", "--workers", 1)
    code, output, errors = main("generate", TILES, "--output", tmp_path, *arguments)
    assert code == 1
    assert errors.count("ended with code -9") == 3
    assert "shard 1 failed: 3 workers died over it; the last: the process was killed or crashed" in output
    assert "1 shards are not finished" in errors
    assert len(DatasetReader(tmp_path, partial=True)) == 8
    assert "shards   3: 2 finished, 1 failed" in main("status", tmp_path)[1]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("SKIPPED LOUDLY: a full disk needs root, who can mount a small tmpfs; it was not tested here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_with_a_clear_error_and_finished_shards_intact(small_disk, main):
    folder = small_disk / "set"
    size = ("--total", 12, "--shard-size", 3, "--bulk", 120_000)
    arguments = ("generate", TILES, "--output", folder, *size, "--workers", 1)
    code, _, errors = main(*arguments)
    assert code == 1
    assert re.search(r"Worker: .*no room left to write .*shard-00002.tar.*free some space", errors)
    assert "Finished shards are intact" in errors
    assert "Traceback" not in errors
    made = shards(folder)
    assert sorted(made) == ["shard-00000.json", "shard-00000.tar", "shard-00001.json", "shard-00001.tar"]
    assert verify_dataset(open_dataset(folder)) == {}
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert main(*arguments)[0] == 0
    assert shards(folder).items() > made.items()


def test_a_session_from_config_to_export(tmp_path, main):
    code, config, errors = main("generate", TILES, "--dump-config", "--side", 5, "--total", 6)
    assert code == 0, errors
    (tmp_path / "tiles.toml").write_text(config)
    folder = tmp_path / "set"
    changes = ("--total", 8, "--shard-size", 4, "--workers", 1)
    code, output, errors = main("generate", TILES, "--config", tmp_path / "tiles.toml", "--output", folder, *changes)
    assert code == 0, errors
    assert re.search(r"rejects +[1-9]\d* .*\n +\d+  (odd one out|level too low)", output)
    assert DatasetReader(folder)[7]["png"].shape == (3, 5, 5)

    assert main("verify", folder)[0] == 0
    tar = folder / "shard-00001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    code, output, _ = main("verify", folder, "--repair")
    assert code == 1
    assert "shard 1:" in output
    assert "1 of 2 shards are good, 1 bad, 0 not finished.\nTo mend it: run generate again." in output
    code, _, errors = main("export-folder", folder, tmp_path / "plain")
    assert code == 1
    assert "1 of 2 shards are not finished" in errors
    assert main("export-folder", folder, tmp_path / "plain", "--partial")[0] == 0
    assert len(list((tmp_path / "plain").glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "structure_pears", "--output", "x"], 1, "no recipe 'structure_pears': known are structure_pairs"),
        (["generate", "structure_pairs"], 1, "--output is missing"),
        (["generate", "structure_pairs", "--output", "x", "--photos", "nowhere"], 1, "--photos is .*nowhere: no such"),
        (["generate", "structure_pairs", "--output", "x", "--size", "7"], 1, "size in .recipe. is 7: .* at least 32"),
        (["generate", "structure_pairs", "--output", "x", "--siez", "64"], 1, "--siez: did you mean --size"),
        (["generate", TILES, "--output", "x", "--engine", "spark"], 1, "engine in .run. is 'spark'.*local, ray"),
        (["status", "."], 1, "holds no data set"),
        ([], 2, "COMMAND"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_clear_line(tmp_path, monkeypatch, main, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    found, _, errors = main(*arguments)
    assert found == code
    assert re.search(message, errors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Mine(:", "cannot be loaded .SyntaxError: .*correct it"),
        ("import nowhere_to_be_found", "cannot be loaded .ModuleNotFoundError"),
        ("class Mine: name = 'mine'", "is no recipe: it lacks version, parameters, make, Settings"),
        ("", "has no class 'Mine'"),
    ],
)
def test_a_recipe_file_that_is_none_is_one_clear_line(tmp_path, main, text, message):
    path = tmp_path / f"recipes_{abs(hash(text))}.py"
    path.write_text(text)
    code, _, errors = main("generate", f"{path}:Mine", "--output", tmp_path / "set")
    assert code == 1
    assert re.search(message, errors)
    assert "Traceback" not in errors


@pytest.mark.parametrize(("words", "expected"), [(["generate", TILES], 0), (["verify", "."], 1)])
def test_an_interrupt_at_the_start_is_a_stop(main, monkeypatch, words, expected):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupt)
    code, _, errors = main(*words)
    assert code == expected
    assert errors == "\ndataset_cli: stopped by SIGINT; nothing has changed.\n"


def test_a_configuration_can_be_begun_where_settings_have_to_be_given(tmp_path, main):
    code, config, errors = main("generate", "idetail", "--dump-config", "--models", tmp_path)
    assert code == 0, errors
    (tmp_path / "idetail.toml").write_text(config, encoding="utf-8")
    settings = read_toml(tmp_path / "idetail.toml")
    assert settings["recipe"]["photos"] == "CHANGE-ME" and settings["recipe"]["models"] == str(tmp_path)
    code, _, errors = main("generate", "idetail", "--config", tmp_path / "idetail.toml", "--output", tmp_path / "set")
    assert code == 1 and "--photos is CHANGE-ME: no such folder" in errors


def test_help_lists_commands_settings_and_exit_codes(main):
    assert "structure_pairs" in main("list-recipes")[1]
    text = main("--help")[1]
    assert all(word in text for word in ("generate RECIPE", "export-folder DIR TARGET", "examples", "exit codes"))
    settings = main("generate", "structure_pairs", "--help")[1]
    assert all(flag in settings for flag in ("--photos", "--shard-size", "--workers", "--engine", "--min-change"))


def test_ray_without_a_cluster_or_without_ray_says_what_to_do(tmp_path, main):
    address = ("--engine", "ray", "--ray-address", "nowhere:1")
    code, _, errors = main("generate", TILES, "--output", tmp_path / "set", *address)
    assert code == 1
    assert re.search("no Ray cluster at 'nowhere:1'.*ray start --head|ray is needed here.*pip install ray", errors)


@pytest.fixture(scope="module")
def ray_cluster():
    loud = "SKIPPED LOUDLY: Ray is not installed, its engine was not tested here"
    ray = pytest.importorskip("ray", minversion="2.0", reason=loud)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def generate_on_ray(folder: Path, stop: StopRequest):
    recipe = tile_recipes.Tiles(tile_recipes.TilesSettings(seconds=0.05))
    dataset = prepare_dataset(folder, recipe, DatasetSettings(total=24, shard_size=6))
    return generate(dataset, recipe, WorkerScript(SCRIPT, ("work", TILES)), RunSettings(engine="ray"), stop)


def test_ray_makes_the_same_bytes_with_a_worker_killed_and_after_a_stop(tmp_path, reference, ray_cluster):
    stop = StopRequest()

    def disturb():
        stop.reason = wait_for(lambda: workers_at_work(tmp_path / "stopped")) and "the test"

    threading.Thread(target=disturb).start()
    assert not generate_on_ray(tmp_path / "stopped", stop).complete
    assert all(reference[name] == content for name, content in shards(tmp_path / "stopped").items())
    assert generate_on_ray(tmp_path / "stopped", StopRequest()).complete
    assert shards(tmp_path / "stopped") == reference

    def kill():
        os.kill(wait_for(lambda: workers_at_work(tmp_path / "killed")).popitem()[0], signal.SIGKILL)

    threading.Thread(target=kill).start()
    assert generate_on_ray(tmp_path / "killed", StopRequest()).complete
    assert shards(tmp_path / "killed") == reference
