"""Files that are whole or not there; stops that are heard; random numbers without state."""

import ctypes
import errno
import hashlib
import math
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from likeness.pipelines import files
from likeness.pipelines.files import (
    MACHINE,
    DiskFullError,
    atomic_file,
    atomic_folder,
    exclusive,
    make_folder,
    process_is_alive,
    remove,
    remove_leftovers,
    replace,
    sampled_checksum,
    sha256_of_file,
    write_json,
)
from likeness.pipelines.randomness import generator, seed_of
from likeness.pipelines.stop import Stopped, StopRequest
from pretend_windows import pretend_windows


def test_a_file_is_replaced_at_the_end_of_the_block_or_never(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        1 / 0  # noqa: B018
    assert target.read_text() == "old"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_appears_at_the_end_of_the_block_or_never(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("1")
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("1")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "x").read_text() == "1"


def test_windows_gets_its_time_to_let_go_of_files_and_folders(tmp_path, monkeypatch):
    hold, pauses = pretend_windows(monkeypatch)
    target, folder = tmp_path / "a.txt", tmp_path / "folder"
    target.write_text("old")
    hold(target, 29)
    with atomic_file(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new" and pauses == sorted(pauses)
    with atomic_folder(folder) as temporary:
        (temporary / "x").write_text("1")
        hold(temporary, sum(pauses) + 29)
    assert (folder / "x").read_text() == "1"
    hold(target, sum(pauses) + 1.9)
    remove(target)
    remove(target)
    assert not target.exists()


def test_what_stays_in_use_on_windows_is_named_with_the_mend_and_unchanged(tmp_path, monkeypatch):
    hold, pauses = pretend_windows(monkeypatch)
    target, source = tmp_path / "a.txt", tmp_path / "b"
    target.write_text("old")
    source.mkdir()
    for path in (target, source):
        hold(path, math.inf)
    mend = r" is in use by another program \(ComfyUI\?\): close it and run the same command again"
    with pytest.raises(PermissionError, match="a.txt" + mend), atomic_file(target) as temporary:
        temporary.write_text("new")
    assert sum(pauses) == pytest.approx(30)
    with pytest.raises(PermissionError, match="b" + mend):
        replace(source, tmp_path / "c")
    pauses.clear()
    with pytest.raises(PermissionError, match="a.txt" + mend):
        remove(target)
    assert sum(pauses) == pytest.approx(2)
    assert target.read_text() == "old" and sorted(tmp_path.iterdir()) == [target, source]


def test_elsewhere_a_refusal_is_final_and_told_as_the_system_does(tmp_path, monkeypatch):
    hold, pauses = pretend_windows(monkeypatch)
    monkeypatch.setattr(files, "WINDOWS", False)
    hold(tmp_path / "a", math.inf)
    with pytest.raises(PermissionError, match="Access is denied"):
        remove(tmp_path / "a")
    assert not pauses


def test_a_temporary_file_in_use_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    hold, _ = pretend_windows(monkeypatch)
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a") as temporary:
        hold(temporary, math.inf)
        1 / 0  # noqa: B018


@pytest.mark.parametrize("number", ["EINVAL", "ENOTSUP", "EBADF", "EIO"])
def test_drives_that_cannot_sync_folders_will_do(tmp_path, monkeypatch, number):
    def sync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(getattr(errno, number), "fsync")

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="fsync") if number == "EIO" else nullcontext():
        write_json(tmp_path / "a.json", {})


@pytest.mark.parametrize("number", ["EAGAIN", "EWOULDBLOCK", "EACCES", "EDEADLK"])
def test_a_lock_of_another_process_is_told_from_a_drive_without_locks(tmp_path, monkeypatch, number):
    def lock_fails(number: int):
        def fail(file):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files, "_lock", fail)

    lock_fails(getattr(errno, number))
    with pytest.raises(BlockingIOError, match="x is in use by another process"), exclusive(tmp_path / "lock", "x"):
        pass
    lock_fails(errno.ENOLCK)
    told = r"/lock cannot be locked \(No locks available\): choose a folder on a drive that has locks"
    with pytest.raises(OSError, match=told), exclusive(tmp_path / "lock", "x"):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_folder_for_results_is_made_or_refused_with_the_mend(tmp_path):
    folder = tmp_path / "new" / "results"
    assert make_folder(folder) == make_folder(folder) == folder and not list(folder.iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc" if os.name != "nt" else "nul"):
        with pytest.raises(OSError, match="is no folder to write into .*give one in which you may write"):
            make_folder(path)


def test_no_room_left_is_told_as_such_whoever_writes(tmp_path):
    told = pytest.raises(DiskFullError, match="no room left to write .*a.json .*MiB free.: free some space")
    with told, atomic_file(tmp_path / "a.json"), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")
    with pytest.raises(RuntimeError, match="another trouble"), atomic_file(tmp_path / "a.json"):
        raise RuntimeError("another trouble")


@pytest.mark.parametrize(("windows", "numbers"), [(True, {39, 112}), (False, {28})])
def test_no_room_left_is_read_from_the_words_of_each_system(tmp_path, monkeypatch, windows, numbers):
    """safetensors is written in Rust, which hands on a sentence."""
    monkeypatch.setattr(files, "WINDOWS", windows)
    for number in (28, 39, 112, 1120):
        expected = DiskFullError if number in numbers else RuntimeError
        with pytest.raises(expected), atomic_file(tmp_path / "a"):
            raise RuntimeError(f"I/O error: something (os error {number})")


PROCESSES = {"runs": (7, 0, 259), "has ended": (7, 0, 1), "somebody else's": (None, 5, 0), "none": (None, 87, 0)}


@pytest.mark.parametrize("kind", PROCESSES)
def test_on_windows_a_process_lives_that_has_no_exit_code_or_is_somebody_elses(monkeypatch, kind):
    (handle, error, code), closed = PROCESSES[kind], []

    def exit_code(opened, place):
        place._obj.value = code

    kernel = SimpleNamespace(OpenProcess=lambda access, inherit, process: handle, GetExitCodeProcess=exit_code,
                             CloseHandle=lambda opened: closed.append(opened.value))  # fmt: skip
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    monkeypatch.setattr(files, "WINDOWS", True)
    assert process_is_alive(1234) is (kind in ("runs", "somebody else's"))
    assert closed == ([handle] if handle else [])


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    pid = int(dead.stdout)
    left = [tmp_path / f".part-{pid}-{MACHINE}-a", tmp_path / ".part-0-pruned"]
    of_another_machine = tmp_path / f".part-{pid}-0123abcd-a"
    kept = [tmp_path / f".part-{os.getpid()}-{MACHINE}-b", of_another_machine, tmp_path / "c.txt"]
    for path in left + kept:
        path.write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    remove_leftovers(tmp_path, nobody_else_writes=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "c.txt"]
    assert process_is_alive(os.getpid()) and not process_is_alive(pid)


def test_checksums_and_json(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Zoë"})
    content = (tmp_path / "a.json").read_bytes()
    assert content.decode() == '{\n  "name": "Zoë"\n}\n'
    assert sha256_of_file(tmp_path / "a.json") == hashlib.sha256(content).hexdigest()


def test_a_sampled_checksum_sees_size_ends_and_what_differs_everywhere(tmp_path):
    path, content = tmp_path / "weights", bytes(range(256)) * 400

    def of(data: bytes) -> str:
        path.write_bytes(data)
        return sampled_checksum(path, blocks=10, length=64)

    assert of(content) == of(content)
    other = bytes(byte ^ 1 for byte in content)
    found = [of(content), of(content + b"0"), of(b"0" + content[1:]), of(content[:-1] + b"0"), of(other)]
    assert len({*found, of(content[:600]), of(content[:599] + b"0")}) == 7


def test_signals_and_the_stop_file_are_heard_only_inside_the_block(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(tmp_path) as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            stop.check(1, 2)
    assert signal.getsignal(signal.SIGTERM) == before
    (tmp_path / "STOP").touch()
    with StopRequest(tmp_path) as stop:
        assert not stop.requested, "a file from an earlier run stopped this one"
        (tmp_path / "STOP").touch()
        assert stop.requested
    assert not (tmp_path / "STOP").exists()


SECOND_SIGNAL = """
import sys, time
sys.path.insert(0, sys.argv[1])
from comfyui_environment import load_script
load_script("pack").load_pack()
from likeness.pipelines.stop import StopRequest
with StopRequest():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_a_second_signal_ends_a_process_that_does_not_listen():
    child = subprocess.Popen([sys.executable, "-c", SECOND_SIGNAL, os.path.dirname(__file__)], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=10) == 128 + signal.SIGTERM
    assert "Second stop (SIGTERM)" in child.stderr.read()


def test_streams_depend_on_their_keys_only_and_not_on_each_other():
    torch.manual_seed(1)
    first = torch.randn(4, generator=generator(3, "noise", 7))
    torch.manual_seed(2)
    torch.randn(9)
    assert torch.equal(first, torch.randn(4, generator=generator(3, "noise", 7)))
    keys = [(3, "noise", 8), (4, "noise", 7), (3, "noise7"), (3, "noise", "7"), (37, "noise"), ("3", "noise", 7)]
    seeds = {seed_of(*key) for key in keys} | {seed_of(3, "noise", 7)}
    assert len(seeds) == len(keys) + 1
    assert all(0 <= seed < 2**63 for seed in seeds)
    # The same on every machine and in every version: data sets and runs are told apart by these numbers.
    assert seed_of(3, "noise", 7) == int.from_bytes(
        hashlib.sha256(b"int:3\x1fstr:noise\x1fint:7").digest()[:8], "little"
    ) // 2
