"""A worker: leases one shard after the other and makes it, until none is left to make."""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from ..configuration import build_section
from ..files import DiskFullError, clear_disk_errors
from ..stop import Stopped, StopRequest
from .dataset import Dataset, DatasetError, fingerprint_of, open_dataset
from .lease import MAX_DEATHS, Lease, acquire, read_leases
from .recipe import Recipe
from .shard import OutOfAttempts, RecipeFailed, make_shard

# Whatever ends the process with another code than this or 0 killed it; with this one no other worker would do better.
EXIT_HOPELESS = 70
# Stopped by a signal that was not from whoever started this worker: another one may take its place.
EXIT_STOPPED = 71
POLL_INPUT = 0.2  # seconds
INPUT_ENDED = "the process that started this worker"
_WAIT = 0.5


class GenerationError(RuntimeError):
    """The workers cannot go on; the message says why. What is finished is intact."""


@dataclass(frozen=True)
class Job:
    """All that a worker has to know; it travels as JSON on the command line.

    recipe_settings: the table of the recipe's settings; fingerprint: what the data set's has to be; lease_timeout,
    patience: in seconds; device: as torch names it; shard: only this one, None for all; stop_at_end_of_input: stop when
    standard input ends, which it does when the process that started this one wants that, or is gone.
    """

    folder: str
    recipe_settings: dict
    fingerprint: str
    max_attempts: int = 20
    lease_timeout: float = 120.0
    patience: float = 60.0
    device: str = "cpu"
    shard: int | None = None
    stop_at_end_of_input: bool = True

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> "Job":
        return Job(**json.loads(text))


@dataclass(frozen=True)
class WorkerScript:
    """The script that a worker process runs, with its first arguments; the job's text follows as the last one.

    The script loads the pack, finds the recipe's class and returns ``worker_main(class, job)`` from its function
    ``main(arguments)``. This package cannot start itself: it does not know under which name it was loaded.
    """

    path: Path
    arguments: tuple[str, ...] = ()

    def command(self, job: Job) -> list[str]:
        return [sys.executable, str(self.path), *self.arguments, job.to_text()]


def worker_main(recipe_class: type, job: Job) -> int:
    """Work until nothing is left or a stop is asked for; returns the exit code of the process.

    A process that is given one job after the other builds the recipe once.
    """
    try:
        with StopRequest() as stop, _one_thread():
            if job.stop_at_end_of_input:
                threading.Thread(target=_stop_at_end_of_input, args=(stop, job.patience), daemon=True).start()
            recipe = _build_recipe(recipe_class, json.dumps(job.recipe_settings), job.device, job.fingerprint)
            work(_open_for(job, recipe), recipe, job, stop)
    except Stopped:
        return 0 if stop.reason == INPUT_ENDED else EXIT_STOPPED
    except (DiskFullError, ValueError, ImportError) as error:
        print(f"Worker: {error}", file=sys.stderr, flush=True)
        return EXIT_HOPELESS
    except MakeError as error:
        traceback.print_exception(error.__cause__)
        # What is not installed will not be there for the next worker either.
        return EXIT_HOPELESS if isinstance(error.__cause__, ImportError) else 1
    return 0


@lru_cache(maxsize=1)
def _build_recipe(recipe_class: type, table: str, device: str, fingerprint: str) -> Recipe:
    """The recipe with the settings of this JSON. Raises ``SettingsError`` or what its constructor raises.

    fingerprint: another one means that the files which the recipe read then may have changed.
    """
    return recipe_class(build_section(recipe_class.Settings, json.loads(table), "recipe"), device)


def _open_for(job: Job, recipe: Recipe) -> Dataset:
    """The data set of the job. Raises ``DatasetError`` if it, or what this process would make, is another one."""
    dataset = _check_folder(job.folder, job.fingerprint)
    if fingerprint_of(recipe, dataset.seed, dataset.shard_size) != job.fingerprint:
        raise DatasetError(f"this process would make other items than {dataset.folder} is to hold: the files that "
                           f"{recipe.name} reads have changed, or this machine sees others. Put them back, or make a "
                           "new data set.")  # fmt: skip
    return dataset


def _check_folder(folder: str | Path, fingerprint: str) -> Dataset:
    """The data set in ``folder``; of two runs that began there at once with different settings, one ends here."""
    dataset = open_dataset(folder)
    if dataset.fingerprint != fingerprint:
        raise DatasetError(f"{folder} is to hold a data set of other settings (fingerprint {dataset.fingerprint}, not "
                           f"{fingerprint}): another run began there. Choose another folder for one.")  # fmt: skip
    return dataset


class LeaseLost(Exception):
    """The shard was taken from this worker, which seemed dead; whoever has it now makes it."""


class MakeError(Exception):
    """A shard could not be made (the error is the cause); its lease stays behind as a record of that."""


def work(dataset: Dataset, recipe: Recipe, job: Job, stop: StopRequest) -> None:
    """Make shards until all are finished or given up; waits for those that others make, in case they die.

    Raises ``Stopped``, ``DiskFullError``, ``MakeError``.
    """
    pending = list(dataset.shards if job.shard is None else [job.shard])
    while pending:
        for shard in list(pending):
            stop.check()
            if _is_settled(dataset, shard) or _try_shard(dataset, shard, recipe, job, stop):
                pending.remove(shard)
        if pending:
            time.sleep(_WAIT)


def _is_settled(dataset: Dataset, shard: int) -> bool:
    return dataset.finished(shard) is not None or dataset.failure(shard).exists()


def _try_shard(dataset: Dataset, shard: int, recipe: Recipe, job: Job, stop: StopRequest) -> bool:
    """Make the shard unless somebody else does; True if it is settled now."""
    tar = dataset.tar(shard)
    leases = read_leases(tar)
    if len(leases) >= MAX_DEATHS and leases[-1].is_stale(job.lease_timeout):
        last_words = leases[-1].error or "the process was killed or crashed, perhaps for want of memory"
        _give_up(dataset, shard, f"{len(leases)} workers died over it; the last: {last_words}.")
        return True
    lease = acquire(tar, job.lease_timeout)
    if lease is None:
        return False
    if _is_settled(dataset, shard):
        lease.release()
        return True
    return _make(dataset, shard, recipe, job, stop, lease)


def _make(dataset: Dataset, shard: int, recipe: Recipe, job: Job, stop: StopRequest, lease: Lease) -> bool:
    """Make the shard, or give it up; False if the lease was lost meanwhile."""
    first = dataset.items(shard).start

    def check_lease() -> None:
        if lease.is_lost():
            raise LeaseLost

    def on_attempt(item: int, rejected: int) -> None:
        lease.progress(item - first, rejected)
        stop.check()
        check_lease()

    def before_publishing() -> None:
        check_lease()
        _check_folder(dataset.folder, dataset.fingerprint)

    try:
        make_shard(dataset, shard, recipe, job.max_attempts, on_attempt, before_publishing)
    except OutOfAttempts as error:
        _give_up(dataset, shard, str(error))
    except (Stopped, DatasetError, DiskFullError, KeyboardInterrupt):
        lease.release()
        raise
    except Exception as error:
        # Its new holder removes a lost shard's temporary file, which is no failure of this one.
        if not lease.is_lost():
            _abandon(lease, shard, error)
        lease.release()
        return False
    lease.release()
    return True


def _abandon(lease: Lease, shard: int, error: Exception) -> None:
    cause = error.__cause__ if isinstance(error, RecipeFailed) else error
    lease.abandon(f"{type(cause).__name__}: {cause}")
    raise MakeError(f"shard {shard}") from cause


def _give_up(dataset: Dataset, shard: int, reason: str) -> None:
    with clear_disk_errors(dataset.failure(shard)):
        dataset.failure(shard).write_text(reason + "\n", encoding="utf-8", errors="backslashreplace")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over several threads depend on their number in the last bit, and workers are many enough."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _stop_at_end_of_input(stop: StopRequest, patience: float) -> None:
    try:
        while _input_is_open():
            continue
    except OSError:
        pass
    stop.reason = stop.reason or INPUT_ENDED
    # Nobody may be left who kills a worker that hangs in its item; one that does not has ended by then.
    time.sleep(patience)
    os._exit(EXIT_STOPPED)


def _input_is_open() -> bool:
    """Wait for something to happen to standard input, and tell whether it goes on. Raises ``OSError`` at its end."""
    if os.name != "nt":
        return bool(os.read(0, 1))
    # On Windows a read that waits holds up whoever else asks about the same pipe: scipy does so while it is imported.
    import _winapi
    import msvcrt

    _winapi.PeekNamedPipe(msvcrt.get_osfhandle(0), 0)
    time.sleep(POLL_INPUT)
    return True
