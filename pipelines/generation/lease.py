"""Leases: who makes which shard now, agreed upon through files alone, so that machines need to share only a folder.

A shard's leases are numbered, the highest counts. Taking a shard over means to create the next number, which the file
system gives to one taker only (O_EXCL); nothing is renamed or removed, so no taker can rob another. The numbers that
stay behind count the workers which died over the shard. A holder that slept longer than the timeout finds its lease
lost and drops its work. If two ever publish the same shard in spite of all, both write the same bytes on like hardware:
a lease saves work, correctness does not hang on it.

The heartbeat proves that a holder lives, not that it gets on: a recipe that hangs keeps its shard until somebody stops
it. Ages of leases compare the clocks of machines, which should agree to well within the timeout. A heartbeat writes its
own time down: Windows dates a file anew only when it is closed.
"""

import errno
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..files import MACHINE, clear_disk_errors, process_is_alive, remove

# Fixed, so that a heartbeat overwrites in place: it needs no room on a full disk and readers never see half of it.
LEASE_BYTES = 2048
MAX_DEATHS = 3
# A process that lives here loses its lease only after so many timeouts: clocks jump, but its number may be another's.
LIVING_FACTOR = 10
_NAME = re.compile(r"shard-(\d+)\.(\d+)\.lease")
_KINDS = {"host": str, "machine": str, "process": int, "kept": int, "rejected": int, "error": str}


@dataclass(frozen=True)
class LeaseFile:
    """What a lease says: its number, who holds it, how far the holder is, and since when nothing was heard (s)."""

    path: Path
    number: int
    host: str = ""  # for people; ``machine`` is what counts
    machine: str = ""
    process: int = 0
    kept: int = 0
    rejected: int = 0
    error: str | None = None
    age: float = 0.0

    def is_stale(self, timeout: float) -> bool:
        """True if its holder will not finish: it said so, its process is gone, or it was silent for too long."""
        if self.error is not None or self.machine != MACHINE:
            return self.error is not None or self.age > timeout
        return not process_is_alive(self.process) or self.age > timeout * LIVING_FACTOR


def leased_shards(folder: Path) -> set[int]:
    """The shards with leases, held or not: one look at the folder instead of one for each shard."""
    return {int(match[1]) for path in folder.glob("shard-*.lease") if (match := _NAME.fullmatch(path.name))}


def read_leases(tar: Path) -> list[LeaseFile]:
    """All leases of the shard with this tar file, lowest number first."""
    return sorted(filter(None, map(_read, tar.parent.glob(f"{tar.stem}.*.lease"))), key=lambda lease: lease.number)


def _read(path: Path) -> LeaseFile | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    try:
        dated = path.stat().st_mtime
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:  # released just now
        return None
    except ValueError:  # created just now
        content = {}
    content = content if isinstance(content, dict) else {}
    known = {name: content[name] for name, kind in _KINDS.items() if isinstance(content.get(name), kind)}
    beat = content.get("beat")  # not in leases of older versions
    return LeaseFile(path, int(match[2]), age=time.time() - (beat if isinstance(beat, float) else dated), **known)


def acquire(tar: Path, timeout: float) -> "Lease | None":
    """A lease on the shard with this tar file; None if somebody else holds it, or was faster."""
    held = read_leases(tar)
    if held and not held[-1].is_stale(timeout):
        return None
    number = held[-1].number + 1 if held else 0
    try:
        lease = Lease(tar, number, timeout)
    except FileExistsError:
        return None
    now_held = read_leases(tar)
    if not now_held or now_held[-1].number != number:  # we looked too long ago: there were others since
        lease.release()
        return None
    return lease


def remove_stale(tar: Path, timeout: float) -> None:
    """Forget the dead holders of a shard which nobody makes now."""
    leases = read_leases(tar)
    if leases and leases[-1].is_stale(timeout):
        for lease in leases:
            _remove(lease.path)


def _remove(path: Path) -> None:
    # Windows refuses while somebody reads it: what is left of a finished shard does no harm, another lease gets stale.
    with suppress(PermissionError):
        remove(path)


class Lease:
    """A held lease; a thread of its own keeps it fresh and writes down ``kept`` and ``rejected``.

    Ends with ``release`` (done, or left to others) or ``abandon`` (the holder failed and counts as dead).
    """

    def __init__(self, tar: Path, number: int, timeout: float):
        """Raises ``FileExistsError`` if somebody has this number."""
        self.kept = self.rejected = 0
        self._tar, self._number = tar, number
        self.path = self._path_of(number)
        self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            with clear_disk_errors(self.path):
                self._write(None)
        except OSError:
            os.close(self._file)
            _remove(self.path)
            raise
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, args=(min(2.0, timeout / 4),), daemon=True)
        self._heart.start()

    def progress(self, kept: int, rejected: int) -> None:
        self.kept, self.rejected = kept, rejected

    def is_lost(self) -> bool:
        """True if it was taken for dead: somebody has the next number, or has removed this one."""
        return self._path_of(self._number + 1).exists() or not self._is_there()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except OSError as error:  # a network drive away for a moment proves nothing
            return error.errno not in (errno.ENOENT, errno.ESTALE)

    def _path_of(self, number: int) -> Path:
        return self._tar.with_name(f"{self._tar.stem}.{number}.lease")

    def release(self) -> None:
        """Give it back; of a lost lease whatever is still this holder's."""
        there = self._is_there()
        self._stop()
        for lease in read_leases(self._tar) if there else ():  # lowest first: any moment's state is a valid one
            if lease.number <= self._number:
                _remove(lease.path)

    def abandon(self, error: str) -> None:
        # A file name in it may hold what is no Unicode.
        printable = error.encode(errors="backslashreplace").decode()
        self._stop(lambda: self._write(printable[:300]))

    def _stop(self, last_words: Callable[[], None] = lambda: None) -> None:
        self._ended.set()
        self._heart.join()
        last_words()
        os.close(self._file)

    def _beat(self, interval: float) -> None:
        while not self._ended.wait(interval):
            try:
                self._write(None)
            except OSError:  # a network drive away for a moment: the next beat may come through
                continue

    def _write(self, error: str | None) -> None:
        content = {"host": socket.gethostname(), "machine": MACHINE, "process": os.getpid(), "beat": time.time(),
                   "kept": self.kept, "rejected": self.rejected, "error": error}  # fmt: skip
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, json.dumps(content, ensure_ascii=False).encode().ljust(LEASE_BYTES)[:LEASE_BYTES])
