"""The data engine in one process: work list, shards, leases, failures, reading, checking and exporting."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness.pipelines.files import DiskFullError
from likeness.pipelines.generation import (
    DatasetError,
    DatasetReader,
    DatasetSettings,
    Job,
    Survey,
    export_folder,
    prepare_dataset,
    verify_dataset,
)
from likeness.pipelines.generation.lease import Lease, acquire, read_leases, remove_stale
from likeness.pipelines.generation.recipe import Rejected, decode, encode
from likeness.pipelines.generation.verify import repair
from likeness.pipelines.generation.worker import MakeError, work
from likeness.pipelines.images import load_image, save_image
from likeness.pipelines.randomness import seed_of
from likeness.pipelines.spl.data import StructurePairs, StructurePairsSettings
from likeness.pipelines.spl.score import score_structure
from likeness.pipelines.stop import Stopped, StopRequest
from PIL import Image
from tile_recipes import Grid, Tiles, TilesSettings


def tiles(**settings) -> Tiles:
    return Tiles(TilesSettings(**settings))


def make(folder, recipe=None, total=10, max_attempts=20, stop=None, **settings):
    """A data set made in this process."""
    recipe = recipe or tiles()
    dataset = prepare_dataset(folder, recipe, DatasetSettings(total=total, **{"shard_size": 4, **settings}))
    work(dataset, recipe, Job(str(folder), {}, max_attempts=max_attempts), stop or StopRequest())
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
    make(tmp_path, tiles(notes=Path("here")), max_attempts=20)
    make(tmp_path, tiles(notes=Path("/elsewhere")), max_attempts=30)


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
    path.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid(), **content}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_when_a_lease_is_stale(tmp_path, dead_process):
    tar = tmp_path / "shard-00000.tar"
    for content, expected in [
        ({}, False),
        ({"process": dead_process}, True),
        ({"process": dead_process, "host": "another-machine"}, False),
        ({"host": "another-machine", "age": 61}, True),
        ({"age": 61}, True),
        ({"error": "RuntimeError: no"}, True),
    ]:
        write_lease(tar, 0, **content)
        assert read_leases(tar)[0].is_stale(60) is expected, content
    write_lease(tar, 0).write_text("")  # created and not yet written
    assert not read_leases(tar)[0].is_stale(60)


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
    os.utime(lease.path, (0, 0))
    lease.progress(3, 2)
    time.sleep(0.5)
    found = read_leases(tar)[0]
    assert (found.kept, found.rejected, found.process, found.host) == (3, 2, os.getpid(), socket.gethostname())
    assert found.age < 1
    lease.abandon("ValueError: größer " + "x" * 5000)
    assert read_leases(tar)[0].error.startswith("ValueError: größer")


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


def test_an_item_without_attempts_left_fails_its_shard_alone(tmp_path):
    dataset = make(tmp_path, tiles(rejects=0.0, flaw="reject"), max_attempts=3)
    state = Survey(dataset, 60).look()
    assert state.finished == [0, 2]
    assert list(state.failed) == [1]
    assert "item 5 was rejected 3 times (3 x never good enough (--flaw))" in state.failed[1]
    assert "--max-attempts" in state.failed[1]
    assert "shard 1 failed: item 5" in state.summary()
    assert not list(tmp_path.glob("*.lease"))
    assert not list(tmp_path.glob(".part-*"))


def test_a_recipe_that_raises_is_tried_by_three_workers_and_then_given_up_with_its_error(tmp_path):
    recipe = tiles(flaw="raise")
    for _ in range(3):
        with pytest.raises(MakeError):
            make(tmp_path, recipe)
    dataset = make(tmp_path, recipe)
    state = Survey(dataset, 60).look()
    assert state.finished == [0, 2]
    assert state.failed[1] == "3 workers died over it; the last: RuntimeError: item 5 is beyond me."


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
    leftover = tmp_path / ".part-1-0badcafe-shard-00001.tar"  # of a process on another machine
    leftover.write_bytes(b"half")
    make(tmp_path, total=8)
    assert not leftover.exists()


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
    assert any("photo left out: " in reason and "broken.jpg" in reason for reason in outcomes)
    make(tmp_path / "set", recipes[0], total=4)
    make(tmp_path / "set", recipes[1], total=8)
    photos = {item["json"]["parameters"]["photo"] for item in DatasetReader(tmp_path / "set")}
    assert photos == {"a.png", "sub/b.png"}
    (tmp_path / "there" / "c.png").write_bytes((tmp_path / "there" / "a.png").read_bytes())
    more = StructurePairs(StructurePairsSettings(photos=tmp_path / "there", size=32, min_change=0.0))
    with pytest.raises(DatasetError, match="files that the recipe reads have changed"):
        make(tmp_path / "set", more, total=8)


def test_structure_pairs_says_what_is_wrong_with_its_photos(tmp_path):
    with pytest.raises(ValueError, match="--photos is .*nowhere: no such folder"):
        StructurePairs(StructurePairsSettings(photos=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="neither it nor its subfolders have a file that ends in .png"):
        StructurePairs(StructurePairsSettings(photos=tmp_path))
