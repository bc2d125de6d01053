"""Files that appear whole or not at all, whatever happens to the process, the machine or the disk."""

import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_PREFIX = ".part-"


def _machine() -> str:
    """Tells apart where process numbers mean different things: machines, containers of one machine, its restarts."""
    marks = [socket.gethostname()]
    with suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        marks.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:8]


# In the names of temporary files, because machines that share a folder know nothing of each other's processes.
MACHINE = _machine()
WINDOWS = os.name == "nt"
# There, virus scanners, indexers and OneDrive keep what is fresh open: a file for a second, a large folder for many.
REPLACE_PATIENCE = 30.0
REMOVE_PATIENCE = 2.0


class DiskFullError(OSError):
    """No room left where a file was to be written; nothing that was there before has changed."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes ``path`` when the block ends well, else it is removed.

    The bytes are on the disk before the name is. Raises ``DiskFullError`` where there is no room.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with clear_disk_errors(path):
            yield temporary
            move_into_place(temporary, path)
    finally:
        _clear_away(temporary)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes ``path`` (which must not exist) when the block ends well."""
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with clear_disk_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            _sync_folder(temporary)
            replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        _clear_away(temporary)


def make_folder(path: str | Path) -> Path:
    """The folder, made with those above it where it is not there.

    Raises ``OSError`` saying what to do where it cannot be, or nothing can be written into it.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        if _means_disk_full(error):
            raise
        raise OSError(
            f"{path} is no folder to write into ({error.strerror}): give one in which you may write."
        ) from error


def move_into_place(finished: Path, path: Path) -> None:
    """Give a finished file its name, in place of what has it; its bytes are on the disk before the name is."""
    _sync(finished)
    replace(finished, path)
    _sync_folder(path.parent)


def replace(source: Path, target: Path, patience: float = REPLACE_PATIENCE) -> None:
    """Give a file or folder the name ``target``; a file takes the place of the one that has it.

    Raises ``PermissionError`` saying so where another program still has either open after ``patience`` seconds.
    """
    held = target if target.exists() else source
    _insist(lambda: source.replace(target), held, patience)


def replace_folder(fresh: Path, target: Path) -> None:
    """Give the folder ``fresh`` the name ``target``, in place of the folder that has it. Raises as ``replace`` does."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():  # moved away whole, or not at all where another program has one of its files open
        replace(target, old)
    replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file that may be gone already. Raises ``PermissionError`` as ``replace`` does, though sooner."""
    _insist(lambda: path.unlink(missing_ok=True), path, REMOVE_PATIENCE)


def _insist(act: Callable[[], object], held: Path, patience: float) -> None:
    """Do what Windows refuses while another program has ``held`` open, as soon as it lets go."""
    pause = 0.05
    while True:
        try:
            act()
            return
        except PermissionError as error:
            if not WINDOWS:
                raise
            if patience <= 0:
                raise PermissionError(
                    f"{held} is in use by another program (ComfyUI?): close it and run the same command again."
                ) from error
        time.sleep(min(pause, patience))
        patience -= pause
        pause *= 1.5


def write_text(path: str | Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_between(path: str | Path, name: str, text: str) -> None:
    """Put ``text`` between the marks ``<!-- name -->`` and ``<!-- /name -->`` of a Markdown file.

    Raises ``ValueError`` where the file lacks them.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = Path(path).read_text(encoding="utf-8").partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{path} has no place for this text: put the lines {begin} and {end} where it shall stand.")
    write_text(path, f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def write_json(path: str | Path, content: dict) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sha256_of_file(path: str | Path) -> str:
    """Checksum of a file in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sampled_checksum(path: str | Path, blocks: int = 256, length: int = 4096) -> str:
    """SHA-256 of a file's size and of ``blocks`` spread evenly over it, the first and the last bytes among them.

    All of a small file. It takes milliseconds where all of a checkpoint takes a minute, and tells models apart, which
    differ everywhere; a change of some bytes between the blocks is not seen.
    """
    size = Path(path).stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= blocks * length:
            digest.update(file.read())
        else:
            for block in range(blocks):
                file.seek(block * (size - length) // (blocks - 1))
                digest.update(file.read(length))
    return digest.hexdigest()


def bytes_text(count: float) -> str:
    """A number of bytes as people read it."""
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def remove_leftovers(folder: str | Path, nobody_else_writes: bool = False) -> None:
    """Remove temporary files and folders right below ``folder`` whose process is gone (killed while it wrote).

    Those of other machines, and of this one before it was started anew, stay unless ``nobody_else_writes``: whether
    their processes live cannot be known here.
    """
    for entry in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        process, _, rest = entry.name[len(TEMPORARY_PREFIX) :].partition("-")
        ours = process == "0" or rest.startswith(f"{MACHINE}-")
        gone = ours and not (process.isdigit() and process_is_alive(int(process)))
        if gone or nobody_else_writes:
            _clear_away(entry)


def process_is_alive(process: int) -> bool:
    """True if a process of this number runs on this machine."""
    if process <= 0:
        return False
    if WINDOWS:  # there, signal 0 would end the process
        return _is_alive_on_windows(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_alive_on_windows(process: int) -> bool:
    import ctypes
    from ctypes import wintypes

    access_denied, query_limited_information, still_active = 5, 0x1000, 259
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = wintypes.HANDLE
    handle = kernel.OpenProcess(query_limited_information, False, process)
    if not handle:
        return ctypes.get_last_error() == access_denied  # it is somebody else's
    try:
        # A process that has ended can be opened for as long as anybody, its parent say, keeps a handle of it.
        code = wintypes.DWORD()
        kernel.GetExitCodeProcess(wintypes.HANDLE(handle), ctypes.byref(code))
        return code.value == still_active
    finally:
        kernel.CloseHandle(wintypes.HANDLE(handle))


@contextmanager
def exclusive(path: str | Path, what: str, remove: bool = False) -> Iterator[None]:
    """Block in which no other process holds the lock file ``path``; the system frees it when its holder is gone.

    With ``remove`` the file is gone after the block. Raises ``BlockingIOError`` saying that ``what`` is in use, another
    ``OSError`` where the drive has no locks.
    """
    with open(path, "a+b") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise OSError(
                    f"{path} cannot be locked ({error.strerror}): choose a folder on a drive that has locks, such as "
                    "one of this machine."
                ) from error
            raise BlockingIOError(
                f"{what} is in use by another process: wait for it or stop it, or choose another folder."
            ) from None
        try:
            yield
        finally:
            if remove and not WINDOWS:  # there, what is open cannot be removed
                Path(path).unlink(missing_ok=True)
            elif remove:
                file.close()
                with suppress(OSError):
                    Path(path).unlink()


def _lock(file) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def clear_disk_errors(path: str | Path) -> Iterator[None]:
    """Turn "no space left" in any of its dresses into a ``DiskFullError`` that names the place and the mend."""
    try:
        yield
    except Exception as error:
        if not _means_disk_full(error):
            raise
        raise DiskFullError(
            errno.ENOSPC,
            f"no room left to write {path} ({_free_text(Path(path))}): free some space or choose another folder. "
            "Everything written before is intact",
        ) from error


def _means_disk_full(error: Exception) -> bool:
    if isinstance(error, DiskFullError):
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # Writers in other languages (safetensors, torch's zip writer) hand on no errno, only words. The numbers in them are
    # the system's: what Windows means by 39 and 112 is "not empty" and "host is down" on Linux.
    numbers = (39, 112) if WINDOWS else (errno.ENOSPC,)
    signs = [f"(os error {number})" for number in numbers]
    return any(sign in str(error) for sign in (*signs, "No space left", "file write failed", "unexpected pos"))


def _free_text(path: Path) -> str:
    folder = next((folder for folder in path.parents if folder.exists()), Path("."))
    return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB free"


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that ``remove_leftovers`` knows as this process's."""
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{MACHINE}-{path.name}")


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if WINDOWS:  # has no handle for folders; the rename is journalled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # network and FUSE drives may sync files only
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _clear_away(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        with suppress(PermissionError):  # which would hide what went wrong before; ``remove_leftovers`` tries again
            remove(temporary)
