"""The data engine in one process: work list, shards, leases, failures, reading, checking and exporting."""

import io
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from likeness.pipelines.configuration import build_section
from likeness.pipelines.files import MACHINE, DiskFullError
from likeness.pipelines.generation import (
    DatasetError,
    DatasetReader,
    DatasetSettings,
    Job,
    RunSettings,
    Survey,
    WorkerScript,
    export_folder,
    generate,
    local,
    prepare_dataset,
    verify_dataset,
    worker_main,
)
from likeness.pipelines.generation.dataset import table_of
from likeness.pipelines.generation.lease import Lease, acquire, leased_shards, read_leases, remove_stale
from likeness.pipelines.generation.photos import find_photos
from likeness.pipelines.generation.recipe import Rejected, decode, encode
from likeness.pipelines.generation.verify import repair
from likeness.pipelines.generation.worker import EXIT_HOPELESS, EXIT_STOPPED, GenerationError, MakeError, work
from likeness.pipelines.images import load_image, save_image
from likeness.pipelines.randomness import seed_of
from likeness.pipelines.spl.data import StructurePairs, StructurePairsSettings
from likeness.pipelines.spl.score import score_structure
from likeness.pipelines.stop import Stopped, StopRequest
from PIL import Image
from pretend_windows import pretend_windows
from tile_recipes import Grid, Tiles, TilesSettings


def tiles(**settings) -> Tiles:
    return Tiles(TilesSettings(**settings))


def make(folder, recipe=None, total=10, max_attempts=20, stop=None, **settings):
    """A data set made in this process."""
    recipe = recipe or tiles()
    dataset = prepare_dataset(folder, recipe, DatasetSettings(total=total, **{"shard_size": 4, **settings}))
    work(dataset, recipe, Job(str(folder), {}, dataset.fingerprint, max_attempts), stop or StopRequest())
    return dataset


def contents(folder: Path) -> dict[str, bytes]:
    """All that generation may not leave to chance."""
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


# --- what a shard holds


def test_a_shard_is_what_tarfile_and_the_definitions_make_of_it(tmp_path):
    """Rebuilt here from the written definitions: seeds, attempts, order, headers."""
    recipe = tiles()
    make(tmp_path, recipe, seed=3)
    expected, rejects = io.BytesIO(), []
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for item in range(4, 8):
            attempt, files = 0, None
            while files is None:
                seed = seed_of(3, "tiles", item, attempt)
                try:
                    files = recipe.make(recipe.parameters(item, seed), seed)
                except Rejected as reason:
                    rejects.append({"item": item, "attempt": attempt, "reason": str(reason)})
                    attempt += 1
            origin = {"item": item, "attempt": attempt, "seed": seed, "parameters": recipe.parameters(item, seed)}
            files["json"] = {**files["json"], **origin}
            for extension in ("bin", "json", "mask.png", "npz", "png", "txt"):
                data = encode(extension, files[extension])
                header = tarfile.TarInfo(f"{item:09d}.{extension}")
                header.size, header.mtime, header.uid, header.gid, header.mode = len(data), 0, 0, 0, 0o644
                tar.addfile(header, io.BytesIO(data))
    assert (tmp_path / "shard-00001.tar").read_bytes() == expected.getvalue()
    sidecar = json.loads((tmp_path / "shard-00001.json").read_text())
    assert rejects
    assert sidecar["rejects"] == rejects
    assert (sidecar["kept"], sidecar["rejected"]) == (4, len(rejects))
    assert not {socket.gethostname(), str(tmp_path)} & set(json.dumps(sidecar).split('"'))


def test_encoding_is_repeatable_and_decoding_its_inverse(monkeypatch):
    image = torch.rand(3, 5, 7)
    samples = {
        "png": image, "depth.png": image[:1], "txt": "größer\n", "json": {"b": [1, 0.1], "a": None},
        "npz": {"x": torch.arange(3), "y": np.eye(2)}, "cls": "7", "bin": b"\0\1",
    }  # fmt: skip
    before = {extension: encode(extension, content) for extension, content in samples.items()}
    tomorrow = time.localtime(time.time() + 86400)
    monkeypatch.setattr(time, "localtime", lambda *_: tomorrow)
    for extension, content in samples.items():
        data = encode(extension, content)
        assert data == before[extension]
        back = decode(extension, data)
        if isinstance(content, torch.Tensor):
            assert torch.equal(back, (content * 255).round() / 255)
        elif extension == "npz":
            assert all(np.array_equal(back[name], np.asarray(content[name])) for name in content)
        else:
            assert back == content


@pytest.mark.parametrize(
    ("extension", "content"),
    [("png", "text"), ("json", "text"), ("txt", {}), ("png", torch.zeros(2, 4, 4)), ("txt", torch.zeros(3, 4, 4)),
     ("png", torch.full((3, 4, 4), torch.nan)), ("json", {"x": float("nan")})],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(extension, content):
    with pytest.raises(ValueError, match="a recipe returned|JSON compliant"):
        encode(extension, content)


# --- the work list and its folder


def test_every_item_is_made_once_and_the_total_can_grow(tmp_path):
    dataset = make(tmp_path / "grown", total=6)
    assert [list(dataset.items(shard)) for shard in dataset.shards] == [[0, 1, 2, 3], [4, 5]]
    first = (tmp_path / "grown" / "shard-00000.tar").stat().st_mtime_ns
    dataset = make(tmp_path / "grown", total=9)
    assert (tmp_path / "grown" / "shard-00000.tar").stat().st_mtime_ns == first
    make(tmp_path / "whole", total=9)
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    assert len(DatasetReader(tmp_path / "grown")) == 9


def test_a_grown_data_set_is_unfinished_until_its_last_shard_is_made_anew(tmp_path):
    make(tmp_path, total=6)
    dataset = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=7, shard_size=4))
    assert Survey(dataset, 60).look().missing == [1]
    with pytest.raises(DatasetError, match="1 of 2 shards are not finished .the first is 1.: run generate"):
        DatasetReader(tmp_path)
    assert len(DatasetReader(tmp_path, partial=True)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": tiles(side=7, rejects=0.5)}, r"rejects: 0.3 there, 0.5 asked for; side: 6 there, 7 asked for"),
        ({"seed": 1}, "seed: 0 there, 1 asked for"),
        ({"shard_size": 5}, "shard_size: 4 there, 5 asked for"),
        ({"recipe": Grid(TilesSettings()), "total": 4}, "recipe: 'tiles' there, 'grid' asked for"),
        ({"total": 5}, "asked for 6 items before, now for 5: a data set can grow but not shrink"),
    ],
)
def test_a_folder_of_other_settings_is_refused_by_name(tmp_path, change, message):
    make(tmp_path, total=6)
    before = contents(tmp_path)
    with pytest.raises(DatasetError, match=message):
        make(tmp_path, **{"total": 6, **change})
    assert contents(tmp_path) == before


def test_a_folder_without_a_shard_may_change_its_settings(tmp_path):
    dataset = make(tmp_path, tiles(rejects=1.0), max_attempts=2)
    assert len(Survey(dataset, 60).look().failed) == 3
    dataset = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=4))
    assert dataset.total == 4


def test_paths_and_the_number_of_attempts_do_not_make_another_data_set(tmp_path):
    make(tmp_path, tiles(notes=Path("here"), places=(Path("a"), Path("b"))), max_attempts=20)
    make(tmp_path, tiles(notes=Path("/elsewhere")), max_attempts=30)


def test_settings_travel_to_workers_with_absolute_paths():
    settings = TilesSettings(notes=Path("here"), places=(Path("a"), Path("/b")))
    table = json.loads(json.dumps(table_of(settings)))
    assert build_section(TilesSettings, table) == replace(
        settings, notes=Path("here").absolute(), places=(Path("a").absolute(), Path("/b"))
    )


def test_two_runs_that_begin_in_one_folder_do_not_mix(tmp_path, capfd):
    jobs = []
    for seed in (0, 1):  # neither has a lease yet, so the second may change the folder's settings
        dataset = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=4, shard_size=4, seed=seed))
        jobs.append(Job(str(tmp_path), table_of(TilesSettings()), dataset.fingerprint, stop_at_end_of_input=False))
    assert worker_main(Tiles, jobs[0]) == EXIT_HOPELESS
    assert "is to hold a data set of other settings" in capfd.readouterr().err
    assert not contents(tmp_path)
    assert worker_main(Tiles, jobs[1]) == 0
    assert verify_dataset(dataset) == {}


def test_a_folder_that_changes_under_a_worker_is_not_published_to(tmp_path):
    prepare_dataset(tmp_path / "other", tiles(), DatasetSettings(seed=1))
    recipe = tiles()
    plain = recipe.make
    recipe.make = lambda *arguments: (shutil.copy(tmp_path / "other" / "dataset.json", tmp_path / "set"),
                                      plain(*arguments))[1]  # fmt: skip
    with pytest.raises(DatasetError, match="another run began there"):
        make(tmp_path / "set", recipe)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["dataset.json"]


def test_a_worker_that_sees_other_files_makes_nothing(tmp_path, monkeypatch, capfd):
    dataset = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=4))
    monkeypatch.setattr(Tiles, "inputs", "other photos")
    job = Job(str(tmp_path), table_of(TilesSettings()), dataset.fingerprint, stop_at_end_of_input=False)
    assert worker_main(Tiles, job) == EXIT_HOPELESS
    assert "this process would make other items than" in capfd.readouterr().err


@pytest.mark.parametrize("moment", ["__init__", "make"])
def test_a_worker_stopped_by_a_signal_does_not_count_as_finished(tmp_path, moment):
    def act_and_stop(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return getattr(Tiles, moment)(*arguments)

    recipe_class = type("Stopping", (Tiles,), {moment: act_and_stop})
    dataset = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=4))
    job = Job(str(tmp_path), table_of(TilesSettings()), dataset.fingerprint, stop_at_end_of_input=False)
    assert worker_main(recipe_class, job) == EXIT_STOPPED
    assert not contents(tmp_path)


def test_a_shard_of_another_fingerprint_is_not_finished(tmp_path):
    dataset = make(tmp_path, total=4)
    sidecar = json.loads(dataset.sidecar(0).read_text())
    dataset.sidecar(0).write_text(json.dumps({**sidecar, "fingerprint": "0" * 16}))
    assert dataset.finished(0) is None


def test_a_run_that_began_before_the_data_set_grew_leaves_its_longer_shards(tmp_path):
    old = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=6, shard_size=4))
    make(tmp_path, total=7)
    before = contents(tmp_path)
    work(old, tiles(), Job(str(tmp_path), {}, old.fingerprint), StopRequest())
    assert contents(tmp_path) == before
    assert Survey(old, 60).look().kept == 6
    assert len(DatasetReader(tmp_path)) == 7
    description = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**description, "total": 6}))
    assert len(DatasetReader(tmp_path)) == 6


def test_without_a_total_a_data_set_keeps_its_own(tmp_path):
    make(tmp_path, total=6)
    assert make(tmp_path, total=None).total == 6
    assert prepare_dataset(tmp_path / "new", tiles(), DatasetSettings()).total == 1000
    empty = Grid(TilesSettings())
    empty.count = 0
    with pytest.raises(DatasetError, match="grid has no items at all"):
        prepare_dataset(tmp_path / "empty", empty, DatasetSettings())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[]", "cannot be read .it holds '.*' where an object is expected"),
        ('"x"', "where an object is expected"),
        ('{"format": 1}', "recipe is 'None', not str"),
        ({"total": "a"}, "total is 'a', not int"),
        ({"shard_size": 0}, "must be at least 1"),
        ({"seed": 9}, "dataset.json has been edited"),
        ({"recipe": "grid"}, "has been edited"),
        ({"settings": {}}, "has been edited"),
    ],
)
def test_a_spoilt_description_is_told(tmp_path, change, message):
    make(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DatasetError, match=message):
        DatasetReader(tmp_path)
    with pytest.raises(DatasetError, match=message):
        make(tmp_path)


def test_folders_that_cannot_be_begun_are_told_and_leftovers_of_a_start_do_not_count(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="file is a file: give a folder"):
        make(tmp_path / "file")
    with pytest.raises(DatasetError, match="set cannot be written .Not a directory.: choose a folder"):
        make(tmp_path / "file" / "set")
    (tmp_path / "set").mkdir()
    for name in ("STOP", ".part-1-0badcafe-dataset.json"):
        (tmp_path / "set" / name).write_text("")
    make(tmp_path / "set")


def test_a_changed_recipe_and_changed_inputs_are_refused(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.setattr(Tiles, "inputs", "other photos")
    with pytest.raises(DatasetError, match="files that the recipe reads have changed"):
        make(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Tiles, "version", 2)
    with pytest.raises(DatasetError, match="version: 1 there, 2 asked for"):
        make(tmp_path)


def test_other_versions_of_packages_are_told(tmp_path):
    make(tmp_path)
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["versions"]["pillow"] = "1.0"
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    notes = []
    prepare_dataset(tmp_path, tiles(), DatasetSettings(total=10, shard_size=4), notes.append)
    assert "'pillow': '1.0'" in notes[0]


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty and holds no data set"):
        make(tmp_path)
    with pytest.raises(DatasetError, match="holds no data set .no dataset.json."):
        DatasetReader(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": 99}')
    with pytest.raises(DatasetError, match="format 99, this program reads 1"):
        DatasetReader(tmp_path)


def test_a_recipe_of_fixed_number_makes_each_combination_once(tmp_path):
    make(tmp_path, Grid(TilesSettings(rejects=0.5)), total=None)
    made = Counter((item["json"]["parameters"]["color"], item["json"]["parameters"]["shape"])
                   for item in DatasetReader(tmp_path))  # fmt: skip
    assert len(made) == 6
    assert set(made.values()) == {1}
    with pytest.raises(DatasetError, match="--total is 7, but grid has only 6 different items"):
        make(tmp_path, Grid(TilesSettings(rejects=0.5)), total=7)


# --- leases


@pytest.fixture
def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_lease(tar: Path, number: int, age: float = 0, **content) -> Path:
    path = tar.with_name(f"{tar.stem}.{number}.lease")
    path.write_text(json.dumps({"machine": MACHINE, "process": os.getpid(), **content}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_when_a_lease_is_stale(tmp_path, dead_process):
    tar = tmp_path / "shard-00000.tar"
    for content, expected in [
        ({}, False),
        ({"process": dead_process}, True),
        ({"process": dead_process, "machine": "another"}, False),
        ({"machine": "another", "age": 61}, True),
        ({"age": 61}, False),  # it lives, whatever the clocks say
        ({"age": 601}, True),  # its number may be another process's by now
        ({"error": "RuntimeError: no"}, True),
    ]:
        write_lease(tar, 0, **content)
        assert read_leases(tar)[0].is_stale(60) is expected, content
    for text in ("", "[1]", '{"unknown": 1, "process": "x"}'):  # created and not yet written, or by somebody else
        write_lease(tar, 0).write_text(text)
        assert not read_leases(tar)[0].is_stale(60)
    for name in ("shard-00000.x.lease", "shard-x.0.lease", "shard-00000.lease"):
        (tmp_path / name).write_text("{}")
    assert leased_shards(tmp_path) == {0}
    assert len(read_leases(tar)) == 1


def test_a_held_shard_is_left_alone_and_a_released_one_is_free(tmp_path):
    tar = tmp_path / "shard-00000.tar"
    lease = acquire(tar, 60)
    assert acquire(tar, 60) is None
    assert acquire(tmp_path / "shard-00001.tar", 60) is not None
    lease.release()
    assert not read_leases(tar)
    acquire(tar, 60).release()


def test_a_heartbeat_keeps_a_lease_fresh_and_tells_how_far_it_is(tmp_path):
    tar = tmp_path / "shard-00000.tar"
    lease = acquire(tar, 1)
    began = json.loads(lease.path.read_text())["beat"]
    lease.progress(3, 2)
    time.sleep(0.5)
    found = read_leases(tar)[0]
    assert (found.kept, found.rejected, found.process, found.host) == (3, 2, os.getpid(), socket.gethostname())
    assert found.age < 1 and json.loads(lease.path.read_text())["beat"] > began
    lease.abandon("ValueError: größer " + "x" * 5000)
    assert read_leases(tar)[0].error.startswith("ValueError: größer")


def test_a_lease_is_as_old_as_its_heartbeat_says_whatever_the_date_of_the_file(tmp_path):
    """Windows dates a file anew only when it is closed, which a holder does at the end."""
    tar = tmp_path / "shard-00000.tar"
    write_lease(tar, 0, age=1000, beat=time.time(), machine="another")
    assert not read_leases(tar)[0].is_stale(60)
    write_lease(tar, 0, age=0, beat=time.time() - 61, machine="another")
    assert read_leases(tar)[0].is_stale(60)


def test_leases_that_somebody_reads_on_windows_go_later_or_stay_without_a_word(tmp_path, monkeypatch):
    hold, pauses = pretend_windows(monkeypatch)
    tar, others = tmp_path / "shard-00000.tar", tmp_path / "shard-00001.tar"
    for seconds, left in ((1, []), (math.inf, [0])):
        lease = acquire(tar, 60)
        hold(lease.path, sum(pauses) + seconds)
        lease.release()
        hold(write_lease(others, 0, age=61, machine="another"), sum(pauses) + seconds)
        remove_stale(others, 60)
        for found in (read_leases(tar), read_leases(others)):
            assert [lease.number for lease in found] == left


def test_of_many_takers_of_a_dead_shard_one_gets_it(tmp_path, dead_process):
    for turn in range(20):
        tar = tmp_path / f"shard-{turn:05d}.tar"
        write_lease(tar, 0, process=dead_process)
        barrier, taken = threading.Barrier(8), []

        def take(tar=tar, barrier=barrier, taken=taken):
            barrier.wait()
            taken.append(acquire(tar, 60))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [lease for lease in taken if lease is not None]
        assert [lease.number for lease in read_leases(tar)] == [0, 1]
        winner.release()
        assert not read_leases(tar)


def test_a_taker_who_looked_too_long_ago_gives_back(tmp_path, dead_process, monkeypatch):
    """He saw lease 0, dead; before he acts, others took number 1, died too, and number 2 is held."""
    tar = tmp_path / "shard-00000.tar"
    write_lease(tar, 0, process=dead_process)
    seen_long_ago = read_leases(tar)
    holder = Lease(tar, 2, 60)
    answers = [seen_long_ago]
    module = sys.modules[acquire.__module__]
    monkeypatch.setattr(module, "read_leases", lambda tar: answers.pop() if answers else read_leases(tar))
    assert acquire(tar, 60) is None
    assert [lease.number for lease in read_leases(tar)] == [2]
    holder.release()


@pytest.mark.parametrize("at", [1, 3])
def test_a_holder_that_lost_its_lease_drops_the_shard_without_a_death(tmp_path, at):
    """It was silent for too long: somebody took the shard, removed the file being written, and died over it."""
    recipe, calls = tiles(rejects=0.0), []
    plain = recipe.make

    def make_and_be_robbed(parameters, seed):
        calls.append(parameters["item"])
        if len(calls) == at + 1:
            write_lease(tmp_path / "shard-00000.tar", 1, age=121, machine="another")
            if at == 1:
                next(tmp_path.glob(".part-*")).unlink()
        return plain(parameters, seed)

    recipe.make = make_and_be_robbed
    dataset = make(tmp_path, recipe, total=4)
    assert calls == [*range(at + 1), 0, 1, 2, 3]
    assert verify_dataset(dataset) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.json", "shard-00000.json", "shard-00000.tar"]


def test_a_lost_lease_does_not_take_its_successor_with_it(tmp_path):
    tar = tmp_path / "shard-00000.tar"
    lease = acquire(tar, 60)
    assert not lease.is_lost()
    lease.path.unlink()  # cleared as stale by a new run, whose worker has the same number now
    successor = acquire(tar, 60)
    assert lease.is_lost() and not successor.is_lost()
    lease.release()
    assert [found.number for found in read_leases(tar)] == [0]
    successor.release()


def test_last_words_may_hold_what_is_no_unicode(tmp_path):
    tar = tmp_path / "shard-00000.tar"
    acquire(tar, 60).abandon("OSError: photo \udcff.png")
    assert read_leases(tar)[0].error == r"OSError: photo \udcff.png"


def test_stale_leases_are_cleared_and_held_ones_are_not(tmp_path, dead_process):
    tar, other = tmp_path / "shard-00000.tar", tmp_path / "shard-00001.tar"
    write_lease(tar, 0, process=dead_process)
    write_lease(tar, 1, process=dead_process)
    write_lease(other, 0, process=dead_process)
    write_lease(other, 1)
    remove_stale(tar, 60)
    remove_stale(other, 60)
    assert not read_leases(tar)
    assert len(read_leases(other)) == 2


# --- when things go wrong


def test_a_shard_waits_for_its_old_files_while_somebody_reads_them_on_windows(tmp_path, monkeypatch):
    dataset = make(tmp_path, total=4)
    expected = contents(tmp_path)
    hold, pauses = pretend_windows(monkeypatch)
    leftover, sidecar = tmp_path / ".part-1-0123abcd-shard-00000.tar", dataset.sidecar(0)
    for path, seconds in ((leftover, 1), (sidecar, 1.9)):
        path.write_text("{}")
        hold(path, seconds)
    make(tmp_path, total=4)
    assert contents(tmp_path) == expected and not leftover.exists()
    sidecar.write_text("{}")
    hold(sidecar, math.inf)
    with pytest.raises(MakeError) as failure:
        make(tmp_path, total=4)
    assert "shard-00000.json is in use by another program" in str(failure.value.__cause__)


def test_an_item_without_attempts_left_fails_its_shard_alone(tmp_path):
    dataset = make(tmp_path, tiles(rejects=0.0, flaw="reject"), max_attempts=3)
    state = Survey(dataset, 60).look()
    assert state.finished == [0, 2]
    assert list(state.failed) == [1]
    assert "item 5 was rejected 3 times (3 x never good enough (--flaw))" in state.failed[1]
    assert "--max-attempts" in state.failed[1] and "--partial" in state.failed[1]
    assert "shard 1 failed: item 5" in state.summary()
    assert not list(tmp_path.glob("*.lease"))
    assert not list(tmp_path.glob(".part-*"))


@pytest.mark.parametrize("shard_size", [1, 4, 5])
def test_a_shard_is_finished_without_the_items_that_there_are_not(tmp_path, shard_size):
    dataset = make(tmp_path, tiles(rejects=0.0, flaw="absent"), shard_size=shard_size)
    state = Survey(dataset, 60).look()
    assert (state.complete, state.kept, state.absent) == (True, 9, 1)
    assert "absent   1: there is nothing to make" in state.summary() and "1  no such tile (--flaw)" in state.summary()
    assert verify_dataset(dataset) == {}
    keys = [item["__key__"] for item in DatasetReader(tmp_path)]
    assert keys == [f"{number:09d}" for number in range(10) if number != 5]
    before = contents(tmp_path)
    make(tmp_path, tiles(rejects=0.0, flaw="absent"), shard_size=shard_size, total=11)
    grown = contents(tmp_path)
    assert all(grown[name] == content for name, content in before.items() if "00000" in name)
    assert len(DatasetReader(tmp_path)) == 10


def test_a_recipe_that_raises_is_tried_by_three_workers_and_then_given_up_with_its_error(tmp_path):
    recipe = tiles(flaw="raise")
    for _ in range(3):
        with pytest.raises(MakeError):
            make(tmp_path, recipe)
    dataset = make(tmp_path, recipe)
    state = Survey(dataset, 60).look()
    assert state.finished == [0, 2]
    assert state.failed[1] == "3 workers died over it; the last: RuntimeError: item 5 is beyond me."


def test_a_full_disk_of_the_recipe_is_not_told_as_one_of_the_shard(tmp_path):
    with pytest.raises(MakeError) as failure:
        make(tmp_path, tiles(flaw="full"))
    assert isinstance(failure.value.__cause__, OSError)
    assert read_leases(tmp_path / "shard-00001.tar")[0].error.startswith("OSError: [Errno 28]")


@pytest.mark.parametrize("extension", ["../x", "a//b", "a..b", "", "x.", "a\\b"])
def test_extensions_that_lead_elsewhere_are_refused(tmp_path, extension):
    recipe = tiles()
    plain = recipe.make
    recipe.make = lambda *arguments: {**plain(*arguments), extension: b""}
    with pytest.raises(MakeError) as failure:
        make(tmp_path / "set", recipe)
    assert "a recipe returned a file named" in str(failure.value.__cause__)
    dataset = make(tmp_path / "forged", total=2)
    sidecar = json.loads(dataset.sidecar(0).read_text())
    sidecar["items"]["000000000"][extension] = [0, 10]
    dataset.sidecar(0).write_text(json.dumps(sidecar))
    assert "has the extension" in verify_dataset(dataset)[0][0]
    assert len(DatasetReader(tmp_path / "forged", partial=True)) == 0


class FakeProcess:
    """A worker that has ended with a code before it began."""

    pid, returncode, stdin = 1, None, io.BytesIO()

    def __init__(self, code):
        self.code = code

    def poll(self):
        self.returncode = self.code
        return self.code

    def wait(self, timeout=None):
        return self.poll()


def test_workers_take_devices_in_turn(tmp_path, monkeypatch):
    dataset, started = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=20, shard_size=2)), []
    monkeypatch.setattr(local, "_start", lambda command: started.append(command) or FakeProcess(0))
    job = Job(str(tmp_path), {}, dataset.fingerprint)
    local.run_local(dataset, WorkerScript(Path("x")), job, StopRequest(), lambda: None, 3, ("first", "second"))
    assert [Job.from_text(command[-1]).device for command in started] == ["first", "second", "first"]


@pytest.mark.parametrize(("uses_device", "given", "expected"),
                         [(True, (), ()), (False, (), ("cpu",)), (False, ("cuda:1",), ("cuda:1",))])  # fmt: skip
def test_what_is_made_on_the_cpu_has_a_worker_a_core(tmp_path, monkeypatch, uses_device, given, expected):
    recipe, told = tiles(), []
    recipe.uses_device = uses_device
    monkeypatch.setattr(sys.modules[generate.__module__], "run_local", lambda *args: told.append(args[-1]))
    dataset = prepare_dataset(tmp_path, recipe, DatasetSettings(total=4))
    generate(dataset, recipe, WorkerScript(Path("none")), RunSettings(devices=given), StopRequest())
    assert told == [expected] and not StructurePairs.uses_device
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert local._default_workers(expected or local.all_devices()) == (os.cpu_count() if expected == ("cpu",) else 1)


def test_workers_may_die_while_there_is_progress_only(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_start", lambda command: FakeProcess(-9))
    crew = local.Crew(WorkerScript(Path("x")), [Job("", {}, "")], 1)
    for left in range(20, 0, -1):
        crew.replace_dead(lambda left=left: left)
    with pytest.raises(GenerationError, match="6 workers died in a row"):
        for _ in range(7):
            crew.replace_dead(lambda: 1)
    dataset = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=20, shard_size=1))
    for shard, expected in ((0, 1), (1, 2), *((shard, 10) for shard in range(9, 20))):
        for given_up in range(shard + 1):
            dataset.failure(given_up).touch()
        assert local._given_up(dataset) == expected


def test_a_run_asked_to_stop_before_it_began_touches_nothing(tmp_path):
    dataset = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=4))
    dataset.failure(0).write_text("bad luck")
    stop = StopRequest()
    stop.reason = "the test"
    state = generate(dataset, tiles(), WorkerScript(Path("none")), RunSettings(), stop)
    assert state.failed == {0: "bad luck"}


def test_a_finished_data_set_needs_no_writing(tmp_path, monkeypatch):
    make(tmp_path)
    dataset = prepare_dataset(tmp_path, tiles(), DatasetSettings(shard_size=4))
    monkeypatch.setattr(sys.modules[generate.__module__], "_clear", None)
    assert generate(dataset, tiles(), WorkerScript(Path("none")), RunSettings(), StopRequest()).complete


def test_a_stop_drops_the_shard_in_work_and_the_next_run_makes_the_same(tmp_path):
    stop = StopRequest()
    recipe = tiles()
    plain, count = recipe.make, iter(range(1000))

    def make_and_stop(parameters, seed):
        if next(count) == 7:
            stop.reason = "the test"
        return plain(parameters, seed)

    recipe.make = make_and_stop
    with pytest.raises(Stopped, match="the test"):
        make(tmp_path / "stopped", recipe, stop=stop)
    names = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert names == {"dataset.json", "shard-00000.json", "shard-00000.tar"}
    make(tmp_path / "stopped")
    make(tmp_path / "straight")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_a_full_disk_is_no_fault_of_the_shard(tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    make(tmp_path, total=4)
    before = contents(tmp_path)
    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(DiskFullError, match="no room left to write .*shard-00001.tar"):
        make(tmp_path, total=10)
    assert contents(tmp_path) == before


def test_leftovers_of_a_killed_worker_go_with_its_shard(tmp_path):
    make(tmp_path, total=4)
    for extension in ("tar", "json"):  # of a process on another machine
        (tmp_path / f".part-1-0badcafe-shard-00001.{extension}").write_bytes(b"half")
    make(tmp_path, total=8)
    assert not list(tmp_path.glob(".part-*"))


# --- reading, checking, exporting


def test_reader_agrees_with_tarfile_in_any_order(tmp_path):
    dataset = make(tmp_path)
    truth = {}
    for shard in dataset.shards:
        with tarfile.open(dataset.tar(shard)) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                truth.setdefault(key, {})[extension] = tar.extractfile(member).read()
    reader = DatasetReader(tmp_path)
    assert len(reader) == 10
    for index in (9, 0, 5, 4, 3):
        key, files = reader.read_bytes(index)
        assert key == f"{index:09d}"
        assert files == truth[key]
        assert sorted(reader[index]) == sorted(["__key__", *files])
    assert [item["__key__"] for item in reader] == sorted(truth)
    with pytest.raises(IndexError):
        reader[10]


def test_a_damaged_item_is_told_with_the_mend(tmp_path):
    dataset = make(tmp_path)
    offset, size = json.loads(dataset.sidecar(1).read_text())["items"]["000000005"]["png"]
    spoil(dataset.tar(1), offset + size // 2)
    reader = DatasetReader(tmp_path)
    assert set(reader.files(5, only=("txt", "mask.png"))) == {"txt", "mask.png"}
    with pytest.raises(DatasetError, match=r"png of item 000000005 is damaged \(.*verify .* --repair, then generate"):
        reader[5]


def test_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    make(tmp_path)
    urls = str(tmp_path / "shard-{00000..00002}.tar")
    items = list(webdataset.WebDataset(urls, shardshuffle=False).decode("torchrgb"))
    ours = list(DatasetReader(tmp_path))
    assert [item["__key__"] for item in items] == [item["__key__"] for item in ours]
    for item, own in zip(items, ours, strict=True):
        assert torch.equal(item["png"], own["png"])
        assert item["json"] == own["json"]
        assert item["txt"] == own["txt"]


def spoil(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 255
    path.write_bytes(data)


def test_verify_finds_every_fault_at_once_and_repair_mends_them(tmp_path):
    dataset = make(tmp_path, total=28)
    before = contents(tmp_path)
    assert verify_dataset(dataset) == {}
    spoil(dataset.tar(0), 512 + 3)
    dataset.tar(1).write_bytes(before["shard-00001.tar"][:3000])
    dataset.tar(2).unlink()
    dataset.sidecar(3).write_text("{")
    dataset.sidecar(4).write_text(dataset.sidecar(4).read_text().replace('"kept": 4', '"kept": 5'))
    dataset.sidecar(5).write_text(before["shard-00006.json"].decode())
    problems = verify_dataset(dataset)
    assert list(problems) == [0, 1, 2, 3, 4, 5]
    text = {shard: "; ".join(found) for shard, found in problems.items()}
    assert "has changed (SHA-256 differs)" in text[0]
    assert "has 3000 bytes instead of" in text[1]
    assert "is missing" in text[2]
    assert "sidecar cannot be read" in text[3]
    assert "do not add up" in text[4]
    assert "not the 4 from 000000020 to 000000023" in text[5]
    repair(dataset, problems)
    assert verify_dataset(dataset) == {}
    make(tmp_path, total=28)
    assert contents(tmp_path) == before


def test_verify_tells_grown_shards_strays_and_forged_records_apart(tmp_path):
    make(tmp_path, total=10)
    dataset = prepare_dataset(tmp_path, tiles(), DatasetSettings(total=11, shard_size=4))
    assert verify_dataset(dataset) == {}  # the last shard is unfinished, not bad
    for shard, change in (
        (0, {"rejects": [{"item": 99, "attempt": 0, "reason": "x"}], "rejected": 1}),
        (1, {"rejects": [[]]}),
        (2, {"tar": {**json.loads(dataset.sidecar(2).read_text())["tar"], "name": "shard-7.tar"}}),
    ):
        sidecar = json.loads(dataset.sidecar(shard).read_text())
        dataset.sidecar(shard).write_text(json.dumps({**sidecar, **change}))
    (tmp_path / "shard-00009.tar").write_bytes(b"")
    text = {shard: "; ".join(found) for shard, found in verify_dataset(dataset).items()}
    assert "rejects of items that are not its own" in text[0]
    assert "sidecar cannot be read (it holds '[]' where an object is expected)" in text[1]
    assert "its sidecar is of shard-7.tar" in text[2]
    assert text[9] == "shard-00009.tar is beyond the 3 shards of this data set: remove it"
    assert Survey(dataset, 60).look().missing == [1, 2]


@pytest.mark.parametrize("extension", ["png", "json", "npz", "txt"])
def test_verify_decodes_every_file(tmp_path, extension):
    """A shard whose checksum is right but whose file is not: made by a broken recipe."""
    recipe = tiles(rejects=0.0)
    plain = recipe.make
    recipe.make = lambda parameters, seed: {**plain(parameters, seed), f"x.{extension}": b"\xff\xfe not so"}
    dataset = make(tmp_path, recipe, total=2)
    found = verify_dataset(dataset)[0]
    assert len(found) == 2
    assert found[0].startswith(f"000000000.x.{extension} cannot be decoded")


def test_export_is_a_plain_folder(tmp_path):
    make(tmp_path / "set")
    reader = DatasetReader(tmp_path / "set")
    export_folder(reader, tmp_path / "plain")
    for index, item in enumerate(reader):
        assert torch.equal(load_image(tmp_path / "plain" / f"{index:09d}.png")[0], item["png"])
        assert (tmp_path / "plain" / f"{index:09d}.txt").read_text(encoding="utf-8") == item["txt"]
        with Image.open(tmp_path / "plain" / "mask" / f"{index:09d}.png") as mask:
            assert mask.mode == "L"
    lines = [json.loads(line) for line in (tmp_path / "plain" / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"{index:09d}.png" for index in range(10)]
    assert lines[3]["text"] == reader[3]["txt"]
    assert lines[3]["mask_file_name"] == "mask/000000003.png"
    assert lines[3]["mean"] == reader[3]["json"]["mean"]
    assert not {"bin_file_name", "npz_file_name"} & set(lines[3])


def test_only_pictures_are_told_as_pictures_and_a_killed_export_leaves_nothing(tmp_path, dead_process):
    recipe = tiles()
    plain = recipe.make
    recipe.make = lambda *arguments: {name: content for name, content in plain(*arguments).items() if name != "png"}
    make(tmp_path / "set", recipe)
    leftover = tmp_path / f".part-{dead_process}-{MACHINE}-plain"
    leftover.mkdir()
    export_folder(DatasetReader(tmp_path / "set"), tmp_path / "plain")
    assert "file_name" not in json.loads((tmp_path / "plain" / "metadata.jsonl").read_text().splitlines()[0])
    assert not leftover.exists()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(DatasetError, match="link is a symbolic link"):
        export_folder(DatasetReader(tmp_path / "set"), tmp_path / "link")


def test_export_refuses_a_folder_with_content_and_leaves_nothing_when_stopped(tmp_path):
    make(tmp_path / "set")
    reader = DatasetReader(tmp_path / "set")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="mine exists and is not empty"):
        export_folder(reader, tmp_path / "mine")
    stop = StopRequest()

    def stop_at_third(done, total):
        stop.reason = "the test" if done == 3 else None
        stop.check()

    with pytest.raises(Stopped):
        export_folder(reader, tmp_path / "plain", stop_at_third)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "set"]


# --- structure_pairs


def test_structure_pairs_are_repeatable_and_their_scores_those_of_the_files(tmp_path):
    recipe = StructurePairs(StructurePairsSettings(size=96))
    make(tmp_path / "a", recipe, total=2)
    make(tmp_path / "b", StructurePairs(StructurePairsSettings(size=96)), total=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for item in DatasetReader(tmp_path / "a"):
        assert item["png"].shape == item["source.png"].shape == (3, 96, 96)
        assert item["txt"] == "a photo in the warm light of golden hour"
        scores = score_structure(item["png"][None], item["source.png"][None])
        for name, value in item["json"]["scores"].items():
            assert getattr(scores, name).item() == pytest.approx(value, abs=1e-5)
        assert item["json"]["scores"]["spl"] >= recipe.settings.min_change


def make_until(recipe, attempts: int = 10) -> Counter:
    outcomes = Counter()
    for seed in range(attempts):
        try:
            recipe.make(recipe.parameters(0, seed), seed)
            outcomes["kept"] += 1
        except Rejected as reason:
            outcomes[str(reason)] += 1
    return outcomes


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"min_contrast": 1.0}, "crop too flat (--min-contrast)"),
        ({"min_change": 100.0}, "edit hardly differs (--min-change)"),
        ({"size": 4096, "min_crop": 1.0}, "crop far smaller than the picture (--min-crop, --size)"),
    ],
)
def test_structure_pairs_rejects(settings, reason):
    assert make_until(StructurePairs(StructurePairsSettings(**{"size": 64, **settings})), 3) == {reason: 3}


def test_structure_pairs_takes_a_folder_of_photos_wherever_it_lies(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place / "sub").mkdir(parents=True)
        for number, name in enumerate(("a.png", "sub/b.png")):
            photo = torch.rand(3, 90, 70, generator=torch.Generator().manual_seed(number))
            save_image(photo, tmp_path / place / name)
        (tmp_path / place / "broken.jpg").write_bytes(b"no picture")
    recipes = [StructurePairs(StructurePairsSettings(photos=tmp_path / place, size=32, min_change=0.0))
               for place in ("here", "there")]  # fmt: skip
    outcomes = make_until(recipes[0], 20)
    assert 0 < outcomes["kept"] < 20
    assert outcomes["photo cannot be read (--photos)"] > 0
    make(tmp_path / "set", recipes[0], total=4)
    make(tmp_path / "set", recipes[1], total=8)
    photos = {item["json"]["parameters"]["photo"] for item in DatasetReader(tmp_path / "set")}
    assert photos == {"a.png", "sub/b.png"}
    (tmp_path / "there" / "c.png").write_bytes((tmp_path / "there" / "a.png").read_bytes())
    more = StructurePairs(StructurePairsSettings(photos=tmp_path / "there", size=32, min_change=0.0))
    with pytest.raises(DatasetError, match="files that the recipe reads have changed"):
        make(tmp_path / "set", more, total=8)


def test_photos_have_one_order_on_every_system_and_hidden_ones_are_none(tmp_path, monkeypatch):
    folder = tmp_path / ".photos"  # hidden itself, which was the user's choice
    shown = ["B.png", "a/b.png", "a/c/D.JPG", "a-b.png", "a.png"]
    hidden = ["._a.png", "a/._b.png", ".thumbnails/a.png", "__MACOSX/a.png"]
    for name in (*reversed(shown), *hidden, "a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert shown == [str(name) for name in sorted(map(PurePath, shown))], "existing data sets would change"
    monkeypatch.setattr(PurePath, "__lt__", lambda self, other: str(self).lower() < str(other).lower())  # Windows
    assert [photo.relative_to(folder).as_posix() for photo in find_photos(folder)] == shown
    for name in shown:
        (folder / name).unlink()
    with pytest.raises(ValueError, match="have a file that ends in .*, hidden ones aside"):
        find_photos(folder)


def test_structure_pairs_says_what_is_wrong_with_its_photos(tmp_path):
    with pytest.raises(ValueError, match="--photos is .*nowhere: no such folder"):
        StructurePairs(StructurePairsSettings(photos=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="neither it nor its subfolders have a file that ends in .png"):
        StructurePairs(StructurePairsSettings(photos=tmp_path))
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of its 2 photos can be read"):
        StructurePairs(StructurePairsSettings(photos=tmp_path))
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.png")).write_bytes(b"")
    with pytest.raises(ValueError, match="which is no UTF-8: rename it"):
        StructurePairs(StructurePairsSettings(photos=tmp_path))


def test_a_photo_that_is_gone_for_a_moment_is_no_reject(tmp_path):
    save_image(torch.rand(3, 90, 70), tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "b.png").read_bytes())
    recipe = StructurePairs(StructurePairsSettings(photos=tmp_path, size=32))
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError):
        recipe.make({**recipe.parameters(0, 0), "photo": "b.png"}, 0)
