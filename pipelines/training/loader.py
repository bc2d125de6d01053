"""From the cache to batches, read ahead by threads.

Threads and not processes: reading a cache is no work for Python, models need not be copied, and it is the same on every
system.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..randomness import generator
from .cache import TensorCache
from .order import Request
from .task import Example, Task

Batch = tuple[list[Request], dict[str, Tensor]]


class BatchReader:
    """Makes micro-batches of a task's examples; the same request always gives the same sample."""

    def __init__(self, task: Task, examples: list[Example], cache: TensorCache, seed: int):
        self.task, self.examples, self.cache, self.seed = task, examples, cache, seed

    def batch(self, requests: list[Request]) -> Batch:
        """The stacked samples of one micro-batch, on the CPU."""
        samples = [self._sample(request) for request in requests]
        return requests, {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, request: Request) -> dict[str, Tensor]:
        example = self.examples[request.index]
        draw = generator(self.seed, "augment", request.epoch, request.index, request.slot)
        return self.task.sample(example, lambda name: self.cache.load(example.sources[name]), draw)

    def batches(self, wanted: Iterator[list[Request]], threads: int, pin: bool) -> Iterator[Batch]:
        """One batch for each list of requests, in order, some of them made in advance; ``pin`` for a GPU."""

        def make(requests: list[Request]) -> Batch:
            requests, tensors = self.batch(requests)
            return requests, {name: tensor.pin_memory() if pin else tensor for name, tensor in tensors.items()}

        pool, ahead = ThreadPoolExecutor(threads, thread_name_prefix="reader"), deque()
        try:
            for requests in wanted:
                ahead.append(pool.submit(make, requests))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
