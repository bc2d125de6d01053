"""A worker: leases one shard after the other and makes it, until none is left to make."""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, make_dataclass
from functools import lru_cache
from pathlib import Path

from ..configuration import build_settings
from ..files import DiskFullError, clear_disk_errors
from ..stop import Stopped, StopRequest
from .dataset import Dataset, open_dataset
from .lease import MAX_DEATHS, Lease, acquire, read_leases
from .recipe import Recipe
from .shard import OutOfAttempts, make_shard

# Whatever ends the process with another code than this or 0 killed it; with this one no other worker would do better.
EXIT_HOPELESS = 70
_WAIT = 0.5


class GenerationError(RuntimeError):
    """The workers cannot go on; the message says why. What is finished is intact."""


@dataclass(frozen=True)
class Job:
    """All that a worker has to know; it travels as JSON on the command line.

    recipe_settings: the table of the recipe's settings; shard: only this one, None for all; device: as torch names it;
    lease_timeout: in seconds; stop_at_end_of_input: stop when standard input ends, which it does when the process that
    started this one wants that, or is gone.
    """

    folder: str
    recipe_settings: dict
    max_attempts: int = 20
    lease_timeout: float = 120.0
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
        recipe = _build_recipe(recipe_class, json.dumps(job.recipe_settings), job.device)
        with StopRequest() as stop, _one_thread():
            if job.stop_at_end_of_input:
                threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
            work(open_dataset(job.folder), recipe, job, stop)
    except Stopped:
        return 0
    except (DiskFullError, ValueError, ImportError) as error:
        print(f"Worker: {error}", file=sys.stderr, flush=True)
        return EXIT_HOPELESS
    except MakeError as error:
        traceback.print_exception(error.__cause__)
        return 1
    return 0


@lru_cache(maxsize=1)
def _build_recipe(recipe_class: type, table: str, device: str) -> Recipe:
    """The recipe with the settings of this JSON. Raises ``SettingsError`` or what its constructor raises."""
    holder = make_dataclass("Holder", [("recipe", recipe_class.Settings)], frozen=True)
    return recipe_class(build_settings(holder, {"recipe": json.loads(table)}).recipe, device)


class MakeError(Exception):
    """The recipe itself failed (its error is the cause); the shard's lease stays behind as a record of that."""


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
    if not _is_settled(dataset, shard):
        _make(dataset, shard, recipe, job, stop, lease)
    else:
        lease.release()
    return True


def _make(dataset: Dataset, shard: int, recipe: Recipe, job: Job, stop: StopRequest, lease: Lease) -> None:
    first = dataset.items(shard).start

    def on_attempt(item: int, rejected: int) -> None:
        lease.progress(item - first, rejected)
        stop.check()

    try:
        make_shard(dataset, shard, recipe, job.max_attempts, on_attempt)
    except OutOfAttempts as error:
        _give_up(dataset, shard, str(error))
    except (Stopped, DiskFullError, KeyboardInterrupt):
        lease.release()
        raise
    except Exception as error:
        lease.abandon(f"{type(error).__name__}: {error}")
        raise MakeError(f"shard {shard}") from error
    lease.release()


def _give_up(dataset: Dataset, shard: int, reason: str) -> None:
    with clear_disk_errors(dataset.failure(shard)):
        dataset.failure(shard).write_text(reason + "\n", encoding="utf-8")


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


def _stop_at_end_of_input(stop: StopRequest) -> None:
    try:
        while os.read(0, 1):
            continue
    except OSError:
        pass
    stop.reason = stop.reason or "the process that started this worker"
