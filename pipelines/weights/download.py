"""Getting external weights: from the Hugging Face hub or a plain address, resumed, checked, whole or not at all."""

import glob
import logging
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..files import (
    DiskFullError,
    atomic_file,
    bytes_text,
    clear_disk_errors,
    exclusive,
    move_into_place,
    remove,
    sha256_of_file,
)
from .manifest import HUB, State, WeightFile, destination, find, state

SHA256 = re.compile(r"[0-9a-f]{64}")
# Left free, because a disk filled to the last byte stops everything else.
HEADROOM = 64 << 20

logger = logging.getLogger(__name__)


class DownloadError(OSError):
    """The file could not be had; the message says why and how to put it in place by hand."""


@dataclass(frozen=True)
class Remote:
    """A file on the net: its address, its size in bytes and checksum as far as known, and what marks its content."""

    url: str
    size: int | None
    sha256: str | None
    mark: str


class _Reporting:
    """A file that reports how much was written; ``raised`` keeps what the report raised."""

    def __init__(self, file: BinaryIO, total: int | None, report: Callable[[int, int | None], None]):
        self.file, self.total, self.report = file, total, report
        self.raised: BaseException | None = None

    def write(self, data: bytes) -> int:
        written = self.file.write(data)
        try:
            self.report(self.file.tell(), self.total)
        except BaseException as error:
            self.raised = error
            raise
        return written

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def download(
    weight: WeightFile, models: Path, on_progress: Callable[[int, int | None], None] = lambda done, total: None,
    endpoint: str | None = None,
) -> list[Path]:  # fmt: skip
    """Put a weight where it belongs below ``models``; return its files. What is there and right stays as it is.

    on_progress: called with (bytes so far, bytes in all or None); may raise to stop: what was loaded is kept and the
    next call goes on there. endpoint: address of the hub (default: huggingface-hub's own, ``HF_ENDPOINT``).

    Raises ``DownloadError`` where the file cannot be had (also offline, ``HF_HUB_OFFLINE=1``), ``DiskFullError`` where
    there is no room (checked before), ``ValueError`` where the content is not what the manifest says,
    ``BlockingIOError`` where another process downloads it.
    """
    folder = destination(weight, models)
    if state(weight, [models], checksums=True) in (State.PRESENT, State.VERIFIED):
        return find(weight, [models])
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f".{weight.save_as}.lock"
    with exclusive(lock, f"{folder / weight.save_as}", remove=True):
        _place(weight, folder, _fetch(weight, folder, on_progress, endpoint))
    return find(weight, [models])


def _fetch(weight: WeightFile, folder: Path, on_progress: Callable, endpoint: str | None) -> Path:
    """The whole, checked file under its temporary name."""
    writer = None
    try:
        remote = _remote(weight, endpoint)
        partial = _partial(weight, folder, remote)
        done = partial.stat().st_size if partial.exists() else 0
        _check_room(remote, done, folder, weight)
        with clear_disk_errors(folder / weight.save_as), open(partial, "ab") as file:
            writer = _Reporting(file, remote.size, on_progress)
            _get(remote, writer, done, weight)
    except (DownloadError, DiskFullError, ValueError, ImportError):
        raise
    except Exception as error:
        if writer is not None and error is writer.raised:
            raise
        raise DownloadError(f"{weight.name}: {_reason(weight, error)} {by_hand(weight, folder)}") from error
    _check_content(weight, remote, partial)
    return partial


def _remote(weight: WeightFile, endpoint: str | None) -> Remote:
    """What the net says of the file before any of it is loaded."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("offline mode is on (HF_HUB_OFFLINE)")
    if weight.url:
        return Remote(weight.url, weight.size, weight.sha256, (weight.sha256 or "unknown")[:12])
    url = hf_hub_url(weight.repository, weight.file, revision=weight.revision, endpoint=endpoint)
    said = get_hf_file_metadata(url, endpoint=endpoint)
    tag = (said.etag or "").lower()
    # The tag of a large file is its checksum, that of a small one its git name.
    found = tag if SHA256.fullmatch(tag) else None
    for name, ours, theirs in (("sha256", weight.sha256, found), ("size", weight.size, said.size)):
        if ours is not None and theirs is not None and ours != theirs:
            raise ValueError(
                f"{weight.name}: {weight.page} is now another file ({name} {theirs}, the manifest says {ours}): "
                "nothing was loaded. Update the pack, or check the file's page."
            )
    return Remote(url, said.size or weight.size, weight.sha256 or found, re.sub(r"\W", "", tag)[:12] or "unknown")


def _partial(weight: WeightFile, folder: Path, remote: Remote) -> Path:
    """Where the beginning of exactly this content is kept; beginnings of other contents are removed."""
    partial = folder / f".{weight.save_as}.{remote.mark}.partial"
    if remote.size is None:  # nothing says whether the address still holds the content that was begun
        remove(partial)
    for old in folder.glob(f".{glob.escape(weight.save_as)}.*.partial"):
        if old != partial:
            remove(old)
    if remote.size is not None and partial.exists() and partial.stat().st_size > remote.size:
        remove(partial)
    return partial


def _check_room(remote: Remote, done: int, folder: Path, weight: WeightFile) -> None:
    if remote.size is None:
        return
    # An archive and its members are there together for a moment.
    wanted = (remote.size * (2 if weight.unpack else 1)) - done + HEADROOM
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise DiskFullError(
            28, f"{weight.name} needs {bytes_text(wanted)} in {folder}, {bytes_text(free)} are free: free some space "
            "or give another models folder; nothing was loaded",
        )  # fmt: skip


def _get(remote: Remote, writer: _Reporting, done: int, weight: WeightFile) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if remote.size is not None and done == remote.size:
        return
    if done:
        logger.info("%s: going on after %s.", weight.name, bytes_text(done))
    headers = {} if weight.url else build_hf_headers()
    http_get(
        remote.url, writer, resume_size=done, headers=headers, expected_size=remote.size, displayed_filename=weight.name
    )


def _check_content(weight: WeightFile, remote: Remote, partial: Path) -> None:
    size = partial.stat().st_size
    if remote.size is not None and size != remote.size:
        raise DownloadError(f"{weight.name}: {size} of {remote.size} bytes came: run it again, it goes on there.")
    if remote.sha256 is None:
        logger.warning("%s: no checksum is known for it, so its content was not checked.", weight.name)
        return
    found = sha256_of_file(partial)
    if found != remote.sha256:
        remove(partial)
        raise ValueError(
            f"{weight.name}: what came from {remote.url} has the checksum {found}, it should have {remote.sha256}. It "
            "was removed: run it again; if that repeats, the file was changed or something on the way alters it."
        )


def _place(weight: WeightFile, folder: Path, finished: Path) -> None:
    if not weight.unpack:
        move_into_place(finished, folder / weight.save_as)
        return
    try:
        with zipfile.ZipFile(finished) as archive:
            members = {PurePosixPath(name).name: name for name in archive.namelist()}
            lacking = [name for name in weight.unpack if name not in members]
            if lacking:
                raise ValueError(f"{weight.name}: the archive lacks {', '.join(lacking)}: the publisher changed it.")
            for name in weight.unpack:  # flat, however deep they lie, so that no path in the archive counts
                _unpack(archive, members[name], folder / name)
    except zipfile.BadZipFile as error:
        remove(finished)
        raise ValueError(f"{weight.name}: the archive is damaged ({error}) and was removed: run it again.") from error
    remove(finished)


def _unpack(archive: zipfile.ZipFile, member: str, path: Path) -> None:
    with atomic_file(path) as target, archive.open(member) as packed, open(target, "wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)


def by_hand(weight: WeightFile, folder: Path) -> str:
    """How a person puts the file in place."""
    if weight.unpack:
        return f"By hand: get {weight.page} and put {', '.join(weight.unpack)} from it into {folder}."
    return f"By hand: get {weight.page} and save it as {folder / weight.save_as}."


def _reason(weight: WeightFile, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "offline mode is on (HF_HUB_OFFLINE), so nothing is loaded from the net."
    if isinstance(error, errors.GatedRepoError):
        return f"its publisher wants the licence accepted: do so at {HUB}/{weight.repository}, then `hf auth login`."
    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)):
        return "the file is not there any more (moved, renamed or withdrawn)."
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = f"the server answered {status}" if status else f"{type(error).__name__}: {str(error)[:200]}"
    return f"{said}. What was loaded is kept: run it again, it goes on there."
