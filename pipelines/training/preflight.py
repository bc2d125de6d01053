"""What can go wrong later is made to go wrong before the first step."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..files import temporary_path
from .cache import fill_cache
from .checkpoints import Checkpoint, CheckpointStore
from .loader import BatchReader
from .optimisation import is_finite, set_learning_rate
from .order import Request
from .task import Example, sources_of

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

    def scan(self, checkpoint: Checkpoint | None) -> list[Example]:
        """Look at all data. Every bad file is named, and ends the run unless ``skip_bad`` is set."""
        trainer = self.trainer

        def progress(done: int, total: int) -> None:
            trainer.stop.check()
            bar(done, total)

        with trainer.bar("Looking at the data") as bar:
            found = trainer.processes.together(lambda: trainer.task.scan(progress))
        for warning in found.warnings:
            trainer.say(f"Note: {warning}")
        if found.errors:
            listing = f"{len(found.errors)} problems in the data:\n  " + "\n  ".join(found.errors)
            if not self.run.skip_bad:
                raise TrainingError(f"{listing}\nMend or remove them, or leave them out with --skip-bad.")
            trainer.say(listing + "\nLeft out.")
        if not found.examples:
            raise TrainingError("there is nothing to train on: no usable example was found in the data.")
        before = checkpoint.state["examples"] if checkpoint is not None else len(found.examples)
        if before != len(found.examples):
            trainer.say(f"Note: the run had {before} examples before and has {len(found.examples)} now.")
        return found.examples

    def report_sizes(self) -> None:
        """Say how many examples there are of each size, and how long an epoch is."""
        examples, epoch = self.trainer.examples, self.trainer.order.steps_per_epoch
        sizes = Counter(example.bucket for example in examples)
        text = ", ".join(f"{count} at {width}x{height}" for (height, width), count in sorted(sizes.items()))
        self.trainer.say(
            f"{len(examples)} examples: {text}. {epoch} steps an epoch, {self.run.steps / epoch:.1f} epochs."
        )
        small = [f"{width}x{height}" for (height, width), n in sizes.items() if n < self.trainer.global_batch]
        if small:
            self.trainer.say(
                f"Note: fewer examples than a global batch of {self.trainer.global_batch} at {', '.join(small)}: "
                "they are repeated to fill theirs."
            )

    def report_device(self) -> None:
        """Say where the network is trained, and what keeps it from a GPU that is there."""
        self.trainer.say(f"Training on {self.trainer.device}, {self.run.precision}.")
        if self.trainer.device.type == "cpu" and torch.version.cuda is None and shutil.which("nvidia-smi"):
            self.trainer.say(
                f"Note: this machine has an NVIDIA GPU, but torch {torch.__version__} was built without CUDA, as pip's "
                f"is on Windows. Stop, install a CUDA build (pytorch.org tells how) into {sys.prefix}, and start again."
            )

    def rehearse(self) -> None:
        """One step at the largest size, a quick validation, a save; nothing of it stays. Then the disk estimate."""
        trainer = self.trainer
        with memory_advice("while encoding"):
            examples = trainer.processes.together(self._encoded_examples)
        height, width = examples[0].bucket
        with memory_advice(f"in a trial step at {width}x{height}, batch {self.run.batch_size}"):
            self._step(examples)
        with memory_advice("in a trial validation"):
            trainer.processes.together(lambda: trainer.validate(0, REHEARSAL_SAMPLING_STEPS) if self._is_main else None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._is_main:
            self._check_disk(examples, self._save())

    @property
    def _is_main(self) -> bool:
        return self.trainer.processes.is_main

    def _encoded_examples(self) -> list[Example]:
        """As many examples of the largest size as a micro-batch has; those that cannot be encoded are passed over."""
        trainer, good, reasons = self.trainer, [], []
        largest = max((example.bucket for example in trainer.examples), key=lambda bucket: bucket[0] * bucket[1])
        for example in (example for example in trainer.examples if example.bucket == largest):
            sources = example.sources.values()
            failures = fill_cache(trainer.cache, trainer.task, sources, trainer.stop.check, lambda done, total: None)
            reasons += [f"{example.name}: {reason}" for _, reason in failures]
            if not failures:
                good.append(example)
            if len(good) == self.run.batch_size or (reasons and not self.run.skip_bad):
                break
        if not good or (reasons and not self.run.skip_bad):
            raise TrainingError("these could not be encoded:\n  " + "\n  ".join(reasons))
        return good

    def _step(self, examples: list[Example]) -> None:
        """Forward, backward and a step of length zero, so that the optimiser's memory counts too."""
        trainer = self.trainer
        scaler = trainer.accelerator.scaler
        scale = scaler.state_dict() if scaler is not None else None
        places = [trainer.examples.index(example) for example in examples]
        requests = [Request(0, slot, 0, places[slot % len(places)]) for slot in range(self.run.batch_size)]
        batch = BatchReader(trainer.task, trainer.examples, trainer.cache, self.run.seed).batch(requests)
        trainer.prepared.train()
        losses, _ = trainer.backward(0, iter([batch] * self.run.accumulation))
        numbers = trainer.processes.average({**losses, "gradient norm": trainer.clip()})
        # A scaler starts too high on purpose and finds its scale later; without one nothing may overflow.
        if scaler is None and not all(is_finite(value) for value in numbers.values()):
            text = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            names = ", ".join(example.name for example in examples)
            raise TrainingError(f"the trial step is not finite ({text}), with {names}: look at these files and at the "
                                "base model, or use --precision fp32.")  # fmt: skip
        set_learning_rate(trainer.optimizer, 0.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.optimizer.state.clear()
        if scaler is not None:
            scaler.load_state_dict(scale)

    def _save(self) -> int:
        """Save a checkpoint beside the real ones and read it back; returns its bytes."""
        folder = temporary_path(self.trainer.store.folder / "rehearsal")
        try:
            path = CheckpointStore(folder, keep=1).save(self.trainer.snapshot())
            return sum(file.stat().st_size for file in path.iterdir())
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _check_disk(self, examples: list[Example], checkpoint_bytes: int) -> None:
        """Compare what the run will write with what is free. Raises ``TrainingError`` where it cannot fit."""
        trainer = self.trainer
        bytes_of_kind = {
            source.kind: trainer.cache.path(source).stat().st_size
            for source in sources_of(examples) if trainer.cache.path(source).exists()
        }  # fmt: skip
        missing = trainer.cache.missing(sources_of(trainer.examples))
        cached = sum(bytes_of_kind.get(source.kind, 0) for source in missing)
        # AdamW's two moments are empty in a rehearsed checkpoint; one more is there while the old one is.
        checkpoints = (self.run.keep + 1) * (checkpoint_bytes + 2 * _bytes(trainer.trained))
        trainer.say(f"On disk: {_mib(cached)} of encoded data still to come, up to {_mib(checkpoints)} of checkpoints.")
        needs = {trainer.output: checkpoints}
        if cached:  # a task that encodes nothing has no cache
            needs[trainer.cache.folder] = cached
        disks: dict[int, int] = {}
        for folder, size in needs.items():
            device = folder.stat().st_dev
            disks[device] = disks.get(device, 0) + size
            free = shutil.disk_usage(folder).free
            if disks[device] > free:
                raise TrainingError(
                    f"the disk of {folder} is too small: {_mib(disks[device])} are needed, {_mib(free)} are free. "
                    "Free some, or set --output or --cache elsewhere."
                )


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
