"""The local engine: worker processes on this machine, watched and replaced when they die.

A worker is told to stop by the end of its standard input. That works on every system, and happens by itself when this
process is killed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from ..stop import StopRequest
from .dataset import Dataset
from .lease import MAX_DEATHS
from .worker import EXIT_HOPELESS, GenerationError, Job, WorkerScript

_POLL = 0.1
# Up to so many shards given up count as progress: some bad ones are no reason to end, nothing but bad ones is.
MOST_GIVEN_UP = 10


def run_local(
    dataset: Dataset,
    script: WorkerScript,
    job: Job,
    stop: StopRequest,
    progress: Callable[[], None],
    workers: int | None,
    devices: tuple[str, ...],
) -> None:
    """Run workers until nothing is left to make or ``stop`` is requested. Raises ``GenerationError``."""
    devices = devices or all_devices()
    count = min(workers or _default_workers(devices), _unfinished(dataset))
    crew = Crew(script, [replace(job, device=devices[index % len(devices)]) for index in range(count)], job.patience)
    try:
        while crew.is_working() and not crew.is_overdue():
            if stop.requested:
                crew.dismiss()
            crew.replace_dead(lambda: _unfinished(dataset) - _given_up(dataset))
            progress()
            time.sleep(_POLL)
    finally:
        crew.end()


def all_devices() -> tuple[str, ...]:
    """What workers run on where nothing is asked for: every GPU, or the CPU."""
    import torch

    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())) or ("cpu",)


def _default_workers(devices: tuple[str, ...]) -> int:
    return (os.cpu_count() or 1) if devices == ("cpu",) else len(devices)


def _unfinished(dataset: Dataset) -> int:
    return sum(dataset.finished(shard) is None for shard in dataset.shards)


def _given_up(dataset: Dataset) -> int:
    return min(sum(dataset.failure(shard).exists() for shard in dataset.shards), MOST_GIVEN_UP)


class Crew:
    """One worker process for each job, from the constructor to ``end``.

    patience: how long a worker may take over its item, in seconds, after ``dismiss``.
    """

    def __init__(self, script: WorkerScript, jobs: list[Job], patience: float):
        self._commands = [script.command(job) for job in jobs]
        self._patience = patience
        self._deadline: float | None = None  # set once dismissed
        self._deaths, self._left = 0, None
        self._processes = [_start(command) for command in self._commands]

    def is_working(self) -> bool:
        return any(process.returncode is None for process in self._processes)

    def dismiss(self) -> None:
        """Ask all to stop; they drop their unfinished shards."""
        if self._deadline is not None:
            return
        self._deadline = time.monotonic() + self._patience
        for process in self._processes:
            process.stdin.close()

    def is_overdue(self) -> bool:
        """True when the dismissed have had their time: who works still hangs, and ``end`` kills it."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def replace_dead(self, left: Callable[[], int]) -> None:
        """Start another process for each that was killed or crashed. Raises ``GenerationError`` if that cannot help.

        ``left`` says how much there is to do: while it falls, workers may die.
        """
        for index, process in enumerate(self._processes):
            already_seen = process.returncode is not None
            code = process.poll()
            if already_seen or code in (None, 0) or self._deadline is not None:
                continue
            if code == EXIT_HOPELESS:
                raise GenerationError("a worker could not go on; its message is above. Finished shards are intact.")
            print(f"Worker {process.pid} ended with code {code}; starting another.", file=sys.stderr, flush=True)
            self._count_death(left())
            self._processes[index] = _start(self._commands[index])

    def _count_death(self, left: int) -> None:
        # A shard that kills its workers is given up after MAX_DEATHS; here they die whatever the shard.
        self._deaths = self._deaths + 1 if left == self._left else 1
        self._left = left
        limit = MAX_DEATHS * (len(self._commands) + 1)
        if self._deaths > limit:
            raise GenerationError(f"{limit} workers died in a row and no shard was finished: see their messages above. "
                                  "If there are none, memory may be short: try fewer --workers.")  # fmt: skip

    def end(self) -> None:
        """Leave no process behind."""
        self.dismiss()
        for process in self._processes:
            try:
                process.wait(max(self._deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                print(f"Worker {process.pid} does not stop: killed.", file=sys.stderr, flush=True)
                process.kill()
                process.wait()


def _start(command: list[str]) -> subprocess.Popen:
    # A group of its own: Ctrl-C is for this process, which then stops the workers in order.
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **group)
