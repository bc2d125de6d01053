"""The Ray engine: one task a shard on a running cluster, through the same leases and files as the local engine.

All machines must see the output folder and this checkout under the same paths. A Ray process serves many tasks, so a
recipe's models are loaded once a process here, too.
"""

import socket
from collections.abc import Callable
from dataclasses import replace

from ..optional import need
from ..stop import StopRequest
from .dataset import Dataset
from .lease import MAX_DEATHS
from .worker import EXIT_HOPELESS, GenerationError, Job, WorkerScript

_POLL = 0.5


def run_on_ray(
    dataset: Dataset,
    script: WorkerScript,
    job: Job,
    stop: StopRequest,
    progress: Callable[[], None],
    address: str = "auto",
    gpus: float = 0.0,
    devices: tuple[str, ...] = (),
) -> None:
    """Make the missing shards on the cluster at ``address``, or on the one this process is connected to already.

    Raises ``ImportError`` without Ray, ``GenerationError`` where there is no cluster or workers cannot go on.
    """
    ray = need("ray", "ray")
    connected_before = ray.is_initialized()
    if not connected_before:
        _connect(ray, address)
    device = devices[0] if devices else ("cuda" if gpus else "cpu")
    # A try more than deaths allowed: the last one finds the shard given up, and says so in its file.
    task = ray.remote(num_gpus=gpus, max_retries=MAX_DEATHS, retry_exceptions=True)(_portable_task())
    try:
        shards = [shard for shard in dataset.shards if dataset.finished(shard) is None]
        jobs = [replace(job, device=device, shard=shard, stop_at_end_of_input=False) for shard in shards]
        arguments = [[*script.arguments, job.to_text()] for job in jobs]
        tasks = {task.remote(str(script.path), words): shard for shard, words in zip(shards, arguments, strict=True)}
        _watch(ray, tasks, stop, progress, job.patience)
    finally:
        if not connected_before:
            ray.shutdown()


def _connect(ray, address: str) -> None:
    try:
        _check_reachable(address)
        ray.init(address=address, logging_level="WARNING")
    except (OSError, RuntimeError, ValueError) as error:
        raise GenerationError(
            f"no Ray cluster at {address!r} ({error}): start one with `ray start --head`, or give --ray-address."
        ) from error


def _check_reachable(address: str) -> None:
    """Ray itself tries for five minutes and then ends the process."""
    host, _, port = address.rpartition("/")[-1].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _portable_task() -> Callable[[str, list[str]], int]:
    """A function without ties to this package, which Ray's processes cannot import by its name here."""

    def make_shard_by_script(path: str, arguments: list[str]) -> int:
        import importlib.util
        import os
        import sys

        name = "likeness_worker_script"
        try:
            if name not in sys.modules:
                os.environ["OPENCV_FOR_THREADS_NUM"] = "1"
                sys.path.insert(0, os.path.dirname(path))
                spec = importlib.util.spec_from_file_location(name, path)
                sys.modules[name] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(sys.modules[name])
            code = sys.modules[name].main(arguments)
        except KeyboardInterrupt:
            # Cancelled in the middle of an import, which no process can do twice: Ray has to start another.
            os._exit(1)
        if code == 1:
            raise RuntimeError("the recipe failed, see its message above")  # has Ray try again
        return code

    return make_shard_by_script


def _watch(ray, tasks: dict, stop: StopRequest, progress: Callable[[], None], patience: float) -> None:
    waiting = list(tasks)
    try:
        while waiting and not stop.requested:
            done, waiting = ray.wait(waiting, timeout=_POLL)
            for task in done:
                _check(ray, task, tasks[task])
            progress()
    finally:
        for task in waiting:
            ray.cancel(task)  # arrives as an interrupt, upon which the worker drops its shard in order
        if waiting:
            _, hanging = ray.wait(waiting, num_returns=len(waiting), timeout=patience)
            for task in hanging:
                ray.cancel(task, force=True)


def _check(ray, task, shard: int) -> None:
    try:
        code = ray.get(task)
    except ray.exceptions.RayError as error:
        print(f"Shard {shard}: {error}", flush=True)
        return
    if code == EXIT_HOPELESS:
        raise GenerationError("a worker could not go on; its message is above. Finished shards are intact.")
