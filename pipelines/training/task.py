"""What a training task says. Everything else is the trainer's."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..randomness import generator


@dataclass(frozen=True)
class Source:
    """One thing that an encoder sees once, and whose encoding is kept on disk.

    kind: which encoder, as the task names it; content: checksum of the file or text; detail: whatever else the encoding
    depends on (size, crop, flip). Equal sources share one entry of the cache.
    """

    kind: str
    content: str
    detail: str = ""
    payload: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Example:
    """One item of the data: what errors call it, the size ``(H, W)`` it is trained at, and its sources by name.

    payload: whatever else the task wants to find again in ``sample``.
    """

    name: str
    bucket: tuple[int, int]
    sources: Mapping[str, Source]
    payload: Any = field(default=None, compare=False, repr=False)


def sources_of(examples: Iterable[Example]) -> list[Source]:
    """The sources of all examples, each once."""
    return list(dict.fromkeys(source for example in examples for source in example.sources.values()))


@dataclass
class Scan:
    """What the task found in its data: examples, and every problem, each with the path it concerns."""

    examples: list[Example]
    errors: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class Validation:
    """Pictures ``[3, H, W]`` in 0..1 and numbers, by name."""

    images: dict[str, Tensor]
    scores: dict[str, float]


class BatchRandom:
    """The random numbers of one micro-batch: a function of seed, step and each sample's place in the global batch.

    So a step draws the same numbers however its batch is spread over processes and accumulation.
    """

    def __init__(self, seed: int, step: int, slots: list[int]):
        self.seed, self.step, self.slots = seed, step, slots

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal ``[B, *shape]`` float32 on the CPU."""
        return torch.stack([torch.randn(shape, generator=stream) for stream in self._streams(name)])

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform in 0..1, ``[B, *shape]`` float32 on the CPU."""
        return torch.stack([torch.rand(shape, generator=stream) for stream in self._streams(name)])

    def integers(self, name: str, low: int, high: int) -> Tensor:
        """Whole numbers from low to high - 1, ``[B]`` int64 on the CPU."""
        return torch.cat([torch.randint(low, high, (1,), generator=stream) for stream in self._streams(name)])

    def _streams(self, name: str) -> Iterator[torch.Generator]:
        return (generator(self.seed, name, self.step, slot) for slot in self.slots)


class Task(Protocol):
    """A training task. Made from its settings; the trainer then calls these in the order they stand here.

    ``name`` is what the command line calls it, ``Settings`` its section of the configuration, ``summary`` one line for
    lists of tasks.
    """

    name: str
    Settings: type
    summary: str

    def scan(self, progress: Callable[[int, int], None]) -> Scan:
        """Look at all of the data; no models yet. Files of a folder are decoded; of a data set, which ``verify`` checks
        and which may be large, what costs little to read. ``progress(done, total)`` may raise to stop."""

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Load the models; return the network to train, on ``device``, with frozen weights in ``dtype``.

        Its parameters with ``requires_grad`` are what is trained, checkpointed and exported; they are float32.
        """

    def encoders(self, kind: str) -> AbstractContextManager:
        """Block in which ``encode`` may be called for sources of this kind: its encoder is on the device."""

    def encoder_hash(self, kind: str) -> str:
        """Checksum of all that decides how this kind of source is encoded: weights, vocabulary."""

    def encode(self, source: Source) -> dict[str, Tensor]:
        """The encoding of one source, CPU tensors without batch axis. ``ValueError`` where it cannot be had."""

    def release_encoders(self) -> None:
        """Everything is encoded: drop what training and validation do not need."""

    def sample(
        self, example: Example, load: Callable[[str], dict[str, Tensor]], draw: torch.Generator
    ) -> dict[str, Tensor]:
        """One training sample without batch axis; ``load(name)`` gives a source's encoding, ``draw`` augments."""

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        """Weighted scalar losses by name; their sum is minimised. ``batch`` is on the device, stacked."""

    def validate(
        self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]
    ) -> Validation:
        """Fixed-seed pictures and scores; ``steps`` overrides the number of sampling steps (a quick look)."""

    def describe(self) -> dict[str, str]:
        """Facts about base model and data that ``export`` needs; kept in every checkpoint."""

    def export(self, folder: Path, name: str, weights: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        """Write what a user loads, from trained ``weights`` by parameter name, without any model loaded.

        ``facts``: what ``describe`` gave, ``date``, and the run's own facts (``ss_...``).
        """
