"""The trainer: everything about a run that is the same for all tasks."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..configuration import as_tables, changed_fixed_settings, dump_toml
from ..files import atomic_file, exclusive, make_folder
from ..optional import need
from ..stop import Stopped, StopRequest
from .cache import TensorCache, clean_cache, fill_cache
from .checkpoints import Checkpoint, CheckpointStore, load_parameters
from .export import export_checkpoint, revision
from .journal import Journal
from .loader import Batch, BatchReader
from .optimisation import averaged_weights, is_finite, learning_rate, make_ema, make_optimizer, set_learning_rate
from .order import Order, micro_batches
from .preflight import Preflight, TrainingError, memory_advice
from .processes import Processes, start_accelerator
from .progress import ProgressBar
from .settings import DTYPES
from .task import BatchRandom, Example, Source, Task, Validation, sources_of

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where the run stands; saved with each checkpoint."""

    step: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    started: float = field(default_factory=time.time)
    revision: str = field(default_factory=revision)


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
        with self._session():
            checkpoint = self._checkpoint_to_continue()
            self._prepare(checkpoint)
            self._encode_all()
            self._write_settings()
            with memory_advice("in a step"):
                self._train()
        return not self._was_stopped

    def check(self) -> bool:
        """Everything that comes before the first step, and no step: data, models, memory, disk, a save."""
        with self._session():
            self._prepare(None)
        return not self._was_stopped

    @contextmanager
    def _session(self) -> Iterator[None]:
        """What surrounds a run: its folder, for itself alone, its processes, its stop signals."""
        _check_output(self.output, getattr(self.settings.task, "data", None))
        make_folder(self.output)
        self.accelerator = start_accelerator(self.run_settings)
        self.processes, self.device = Processes(self.accelerator), self.accelerator.device
        self.journal, self._was_stopped = None, False
        run = self.run_settings
        self.global_batch = run.batch_size * run.accumulation * self.accelerator.num_processes
        if self.settings.report.wandb_project:
            need("wandb", "wandb")
        with self._lock(), self.stop:
            try:
                yield
            except Stopped as stopped:
                self._was_stopped = True
                self.say(f"Stopped by {stopped} at step {self.progress.step}. The same command goes on from there.")
            finally:
                self._close()

    def _lock(self):
        if not self.processes.is_main:
            return nullcontext()
        return exclusive(self.output / ".lock", f"the run in {self.output}")

    # ---- before the first step

    def say(self, text: str) -> None:
        """Tell the user, once over all processes."""
        if self.processes.is_main:
            self._say(text)

    def _prepare(self, checkpoint: Checkpoint | None) -> None:
        preflight = Preflight(self)
        self._use(preflight.scan(checkpoint))
        preflight.report_sizes()
        preflight.report_device()
        self._load_network()
        kinds = sorted({source.kind for source in sources_of(self.examples)})
        hashes = {kind: self.task.encoder_hash(kind) for kind in kinds}
        self.cache = TensorCache(self.run_settings.cache or self.output / "cache", hashes)
        if self.processes.is_main:
            clean_cache(self.cache.folder)
        self._make_optimizer()
        if checkpoint is not None:
            self._restore(checkpoint)
        else:
            preflight.rehearse()

    def _write_settings(self) -> None:
        if self.processes.is_main:
            with atomic_file(self.output / "settings.toml") as temporary:
                temporary.write_text(dump_toml(self.settings), encoding="utf-8")

    def _checkpoint_to_continue(self) -> Checkpoint | None:
        if self.processes.is_main:
            self.store.clean()
        checkpoint = self.processes.together(self.store.load)
        steps = sorted(set(self.processes.all_of([0 if checkpoint is None else checkpoint.step])))
        if len(steps) > 1:
            raise TrainingError(
                f"the processes of this run find checkpoints of different steps ({', '.join(map(str, steps))}) in "
                f"{self.output}: give an --output on a disk that all machines share."
            )
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
        if checkpoint.step > self.run_settings.steps:
            raise TrainingError(
                f"{self.output} is at step {checkpoint.step} already, beyond --steps {self.run_settings.steps}: "
                "ask for more steps, or export an earlier checkpoint with the command export."
            )
        self.say(f"Going on from step {checkpoint.step} of {self.output}.")
        return checkpoint

    def _use(self, examples: list[Example]) -> None:
        self.examples = examples
        self.order = Order([example.bucket for example in examples], self.global_batch, self.run_settings.seed)

    def _load_network(self) -> None:
        network = self.task.load(self.device, DTYPES[self.run_settings.precision])
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
        self._check_files(checkpoint.state.get("description", {}))
        self.progress = Progress(checkpoint.step, **checkpoint.state["progress"])
        load_parameters(self.trained, checkpoint.tensors["weights"])
        # Only what was learnt: rates, decays and the like are those of the settings, which may have changed.
        saved, groups = checkpoint.objects["optimizer"], self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        if self.ema is not None:
            averages = checkpoint.tensors["ema"]
            self.ema.shadow_params = [averages[name].to(self.device) for name in self.trained]
            self.ema.optimization_step = checkpoint.state["ema_step"]
        if self.accelerator.scaler is not None and "scaler" in checkpoint.state:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])

    def _check_files(self, before: dict[str, str]) -> None:
        """Raise ``TrainingError`` where a file that the run stands on is another one than when it was begun."""
        for name, value in self.task.describe().items():
            if name.endswith("_sha256") and before.get(name, value) != value:
                option = name.removesuffix("_sha256").replace("_", "-")
                raise TrainingError(
                    f"--{option} is not the file that {self.run_settings.output} was begun with (SHA-256 {value[:12]}, "
                    f"it was {before[name][:12]}): put that one back, or choose another --output."
                )

    def _encode_all(self) -> None:
        """Fill the cache, each process its share; bad sources end the run or are left out, all named at once."""
        # By kind, so that every process gets its share of the slow ones.
        mine = self.processes.share(sorted(sources_of(self.examples), key=lambda source: source.kind))
        with self.bar("Encoding") as bar, memory_advice("while encoding"):
            failures = self.processes.together(
                lambda: fill_cache(self.cache, self.task, mine, self.stop.check, bar)
            )
        self._leave_out(dict(self.processes.all_of(failures)))
        self.task.release_encoders()

    def _leave_out(self, bad: dict[Source, str]) -> None:
        if not bad:
            return
        lines = [f"{example.name}: {bad[source]}" for example in self.examples
                 for source in example.sources.values() if source in bad]  # fmt: skip
        self.say("These could not be encoded:\n  " + "\n  ".join(lines))
        good = [e for e in self.examples if not any(source in bad for source in e.sources.values())]
        if not self.run_settings.skip_bad or not good:
            raise TrainingError(f"{len(lines)} sources could not be encoded, see above: mend or remove them, or leave "
                                "them out with --skip-bad.")  # fmt: skip
        self._use(good)

    # ---- the steps

    def _train(self) -> None:
        run, report = self.run_settings, self.settings.report
        self.journal = Journal(self.accelerator, self.output, self.settings, self.progress.step)
        steps = range(self.progress.step, run.steps)
        batches = self._batches(steps)
        self.prepared.train()
        with self.bar("Training", run.steps, self.progress.step) as bar:
            for step in steps:
                losses = self._step(step, batches)
                self.progress.step = step + 1
                bar(step + 1, run.steps, losses)
                if (step + 1) % report.log_every == 0:
                    self.journal.numbers({**losses, "learning_rate": self.rate(step)}, step + 1)
                self._after_step(step + 1)
        self._export(self.progress.step)

    def _batches(self, steps: range) -> Iterator[Batch]:
        run, accelerator = self.run_settings, self.accelerator
        wanted = micro_batches(self.order, steps, accelerator.process_index, accelerator.num_processes, run.batch_size)
        reader = BatchReader(self.task, self.examples, self.cache, run.seed)
        return reader.batches(wanted, run.loader_threads, pin=self._pins)

    @property
    def _pins(self) -> bool:
        """Whether batches are pinned; others may be freed while a copy goes on, as on Apple's GPUs."""
        return self.device.type == "cuda"

    def _step(self, step: int, batches) -> dict[str, float]:
        """One optimiser step; returns the losses, averaged over the global batch."""
        set_learning_rate(self.optimizer, self.rate(step))
        losses, names = self.backward(step, batches)
        norm = self.clip()
        averaged = self.processes.average({**losses, "stop": float(self.stop.requested)})
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
            batch = {name: tensor.to(self.device, non_blocking=self._pins) for name, tensor in batch.items()}
            last = micro == count - 1
            with nullcontext() if last else self.accelerator.no_sync(self.prepared):
                losses = self.task.losses(self.prepared, batch, random)
                self.accelerator.backward(sum(losses.values()) / count)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() / count
        sums["loss"] = sum(sums.values())
        return sums, names

    def clip(self) -> Tensor:
        """Shorten the gradients; returns the length they had."""
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
                "--learning-rate, use --precision bf16 or fp32, or look at these files. None of these steps was saved."
            )

    # ---- between the steps

    def _after_step(self, step: int) -> None:
        run, report = self.run_settings, self.settings.report
        last = step == run.steps
        if self._asked_to_stop:
            self._save()
            raise Stopped(self.stop.reason or "another process of this run")
        # Before the validation: whatever that fails of, the steps are kept.
        if last or (step % run.save_every == 0 and not self.progress.bad_in_a_row):
            self._save()
        if run.export_every and step % run.export_every == 0 and not last:
            self._export(step)
        if last or (report.validate_every and step % report.validate_every == 0):
            self._validate_or_stop(step)

    def _validate_or_stop(self, step: int) -> None:
        try:
            self.processes.together(lambda: self.validate(step) if self.processes.is_main else None)
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
        broken = [name for name, value in self.trained.items() if not torch.isfinite(value).all()]
        if broken:
            raise TrainingError(f"{broken[0]} is not finite at step {self.progress.step}: lower --learning-rate and "
                                "start again, it goes on from the last checkpoint.")  # fmt: skip
        if self.processes.is_main:
            self.store.save(self.snapshot())
        self.accelerator.wait_for_everyone()

    def _export(self, step: int) -> None:
        if not self.processes.is_main:
            return
        name = self.run_settings.name + ("" if step == self.run_settings.steps else f"-{step:08d}")
        for path in export_checkpoint(self.task, self.settings, self.snapshot(), self.output, name):
            self.say(f"Wrote {path}")

    # ---- the terminal

    def bar(self, what: str, total: int | None = None, done: int = 0) -> ProgressBar:
        """A progress bar, shown by one process only."""
        return ProgressBar(what, total, done, shown=self.processes.is_main)

    def _close(self) -> None:
        if self.journal is not None:
            self.journal.close()
        self.accelerator.free_memory()


def _check_output(output: Path, data: Path | None) -> None:
    if data is not None and output.resolve().is_relative_to(Path(data).resolve()):
        raise TrainingError(f"--output {output} lies inside of --data {data}, where its pictures would be trained on: "
                            "choose a folder beside it.")  # fmt: skip
