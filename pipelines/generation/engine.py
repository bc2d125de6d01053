"""Generating a data set: clears what dead runs left, has workers started, and shows how far they are."""

import sys
import time
from dataclasses import dataclass

from ..configuration import option
from ..files import remove, remove_leftovers
from ..stop import StopRequest
from .dataset import Dataset, table_of
from .lease import leased_shards, remove_stale
from .local import run_local
from .on_ray import run_on_ray
from .recipe import Recipe
from .survey import State, Survey
from .worker import Job, WorkerScript

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class RunSettings:
    """How it is made; none of these changes what is made."""

    workers: int | None = option(
        None, "processes of the local engine (default: one a GPU, without a GPU one a core)", minimum=1
    )
    devices: tuple[str, ...] = option((), "devices that workers take in turn, as torch names them (default: each GPU, "
                                      "without one cpu)")  # fmt: skip
    max_attempts: int = option(20, "how often an item may be rejected before its shard is given up", minimum=1)
    engine: str = option("local", "local: processes on this machine; ray: tasks on a running Ray cluster, all machines "
                         "of which see the output folder and this checkout", choices=("local", "ray"))  # fmt: skip
    ray_address: str = option("auto", "the Ray cluster: auto is the one this machine belongs to")
    ray_gpus: float = option(0.0, "GPUs that Ray sets aside for each shard", minimum=0)
    lease_timeout: float = option(
        120.0, "seconds without a sign of life after which a shard is taken from another machine", minimum=1
    )
    patience: float = option(
        60.0, "seconds that a worker may take over its item after a stop before it is killed", minimum=0
    )


def generate(
    dataset: Dataset, recipe: Recipe, script: WorkerScript, run: RunSettings, stop: StopRequest, say=print
) -> State:
    """Make all shards that are missing; returns the state at the end, complete or not.

    It is not complete after a stop and where shards were given up. Raises ``GenerationError``, ``ImportError`` (Ray is
    missing).
    """
    survey = Survey(dataset, run.lease_timeout)
    state = survey.look()
    if stop.requested or state.complete:
        return state
    _clear(dataset, run.lease_timeout)
    settings = table_of(recipe.settings)
    limits = {name: getattr(run, name) for name in ("max_attempts", "lease_timeout", "patience")}
    job = Job(str(dataset.folder.absolute()), settings, dataset.fingerprint, **limits)
    progress = Progress(survey, say)
    try:
        if run.engine == "ray":
            run_on_ray(dataset, script, job, stop, progress, run.ray_address, run.ray_gpus, run.devices)
        else:
            on_cpu = () if getattr(recipe, "uses_device", True) else ("cpu",)
            run_local(dataset, script, job, stop, progress, run.workers, run.devices or on_cpu)
    finally:
        progress.finish()
    return survey.look()


def _clear(dataset: Dataset, lease_timeout: float) -> None:
    """A new run owes nothing to old failures: everything unfinished is tried again."""
    remove_leftovers(dataset.folder)
    for failure in dataset.folder.glob("shard-*.failed"):
        remove(failure)
    for shard in leased_shards(dataset.folder):
        remove_stale(dataset.tar(shard), lease_timeout)


class Progress:
    """Call it often: it looks once a second, and writes a line when there is something to say."""

    def __init__(self, survey: Survey, say=print):
        self._survey, self._say = survey, say
        self._began = self._looked = self._spoke = time.monotonic()
        self._kept_before = survey.look().kept_so_far
        self._terminal = sys.stdout.isatty()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._looked < 1:
            return
        self._looked = now
        if self._terminal:
            print(f"\r{self.line():<100}", end="", flush=True)
        elif now - self._spoke >= SECONDS_BETWEEN_LINES:
            self._spoke = now
            self._say(self.line())

    def finish(self) -> None:
        if self._terminal:
            print(flush=True)
        self._say(self.line())

    def line(self) -> str:
        state = self._survey.look()
        kept, total = state.kept_so_far, state.dataset.total
        # What a killed worker had made of its shard is lost, so the count can fall.
        rate = max(kept - self._kept_before, 0) / max(time.monotonic() - self._began, 1e-3)
        left = f", {_duration((total - kept) / rate)} left" if rate > 0 and kept < total else ""
        return (
            f"{kept}/{total} items, {rate:.3g}/s{left}; {state.rejected_so_far} rejected; "
            f"shards: {len(state.finished)}/{len(state.dataset.shards)} finished, {len(state.leased)} in work"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
