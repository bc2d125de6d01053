"""In which order the data is seen: a function of the seed and the step, with no state to save or to lose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..randomness import generator


@dataclass(frozen=True)
class Request:
    """One sample of a step: which example, in which epoch, at which place of the global batch."""

    step: int
    slot: int
    epoch: int
    index: int


class Order:
    """Global batches of one size bucket each; every example once an epoch.

    Where a bucket does not fill its last batch, examples of that bucket are repeated: the trained weights then do not
    depend on how a global batch is spread over processes and micro-batches.
    """

    def __init__(self, buckets: Sequence[tuple[int, int]], global_batch: int, seed: int):
        """buckets: the size of each example; global_batch: samples of one optimiser step over all processes."""
        self.global_batch, self.seed = global_batch, seed
        self.members: dict[tuple[int, int], list[int]] = {}
        for index, bucket in enumerate(buckets):
            self.members.setdefault(bucket, []).append(index)
        self.steps_per_epoch = sum(-(-len(members) // global_batch) for members in self.members.values())
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def step(self, step: int) -> list[Request]:
        """The samples of one optimiser step, by slot."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return [Request(step, slot, epoch, index) for slot, index in enumerate(self._epoch[1][place])]

    def _batches(self, epoch: int) -> list[list[int]]:
        batches = []
        for bucket, members in self.members.items():
            stream = generator(self.seed, "order", epoch, *bucket)
            wanted = -(-len(members) // self.global_batch) * self.global_batch
            order: list[int] = []
            while len(order) < wanted:
                order += [members[place] for place in torch.randperm(len(members), generator=stream).tolist()]
            batches += [order[start : start + self.global_batch] for start in range(0, wanted, self.global_batch)]
        places = torch.randperm(len(batches), generator=generator(self.seed, "batches", epoch)).tolist()
        return [batches[place] for place in places]


def share(requests: list[Request], rank: int, processes: int, batch_size: int) -> list[list[Request]]:
    """The micro-batches of one process in a step: it takes every ``processes``-th run of ``batch_size`` slots."""
    runs = [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]
    return runs[rank::processes]


def micro_batches(
    order: Order, steps: range, rank: int, processes: int, batch_size: int
) -> Iterator[list[Request]]:
    """All micro-batches of one process over these steps, one after the other."""
    for step in steps:
        yield from share(order.step(step), rank, processes, batch_size)
