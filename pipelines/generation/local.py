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
# So long may a worker take over its item when the run ends in an error.
_PATIENCE = 20.0


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
    devices = devices or _all_devices()
    count = min(workers or _default_workers(devices), _unfinished(dataset))
    crew = Crew(script, [replace(job, device=devices[index % len(devices)]) for index in range(count)])
    try:
        while crew.is_working():
            if stop.requested:
                crew.dismiss()
            crew.replace_dead(lambda: _unfinished(dataset))
            progress()
            time.sleep(_POLL)
    finally:
        crew.end()


def _all_devices() -> tuple[str, ...]:
    import torch

    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())) or ("cpu",)


def _default_workers(devices: tuple[str, ...]) -> int:
    return (os.cpu_count() or 1) if devices == ("cpu",) else len(devices)


def _unfinished(dataset: Dataset) -> int:
    return sum(dataset.finished(shard) is None for shard in dataset.shards)


class Crew:
    """One worker process for each job, from the constructor to ``end``."""

    def __init__(self, script: WorkerScript, jobs: list[Job]):
        self._commands = [script.command(job) for job in jobs]
        self._dismissed = False
        self._deaths, self._unfinished = 0, None
        self._processes = [_start(command) for command in self._commands]

    def is_working(self) -> bool:
        return any(process.returncode is None for process in self._processes)

    def dismiss(self) -> None:
        """Ask all to stop; they drop their unfinished shards."""
        self._dismissed = True
        for process in self._processes:
            process.stdin.close()

    def replace_dead(self, unfinished: Callable[[], int]) -> None:
        """Start another process for each that was killed or crashed. Raises ``GenerationError`` if that cannot help."""
        for index, process in enumerate(self._processes):
            already_seen = process.returncode is not None
            code = process.poll()
            if already_seen or code in (None, 0) or self._dismissed:
                continue
            if code == EXIT_HOPELESS:
                raise GenerationError("a worker could not go on; its message is above. Finished shards are intact.")
            print(f"Worker {process.pid} ended with code {code}; starting another.", file=sys.stderr, flush=True)
            self._count_death(unfinished())
            self._processes[index] = _start(self._commands[index])

    def _count_death(self, unfinished: int) -> None:
        # A shard that kills its workers is given up after MAX_DEATHS; here they die whatever the shard.
        self._deaths = self._deaths + 1 if unfinished == self._unfinished else 1
        self._unfinished = unfinished
        limit = MAX_DEATHS * (len(self._commands) + 1)
        if self._deaths > limit:
            raise GenerationError(f"{limit} workers died in a row and no shard was finished: see their messages above. "
                                  "If there are none, memory may be short: try fewer --workers.")  # fmt: skip

    def end(self) -> None:
        """Leave no process behind."""
        self.dismiss()
        deadline = time.monotonic() + _PATIENCE
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(command: list[str]) -> subprocess.Popen:
    # A group of its own: Ctrl-C is for this process, which then stops the workers in order.
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **group)
