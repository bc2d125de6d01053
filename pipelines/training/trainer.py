"""The trainer: everything about a run that is the same for all tasks."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ..configuration import as_tables, changed_fixed_settings, dump_toml
from ..files import atomic_file
from ..stop import Stopped, StopRequest
from .cache import TensorCache, fill_cache
from .checkpoints import Checkpoint, CheckpointStore, load_parameters
from .export import export_checkpoint
from .journal import Journal
from .loader import Batch, BatchReader
from .optimisation import averaged_weights, is_finite, learning_rate, make_ema, make_optimizer, set_learning_rate
from .order import Order, micro_batches
from .preflight import Preflight, TrainingError, memory_advice
from .progress import ProgressBar
from .task import BatchRandom, Example, Scan, Task, Validation

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where the run stands; saved with each checkpoint."""

    step: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    started: float = field(default_factory=time.time)


class Trainer:
    """One run of one task: ``Trainer(task, settings).run()``.

    settings: what ``settings_class(type(task))`` gives. A run whose output folder holds checkpoints goes on from the
    newest good one. ``run`` returns True when it is finished and False when it was stopped (all saved). Raises
    ``TrainingError``, ``SettingsError``, ``CheckpointError`` or ``DiskFullError``, each with the mend.
    """

    def __init__(self, task: Task, settings, stop: StopRequest | None = None, say: Callable[[str], None] = print):
        self.task, self.settings, self.run_settings = task, settings, settings.run
        self.output = Path(settings.run.output)
        self.stop = stop or StopRequest(self.output)
        self._say = say
        self.progress = Progress()
        self.store = CheckpointStore(self.output / "checkpoints", settings.run.keep)

    def run(self) -> bool:
        """Train to the end or until a stop is asked for."""
        self.output.mkdir(parents=True, exist_ok=True)
        self._start_accelerator()
        with self.stop:
            try:
                checkpoint = self._checkpoint_to_continue()
                self._prepare(checkpoint)
                self._encode_all()
                self._write_settings()
                with memory_advice(f"in step {self.progress.step}"):
                    self._train()
                return True
            except Stopped as stopped:
                self.say(f"Stopped by {stopped} at step {self.progress.step}. The same command goes on from there.")
                return False
            finally:
                self._close()

    def check(self) -> Scan:
        """Everything that comes before the first step, and no step: data, models, memory, disk, a save."""
        self.output.mkdir(parents=True, exist_ok=True)
        self._start_accelerator()
        with self.stop:
            try:
                self._prepare(None)
                return self.scan
            finally:
                self._close()

    # ---- before the first step

    def say(self, text: str) -> None:
        """Tell the user, once over all processes."""
        if self.accelerator.is_main_process:
            self._say(text)

    def _start_accelerator(self) -> None:
        precision = {"fp32": "no"}.get(self.run_settings.precision, self.run_settings.precision)
        self.accelerator = Accelerator(mixed_precision=precision)
        self.journal = None
        self.device = self.accelerator.device
        if precision == "fp16" and self.device.type == "cpu":
            raise TrainingError("fp16 needs a GPU: use --precision bf16 or fp32 on a CPU.")
        self.global_batch = (
            self.run_settings.batch_size * self.run_settings.accumulation * self.accelerator.num_processes
        )

    def _prepare(self, checkpoint: Checkpoint | None) -> None:
        preflight = Preflight(self)
        self.scan = preflight.scan()
        self._use(self.scan.examples)
        self._load_network()
        self.cache = TensorCache(self.run_settings.cache or self.output / "cache", self.task.encoder_hash)
        self._make_optimizer()
        if checkpoint is not None:
            self._restore(checkpoint)
        else:
            preflight.rehearse()

    def _write_settings(self) -> None:
        if self.accelerator.is_main_process:
            with atomic_file(self.output / "settings.toml") as temporary:
                temporary.write_text(dump_toml(self.settings), encoding="utf-8")

    def _checkpoint_to_continue(self) -> Checkpoint | None:
        if self.accelerator.is_main_process:
            self.store.clean()
        checkpoint = self.store.load()
        if checkpoint is None:
            return None
        changes = changed_fixed_settings(checkpoint.state["settings"], self.settings)
        if checkpoint.state["global_batch"] != self.global_batch:
            changes.append(
                f"batch_size x accumulation x processes: {checkpoint.state['global_batch']} -> {self.global_batch}"
            )
        if changes:
            raise TrainingError(
                f"{self.output} holds a run with other settings ({'; '.join(changes)}): "
                "set them back, or choose another --output."
            )
        self.say(f"Going on from step {checkpoint.step} of {self.output}.")
        return checkpoint

    def _use(self, examples: list[Example]) -> None:
        self.examples = examples
        self.order = Order([example.bucket for example in examples], self.global_batch, self.run_settings.seed)

    def _load_network(self) -> None:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.run_settings.precision]
        network = self.task.load(self.device, dtype)
        if self.run_settings.gradient_checkpointing:
            if not hasattr(network, "enable_gradient_checkpointing"):
                raise TrainingError("this task's network has no gradient checkpointing: leave that option out.")
            network.enable_gradient_checkpointing()
        self.network = network
        self.trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
        if not self.trained:
            raise TrainingError("nothing in this network is set to be trained: check the settings of the task.")

    def _make_optimizer(self) -> None:
        parameters = list(self.trained.values())
        self.optimizer = make_optimizer(parameters, self.settings.optimizer)
        self.rate = learning_rate(self.settings.optimizer, self.run_settings.steps)
        self.ema = make_ema(parameters, self.run_settings.ema_decay)
        self.prepared, self.optimizer = self.accelerator.prepare(self.network, self.optimizer)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.progress = Progress(checkpoint.step, **checkpoint.state["progress"])
        load_parameters(self.trained, checkpoint.tensors["weights"])
        self.optimizer.load_state_dict(checkpoint.objects["optimizer"])
        if self.ema is not None:
            averages = checkpoint.tensors["ema"]
            self.ema.shadow_params = [averages[name].to(self.device) for name in self.trained]
            self.ema.optimization_step = checkpoint.state["ema_step"]
        if self.accelerator.scaler is not None and "scaler" in checkpoint.state:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

    def _encode_all(self) -> None:
        """Fill the cache, each process its share; bad sources end the run or are left out, all named at once."""
        sources = [source for example in self.examples for source in example.sources.values()]
        mine = list(dict.fromkeys(sources))[self.accelerator.process_index :: self.accelerator.num_processes]
        with self._bar("Encoding") as bar:
            failures = self.together(lambda: fill_cache(self.cache, self.task, mine, self.stop.check, bar))
        bad = dict(failures)
        if bad:
            lines = [f"{example.name}: {bad[source]}" for example in self.examples
                     for source in example.sources.values() if source in bad]  # fmt: skip
            if not self.run_settings.skip_bad:
                raise TrainingError("these could not be encoded:\n  " + "\n  ".join(lines))
            self.say("Left out, they could not be encoded:\n  " + "\n  ".join(lines))
            if len(bad) == len(mine):
                raise TrainingError("none of the examples could be encoded.")
            self._use([e for e in self.examples if not any(source in bad for source in e.sources.values())])
        self.task.release_encoders()

    # ---- the steps

    def _train(self) -> None:
        run, report = self.run_settings, self.settings.report
        self.journal = Journal(self.accelerator, self.output, self.settings, self.progress.step)
        steps = range(self.progress.step, run.steps)
        batches = self._batches(steps)
        self.prepared.train()
        with self._bar("Training", run.steps, self.progress.step) as bar:
            for step in steps:
                losses = self._step(step, batches)
                self.progress.step = step + 1
                bar(step + 1, run.steps, losses)
                if (step + 1) % report.log_every == 0:
                    self.journal.numbers({**losses, "learning_rate": self.rate(step)}, step + 1)
                self._after_step(step + 1)
        self._save()
        self._export(self.progress.step)

    def _batches(self, steps: range) -> Iterator[Batch]:
        run = self.run_settings
        accelerator = self.accelerator
        wanted = micro_batches(
            self.order, steps, accelerator.process_index, accelerator.num_processes, run.batch_size
        )
        reader = BatchReader(self.task, self.examples, self.cache, run.seed)
        return reader.batches(wanted, run.loader_threads, pin=self.device.type == "cuda")

    def _step(self, step: int, batches) -> dict[str, float]:
        """One optimiser step; returns the losses, averaged over the global batch."""
        set_learning_rate(self.optimizer, self.rate(step))
        losses, names = self.backward(step, batches)
        norm = self._clip()
        flags = torch.tensor([float(self.stop.requested)])
        averaged = self._average({**losses, "stop": flags[0].to(self.device)})
        self._asked_to_stop = averaged.pop("stop") > 0
        good = is_finite(norm) and all(is_finite(value) for value in averaged.values())
        self._update(good, averaged, norm, names)
        self.optimizer.zero_grad()
        return {**averaged, "gradient_norm": float(norm)}

    def backward(self, step: int, batches) -> tuple[dict[str, Tensor], list[str]]:
        """Gradients of one step over its micro-batches; returns this process's losses and its examples' names."""
        count, sums, names = self.run_settings.accumulation, {}, []
        for micro in range(count):
            requests, batch = next(batches)
            names += [self.examples[request.index].name for request in requests]
            random = BatchRandom(self.run_settings.seed, step, [request.slot for request in requests])
            batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
            last = micro == count - 1
            with nullcontext() if last else self.accelerator.no_sync(self.prepared):
                losses = self.task.losses(self.prepared, batch, random)
                self.accelerator.backward(sum(losses.values()) / count)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() / count
        sums["loss"] = sum(sums.values())
        return sums, names

    def _clip(self) -> Tensor:
        limit = self.settings.optimizer.max_grad_norm or math.inf
        return self.accelerator.clip_grad_norm_(list(self.trained.values()), limit)

    def _update(self, good: bool, losses: dict[str, float], norm: Tensor, names: list[str]) -> None:
        """Move the weights, or, when something is not finite, leave them and count."""
        if good:
            self.optimizer.step()
            self.progress.bad_in_a_row = 0
            if self.ema is not None:
                self.ema.step(self.trained.values())
            return
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.update()  # lowers its scale
            if all(is_finite(value) for value in losses.values()) and scaler.get_scale() >= 1:
                return  # an overflow of fp16: that is how the scaler finds the scale, nothing is wrong
        self.progress.bad_steps += 1
        self.progress.bad_in_a_row += 1
        text = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        where = f"step {self.progress.step} ({text}; gradient norm {float(norm):.4g}) with {', '.join(names)}"
        log.warning("Skipped %s: not finite, the weights stay as they are.", where)
        if self.progress.bad_in_a_row >= self.run_settings.max_bad_steps:
            raise TrainingError(
                f"{self.progress.bad_in_a_row} steps in a row were not finite, the last {where}: lower "
                "--learning-rate, use --precision bf16 or fp32, or look at these files. The last checkpoint is good."
            )

    def _average(self, values: dict[str, Tensor]) -> dict[str, float]:
        stacked = torch.stack([value.float() for value in values.values()])
        return dict(zip(values, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))

    # ---- between the steps

    def _after_step(self, step: int) -> None:
        run, report = self.run_settings, self.settings.report
        last = step == run.steps
        if self._asked_to_stop:
            self._save()
            raise Stopped(self.stop.reason or "another process of this run")
        if step % run.save_every == 0 and not last:
            self._save()
        if run.export_every and step % run.export_every == 0 and not last:
            self._export(step)
        if last or (report.validate_every and step % report.validate_every == 0):
            self._validate_or_stop(step)

    def _validate_or_stop(self, step: int) -> None:
        try:
            self.together(lambda: self.validate(step) if self.accelerator.is_main_process else None)
        except Stopped:
            self._save()
            raise

    def validate(self, step: int, sampling_steps: int | None = None) -> Validation:
        """Validate with the averaged weights where there are such; write pictures and scores."""
        self.network.eval()
        try:
            with self._averaged_weights(), torch.no_grad():
                validation = self.task.validate(
                    self.network, sampling_steps, self.settings.report.validation_seed, self.stop.check
                )
        finally:
            self.network.train()
        if self.journal is not None:
            self.journal.validation(validation, step)
        return validation

    def _averaged_weights(self):
        return averaged_weights(self.ema, self.trained) if self.ema is not None else nullcontext()

    def snapshot(self) -> Checkpoint:
        """The run as it stands."""
        state = {
            "progress": {key: value for key, value in vars(self.progress).items() if key != "step"},
            "task": self.task.name,
            "settings": as_tables(self.settings),
            "global_batch": self.global_batch,
            "examples": len(self.examples),
            "steps_per_epoch": self.order.steps_per_epoch,
            "description": self.task.describe(),
        }
        tensors = {"weights": dict(self.trained)}
        if self.ema is not None:
            tensors["ema"] = dict(zip(self.trained, self.ema.shadow_params, strict=True))
            state["ema_step"] = self.ema.optimization_step
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return Checkpoint(self.progress.step, tensors, {"optimizer": self.optimizer.state_dict()}, state)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            self.store.save(self.snapshot())
        self.accelerator.wait_for_everyone()

    def _export(self, step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        name = self.run_settings.name + ("" if step == self.run_settings.steps else f"-{step:08d}")
        for path in export_checkpoint(self.task, self.settings, self.snapshot(), self.output, name):
            self.say(f"Wrote {path}")

    # ---- many processes, one terminal

    def together(self, work: Callable):
        """Run ``work`` here; when it was stopped or failed in any process, stop in all, so that none waits forever."""
        result, error = None, None
        try:
            result = work()
        except Exception as caught:  # handed on below, once all processes know
            error = caught
        failed = torch.tensor(float(error is not None), device=self.device)
        if float(self.accelerator.reduce(failed, "sum")) and error is None:
            raise Stopped("another process of this run")
        if error is not None:
            raise error
        return result

    def _bar(self, what: str, total: int | None = None, done: int = 0) -> ProgressBar:
        return ProgressBar(what, total, done, shown=self.accelerator.is_main_process)

    def _close(self) -> None:
        if self.journal is not None:
            self.journal.close()
        self.accelerator.free_memory()
