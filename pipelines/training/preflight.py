"""What can go wrong later is made to go wrong before the first step."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .cache import fill_cache
from .checkpoints import CheckpointStore
from .loader import BatchReader
from .optimisation import set_learning_rate
from .order import Order, Request
from .task import Example, Scan

MEMORY_ADVICE = (
    "--gradient-checkpointing, a smaller --batch-size with a larger --accumulation (the same training, less memory), "
    "--precision bf16, --optimizer adamw8bit, a smaller --resolution, a smaller --rank"
)
REHEARSAL_SAMPLING_STEPS = 2


class TrainingError(RuntimeError):
    """The run cannot start or go on; the message says why and what to do."""


class Preflight:
    """The checks of one trainer, in the order it makes them."""

    def __init__(self, trainer):
        self.trainer, self.run = trainer, trainer.run_settings

    def scan(self) -> Scan:
        """Look at all data. Every bad file is named, and ends the run unless ``skip_bad`` is set."""
        found = self.trainer.task.scan()
        for warning in found.warnings:
            self.trainer.say(f"Note: {warning}")
        if found.errors:
            listing = f"{len(found.errors)} problems in the data:\n  " + "\n  ".join(found.errors)
            if not self.run.skip_bad:
                raise TrainingError(f"{listing}\nMend or remove them, or leave them out with --skip-bad.")
            self.trainer.say(listing + "\nLeft out.")
        if not found.examples:
            raise TrainingError("there is nothing to train on: no usable example was found in the data.")
        self._report_sizes(found.examples)
        return found

    def _report_sizes(self, examples: list[Example]) -> None:
        sizes: dict[tuple[int, int], int] = {}
        for example in examples:
            sizes[example.bucket] = sizes.get(example.bucket, 0) + 1
        text = ", ".join(f"{count} at {width}x{height}" for (height, width), count in sorted(sizes.items()))
        order = Order([example.bucket for example in examples], self.trainer.global_batch, self.run.seed)
        epochs = self.run.steps / order.steps_per_epoch
        self.trainer.say(
            f"{len(examples)} examples: {text}. {order.steps_per_epoch} steps an epoch, {epochs:.1f} epochs."
        )
        small = [f"{width}x{height}" for (height, width), n in sizes.items() if n < self.trainer.global_batch]
        if small:
            self.trainer.say(
                f"Note: fewer examples than a global batch of {self.trainer.global_batch} at {', '.join(small)}: "
                "they are repeated to fill theirs."
            )

    def rehearse(self) -> None:
        """One step at the largest size, a quick validation, a save; nothing of it stays. Then the disk estimate."""
        trainer = self.trainer
        largest = max(trainer.examples, key=lambda example: example.bucket[0] * example.bucket[1]).bucket
        examples = [example for example in trainer.examples if example.bucket == largest][: self.run.batch_size]
        with memory_advice(f"in a trial step at {largest[1]}x{largest[0]}, batch {self.run.batch_size}"):
            self._encode(examples)
            self._step(examples)
            trainer.together(lambda: trainer.validate(0, REHEARSAL_SAMPLING_STEPS) if self._is_main else None)
        if self._is_main:
            self._check_disk(examples, self._save())

    @property
    def _is_main(self) -> bool:
        return self.trainer.accelerator.is_main_process

    def _encode(self, examples: list[Example]) -> None:
        trainer = self.trainer
        sources = [source for example in examples for source in example.sources.values()]
        failures = fill_cache(trainer.cache, trainer.task, sources, trainer.stop.check, lambda done, total: None)
        if failures and not self.run.skip_bad:
            names = {source: example.name for example in examples for source in example.sources.values()}
            raise TrainingError("; ".join(f"{names[source]}: {reason}" for source, reason in failures))

    def _step(self, examples: list[Example]) -> None:
        """Forward, backward and a step of length zero, so that the optimiser's memory counts too."""
        trainer = self.trainer
        scaler = trainer.accelerator.scaler
        scale = scaler.state_dict() if scaler is not None else None
        places = [trainer.examples.index(example) for example in examples]
        requests = [Request(0, slot, 0, places[slot % len(places)]) for slot in range(self.run.batch_size)]
        batch = BatchReader(trainer.task, trainer.examples, trainer.cache, self.run.seed).batch(requests)
        trainer.prepared.train()
        trainer.backward(0, iter([batch] * self.run.accumulation))
        set_learning_rate(trainer.optimizer, 0.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.optimizer.state.clear()
        if scaler is not None:
            scaler.load_state_dict(scale)

    def _save(self) -> int:
        """Save a checkpoint beside the real ones and read it back; returns its bytes."""
        with tempfile.TemporaryDirectory(dir=self.trainer.output, prefix="rehearsal-") as folder:
            path = CheckpointStore(Path(folder), keep=1).save(self.trainer.snapshot())
            return sum(file.stat().st_size for file in path.iterdir())

    def _check_disk(self, examples: list[Example], checkpoint_bytes: int) -> None:
        """Compare what the run will write with what is free. Raises ``TrainingError`` where it cannot fit."""
        trainer = self.trainer
        bytes_of_kind = {
            source.kind: trainer.cache.path(source).stat().st_size
            for example in examples for source in example.sources.values() if trainer.cache.path(source).exists()
        }  # fmt: skip
        sources = [source for example in trainer.examples for source in example.sources.values()]
        cached = sum(bytes_of_kind.get(source.kind, 0) for source in trainer.cache.missing(sources))
        # AdamW's two moments are empty in a rehearsed checkpoint; one more is there while the old one is.
        checkpoints = (self.run.keep + 1) * (checkpoint_bytes + 2 * _bytes(trainer.trained))
        free = shutil.disk_usage(trainer.output).free
        text = f"{_mib(cached)} of encoded data, up to {_mib(checkpoints)} of checkpoints; {_mib(free)} are free"
        trainer.say(f"On disk: {text}.")
        if cached + checkpoints > free:
            raise TrainingError(f"the disk is too small: {text}. Free some, or set --output and --cache elsewhere.")


def _bytes(parameters: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in parameters.values())


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


@contextmanager
def memory_advice(where: str) -> Iterator[None]:
    """Turn running out of memory into a ``TrainingError`` that says where, and what to try."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, what a CPU's allocator raises is no more than that
        words = ("out of memory", "can't allocate memory", "not enough memory")
        if not isinstance(error, torch.OutOfMemoryError) and not any(word in str(error) for word in words):
            raise
        raise TrainingError(
            f"out of memory {where} ({str(error).splitlines()[0]}). Try, in this order: {MEMORY_ADVICE}."
        ) from error
