"""From the cache to batches."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..randomness import generator
from .cache import TensorCache
from .order import Order, Request, micro_batches
from .task import Example, Task


class _Samples(Dataset):
    def __init__(self, task: Task, examples: list[Example], cache: TensorCache, seed: int):
        self.task, self.examples, self.cache, self.seed = task, examples, cache, seed

    def __getitem__(self, request: Request) -> tuple[Request, dict[str, Tensor]]:
        example = self.examples[request.index]
        draw = generator(self.seed, "augment", request.epoch, request.index, request.slot)
        sample = self.task.sample(example, lambda name: self.cache.load(example.sources[name]), draw)
        return request, sample


class _Batches(Sampler):
    def __init__(self, order: Order, steps: range, rank: int, processes: int, batch_size: int):
        self._arguments = (order, steps, rank, processes, batch_size)

    def __iter__(self) -> Iterator[list[Request]]:
        return micro_batches(*self._arguments)


def collate(samples: list[tuple[Request, dict[str, Tensor]]]) -> tuple[list[Request], dict[str, Tensor]]:
    """Stack samples to a micro-batch."""
    requests, tensors = zip(*samples, strict=True)
    return list(requests), {name: torch.stack([sample[name] for sample in tensors]) for name in tensors[0]}


def batches_of(
    task: Task, examples: list[Example], cache: TensorCache, seed: int, order: Order, steps: range,
    rank: int, processes: int, batch_size: int, workers: int, pin: bool,
) -> DataLoader:  # fmt: skip
    """(requests, tensors) of every micro-batch of this process over ``steps``, in order."""
    return DataLoader(
        _Samples(task, examples, cache, seed),
        batch_sampler=_Batches(order, steps, rank, processes, batch_size),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_ignore_signals,
    )


def _ignore_signals(worker: int) -> None:
    # Ctrl-C reaches the whole process group: the trainer alone decides, and ends its workers.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
