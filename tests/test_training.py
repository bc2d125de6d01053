"""The trainer on a tiny Stable Diffusion: what it promises about kills, damage, signals, disks and processes."""

import errno
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_training
import torch
from comfyui_environment import load_script
from likeness.pipelines.configuration import dump_toml
from likeness.pipelines.files import DiskFullError, exclusive
from likeness.pipelines.images import load_image
from likeness.pipelines.training import (
    BatchRandom,
    CheckpointError,
    CheckpointStore,
    Trainer,
    TrainingError,
    Validation,
)
from likeness.pipelines.training import checkpoints as checkpoints_module
from likeness.pipelines.training.lora_task import LoraFineTune
from likeness.pipelines.training.processes import Processes, start_accelerator
from safetensors.torch import load_file, save_file
from tiny_base import make_pipeline
from tiny_training import steps_noted, tiny_settings, tiny_trainer, train_in_child, write_portraits

TRAIN_CLI = str(Path(__file__).resolve().parents[1] / "nodes" / "train_cli.py")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A base model and a folder of portraits."""
    folder = tmp_path_factory.mktemp("world")
    make_pipeline("sd1", folder).save_pretrained(folder / "base")
    write_portraits(folder / "photos")
    return folder


@pytest.fixture(scope="session")
def children():
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([tiny_training.__name__])
    return context


def run(world, output, **changes) -> Trainer:
    trainer = tiny_trainer(tiny_settings(world, output, **changes))
    assert trainer.run()
    return trainer


def newest(output):
    return CheckpointStore(output / "checkpoints", keep=9).load()


def assert_same_training(one, other):
    """Weights, averages and optimiser state are the same to the last bit."""
    assert one.step == other.step
    torch.testing.assert_close(one.tensors, other.tensors, rtol=0, atol=0)
    assert set(one.tensors) == {"weights", "ema"}
    torch.testing.assert_close(one.objects["optimizer"]["state"], other.objects["optimizer"]["state"], rtol=0, atol=0)


@pytest.fixture(scope="session")
def straight(world, tmp_path_factory):
    """Output of 8 steps without interruption, saved each 4."""
    output = tmp_path_factory.mktemp("straight") / "run"
    run(world, output)
    return output


def test_training_moves_all_adapters_and_nothing_else(world, straight):
    start = tiny_trainer(tiny_settings(world, straight.parent / "unused")).task.load(torch.device("cpu"), torch.float32)
    weights = newest(straight).tensors["weights"]
    assert set(weights) == {name for name, value in start.named_parameters() if value.requires_grad}
    assert all(".lora." in name for name in weights)
    for name, value in start.named_parameters():
        if value.requires_grad:
            assert not torch.equal(value, weights[name]), f"{name} was not trained"


def test_a_run_that_was_killed_and_resumed_ends_bit_for_bit_like_one_that_was_not(world, straight, children, tmp_path):
    ledger = tmp_path / "ledger"
    child = children.Process(target=train_in_child, args=(world, tmp_path / "run", ledger))
    child.start()
    wait_until(lambda: steps_noted(ledger) >= 5, child)
    child.kill()
    child.join()
    assert newest(tmp_path / "run").step == 4
    run(world, tmp_path / "run")
    assert_same_training(newest(tmp_path / "run"), newest(straight))
    ours, theirs = (load_file(folder / "likeness.safetensors") for folder in (tmp_path / "run", straight))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def wait_until(condition, child, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert child.is_alive() and time.monotonic() < deadline, "the child ended, or takes too long"
        time.sleep(0.002)


def test_killed_at_fifty_random_moments_no_more_than_one_save_interval_is_lost(world, children, tmp_path):
    """Every other time it saves at each step, so that most kills fall into the writing of a checkpoint."""
    dice, output, ledger = random.Random(0), tmp_path / "run", tmp_path / "ledger"
    reached, in_writing = 0, 0
    for kill in range(50):
        every = 1 if kill % 2 else 5
        changes = {"run__steps": 10**6, "run__save_every": every}
        ledger.unlink(missing_ok=True)
        child = children.Process(target=train_in_child, args=(world, output, ledger), kwargs=changes)
        child.start()
        wait_until(lambda: steps_noted(ledger) >= 0, child)
        assert steps_noted(ledger) >= reached, "it went on from an older checkpoint than the newest good one"
        # Steps, not seconds: on a slow machine a run of seconds gets nowhere, and proves nothing.
        goal = steps_noted(ledger) + dice.randint(2, 5)
        wait_until(lambda goal=goal: steps_noted(ledger) >= goal, child)
        time.sleep(dice.uniform(0, 0.3))
        child.kill()
        child.join()
        in_writing += any((output / "checkpoints").glob(".part-*"))
        done, checkpoint = steps_noted(ledger), newest(output)
        reached = checkpoint.step if checkpoint is not None else 0
        assert done - every <= reached <= done + 1
    assert reached > 50 and in_writing > 5


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "one bit flipped": lambda file: file.write_bytes(flip_bit(file.read_bytes())),
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
}


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


FILES = ["weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json", "complete.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(straight, tmp_path, caplog, name, damage):
    output = shutil.copytree(straight, tmp_path / "run")
    DAMAGES[damage](output / "checkpoints" / "step-00000008" / name)
    with caplog.at_level(logging.WARNING):
        assert newest(output).step == 4
    assert "step-00000008 is damaged" in caplog.text
    DAMAGES[damage](output / "checkpoints" / "step-00000004" / name)
    with pytest.raises(CheckpointError, match="no good checkpoint among step-00000008, step-00000004"):
        newest(output)


def test_after_damage_the_run_ends_as_if_nothing_had_happened(world, straight, tmp_path):
    output = shutil.copytree(straight, tmp_path / "run")
    DAMAGES["one bit flipped"](output / "checkpoints" / "step-00000008" / "optimizer.pt")
    run(world, output)
    assert_same_training(newest(output), newest(straight))


def test_nothing_is_removed_before_the_new_checkpoint_is_verified(straight, tmp_path, monkeypatch):
    store = CheckpointStore(shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints"), keep=1)
    checkpoint = store.load()
    good = checkpoints_module.problems
    monkeypatch.setattr(checkpoints_module, "problems", lambda path: good(path) or ["disk trouble"])
    with pytest.raises(CheckpointError, match="reads back wrong"):
        store.save(checkpoints_module.Checkpoint(9, checkpoint.tensors, checkpoint.objects, checkpoint.state))
    monkeypatch.undo()
    assert store.steps() == [4, 8, 9]
    store.save(checkpoints_module.Checkpoint(10, checkpoint.tensors, checkpoint.objects, checkpoint.state))
    assert store.steps() == [10]


class SignalAt:
    """Stands in for a function of the trainer or the task: sends this process a signal at its n-th call."""

    def __init__(self, function, call: int):
        self.function, self.left = function, call

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.function(*args, **kwargs)


def encode_stops(trainer):
    trainer.task.encode = SignalAt(trainer.task.encode, 6)


def training_stops(trainer):
    trainer.task.losses = SignalAt(trainer.task.losses, 4)


def validation_stops(trainer):
    """The trainer validates twice: before step 0, then at step 6."""
    validate, calls = trainer.task.validate, []

    def stopped(network, steps, seed, check_stop):
        calls.append(steps)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(network, steps, seed, check_stop)

    trainer.task.validate = stopped


@pytest.mark.parametrize(
    ("interrupt", "step"), [(encode_stops, None), (training_stops, 3), (validation_stops, 6)]
)
def test_sigterm_in_each_loop_saves_and_the_run_can_go_on(world, straight, tmp_path, interrupt, step):
    settings = tiny_settings(world, tmp_path / "run", report__validate_every=6)
    trainer = tiny_trainer(settings)
    interrupt(trainer)
    assert trainer.run() is False
    found = newest(tmp_path / "run")
    assert (found.step if found else None) == step
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run(world, tmp_path / "run")
    assert_same_training(newest(tmp_path / "run"), newest(straight))


def test_a_stop_file_ends_the_run_and_is_removed(world, tmp_path):
    trainer = tiny_trainer(tiny_settings(world, tmp_path / "run"))
    losses = trainer.task.losses

    def place_file(network, batch, random):
        if trainer.progress.step == 2:
            (tmp_path / "run" / "STOP").touch()
        return losses(network, batch, random)

    trainer.task.losses = place_file
    assert trainer.run() is False
    assert not (tmp_path / "run" / "STOP").exists()
    assert newest(tmp_path / "run").step == 3


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 6 MiB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_told_clearly_and_leaves_the_last_checkpoint_whole(world, small_disk, tmp_path):
    settings = tiny_settings(world, small_disk / "run", run__save_every=1, run__cache=str(tmp_path / "cache"))
    trainer = tiny_trainer(settings)
    trainer.store.keep = 99  # more than fits, which the estimate before the first step cannot know
    with pytest.raises(DiskFullError, match="no room left to write .*step-.*MiB free.*free some space") as caught:
        trainer.run()
    assert caught.value.errno == errno.ENOSPC
    steps = trainer.store.steps()
    assert steps and not any(checkpoints_module.problems(trainer.store._path(step)) for step in steps)
    assert newest(small_disk / "run").step == steps[-1]


def test_a_run_that_cannot_fit_on_the_disk_does_not_start(world, small_disk, tmp_path):
    settings = tiny_settings(world, small_disk / "run", run__keep=50, run__cache=str(tmp_path / "cache"))
    with pytest.raises(TrainingError, match="disk of .*run is too small: .* are needed, .* are free"):
        tiny_trainer(settings).run()


def launch(world, output, processes: int, batch_size: int, **options):
    config = output.with_suffix(".toml")
    config.write_text(dump_toml(tiny_settings(world, output, run__batch_size=batch_size, **options)))
    done = accelerate_launch(processes, TRAIN_CLI, "train", "lora", "--config", str(config))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    checkpoint = newest(output)
    assert checkpoint.state["global_batch"] == 4
    return checkpoint


def accelerate_launch(processes: int, *script: str) -> subprocess.CompletedProcess:
    # --multi_gpu means several processes, without a GPU on the CPU; --cpu would silently start only one.
    options = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    options += ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend",
                "no", "--num_cpu_threads_per_process", "1"]  # fmt: skip
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *script]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


ONE_BAD_PICTURE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_training import tiny_settings, tiny_trainer
world, output, skip = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "skip"
trainer = tiny_trainer(tiny_settings(world, output, run__skip_bad=skip))
encode = trainer.task.encode

def broken(source):
    if source.kind == "latents" and source.payload[0].name == "3.png":
        raise ValueError("this one cannot be encoded")
    return encode(source)

trainer.task.encode = broken
trainer.run()
"""


@pytest.mark.parametrize("skip", ["skip", "stop"])
def test_what_one_process_cannot_encode_is_known_to_all(world, tmp_path, skip):
    script = tmp_path / "script.py"
    script.write_text(ONE_BAD_PICTURE)
    done = accelerate_launch(2, str(script), str(Path(__file__).parent), str(world), str(tmp_path / "run"), skip)
    if skip == "skip":
        assert done.returncode == 0, done.stderr[-3000:]
        assert newest(tmp_path / "run").state["examples"] == 7
    else:
        assert done.returncode == 1
        assert done.stderr.count("TrainingError: 1 sources could not be encoded") >= 2, done.stderr[-3000:]


def test_two_processes_train_like_one_with_the_same_global_batch(world, tmp_path):
    """The two also stop halfway and go on."""
    # AdamW turns a gradient that is zero but for rounding into a whole step, unless its epsilon is above that rounding.
    common = {"optimizer__epsilon": 1e-4, "optimizer__schedule": "constant"}
    one = launch(world, tmp_path / "one", 1, 4, **common)
    assert launch(world, tmp_path / "two", 2, 2, run__steps=4, **common).step == 4
    two = launch(world, tmp_path / "two", 2, 2, **common)
    accumulated = launch(world, tmp_path / "accumulated", 1, 1, run__accumulation=4, **common)
    for other in (two, accumulated):
        torch.testing.assert_close(other.tensors, one.tensors, rtol=0, atol=1e-5)
    start = tiny_trainer(tiny_settings(world, tmp_path / "x")).task.load(torch.device("cpu"), torch.float32)
    moved = max((one.tensors["weights"][n] - p).abs().max() for n, p in start.named_parameters() if p.requires_grad)
    assert moved > 1e-3, "the comparison says nothing when the weights have not moved"


def test_bad_steps_are_skipped_counted_and_named_and_too_many_end_the_run(world, tmp_path, caplog):
    trainer = tiny_trainer(tiny_settings(world, tmp_path / "run", run__max_bad_steps=3))
    losses, seen = trainer.task.losses, []

    def sometimes_nan(network, batch, random):
        seen.append(random.step)
        bad = float("nan") if random.step in (2, 4, 5, 6) else 1.0
        return {name: loss * bad for name, loss in losses(network, batch, random).items()}

    trainer.task.losses = sometimes_nan
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError, match=r"3 steps in a row.*step 6.*\.png.*bf16"):
        trainer.run()
    assert caplog.text.count("Skipped step") == 4 and "Skipped step 2" in caplog.text
    assert all(torch.isfinite(value).all() for value in trainer.trained.values())
    assert trainer.progress.bad_steps == 4


def test_out_of_memory_in_the_trial_step_names_what_to_try(world, tmp_path):
    trainer = tiny_trainer(tiny_settings(world, tmp_path / "run"))

    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.task.losses = too_large
    with pytest.raises(TrainingError, match="trial step at .*batch 2.*2.00 GiB.*--gradient-checkpointing.*--rank"):
        trainer.run()
    assert newest(tmp_path / "run") is None


def test_changed_settings_of_a_run_are_refused_by_name(world, straight):
    changes = {"task__rank": 8, "run__seed": 4, "run__batch_size": 4, "run__steps": 99}
    with pytest.raises(TrainingError) as caught:
        tiny_trainer(tiny_settings(world, straight, **changes)).run()
    text = str(caught.value)
    assert all(words in text for words in ("task.rank: 4 -> 8", "run.seed: 3 -> 4", "processes: 2 -> 4"))
    assert "steps: " not in text


def test_check_rehearses_everything_and_leaves_no_step(world, tmp_path):
    trainer = tiny_trainer(tiny_settings(world, tmp_path / "run"))
    before = {}
    original = trainer.task.load

    def remember(*args):
        network = original(*args)
        before.update({n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad})
        return network

    trainer.task.load = remember
    trainer.check()
    assert trainer.store.steps() == []
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    torch.testing.assert_close(dict(trainer.trained), before, rtol=0, atol=0)
    assert not trainer.optimizer.state


def test_the_validation_is_the_same_each_time_and_shows_the_averaged_weights(world, tmp_path):
    pictures = []

    class Watched(LoraFineTune):
        def validate(self, network, steps, seed, check_stop):
            pictures.append({n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad})
            result = super().validate(network, steps, seed, check_stop)
            again = super().validate(network, steps, seed, check_stop)
            torch.testing.assert_close(result.images, again.images, rtol=0, atol=0)
            return Validation(result.images, {"score": 1.0})

    settings = tiny_settings(world, tmp_path / "run")
    trainer = Trainer(Watched(settings.task, 3), settings, say=lambda text: None)
    trainer.run()
    torch.testing.assert_close(pictures[-1], newest(tmp_path / "run").tensors["ema"], rtol=0, atol=0)
    assert (tmp_path / "run" / "samples" / "step-00000008.png").is_file()
    events = list((tmp_path / "run" / "logs").rglob("events*"))
    assert events


@pytest.mark.parametrize("step", [4, 8])
def test_a_validation_that_fails_costs_no_step(world, straight, tmp_path, step):
    """At a step that is saved, too, and at the last one."""

    class Fails(LoraFineTune):
        def validate(self, network, steps, seed, check_stop):
            if steps is None:
                raise RuntimeError("no picture today")
            return super().validate(network, steps, seed, check_stop)

    settings = tiny_settings(world, tmp_path / "run", report__validate_every=step)
    with pytest.raises(RuntimeError, match="no picture today"):
        Trainer(Fails(settings.task, 3), settings, say=lambda text: None).run()
    assert newest(tmp_path / "run").step == step
    run(world, tmp_path / "run")
    assert_same_training(newest(tmp_path / "run"), newest(straight))
    assert (tmp_path / "run" / "likeness.safetensors").is_file()


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_the_loss_falls_when_eight_portraits_are_overfitted(family, tmp_path):
    """The same noise at the same levels before and after 300 steps."""
    make_pipeline(family, tmp_path).save_pretrained(tmp_path / "base")
    write_portraits(tmp_path / "photos")
    settings = tiny_settings(
        tmp_path, tmp_path / "run", run__steps=300, run__batch_size=4, run__save_every=1000, run__ema_decay=0.0,
        task__rank=16, task__alpha=16.0, optimizer__learning_rate=3e-3,
    )  # fmt: skip
    trainer = tiny_trainer(settings)
    assert trainer.run()
    after = fixed_loss(trainer)
    with torch.no_grad():
        for name, value in trainer.trained.items():
            value.mul_(0 if ".lora.up." in name else 1)  # the adapters as they were before the first step
    before = fixed_loss(trainer)
    print(f"{family}: loss {before:.3f} -> {after:.3f}")
    assert after < 0.6 * before


@torch.no_grad()
def fixed_loss(trainer) -> float:
    """Mean loss over all examples, each with the same 20 noises and noise levels."""
    losses = []
    for place, example in enumerate(trainer.examples):
        load = {name: trainer.cache.load(source) for name, source in example.sources.items()}
        sample = trainer.task.sample(example, load.get, torch.Generator().manual_seed(0))
        batch = {name: torch.stack([tensor] * 20) for name, tensor in sample.items()}
        random = BatchRandom(5, place, list(range(20)))
        losses.append(float(trainer.task.losses(trainer.network, batch, random)["diffusion"]))
    return sum(losses) / len(losses)


def test_export_of_a_kept_checkpoint_needs_no_model_and_no_data(straight, tmp_path):
    output = shutil.copytree(straight, tmp_path / "run")
    state_file = output / "checkpoints" / "step-00000004" / "state.json"
    assert json.loads(state_file.read_text())["task"] == "lora"
    target = tmp_path / "exports" / "four.safetensors"
    command = [sys.executable, TRAIN_CLI, "export", str(output), "--step", "4",
               "--file", str(target), "--no-ema"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    weights = load_file(output / "checkpoints" / "step-00000004" / "weights.safetensors")
    exported = load_file(target)
    assert len(exported) == len(weights) // 2 * 3
    name = "conv_in.lora.down.weight"
    torch.testing.assert_close(exported["lora_unet_conv_in.lora_down.weight"], weights[name], rtol=0, atol=0)


def test_the_command_ends_with_0_on_sigterm(world, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(dump_toml(tiny_settings(world, tmp_path / "run", run__steps=10**6)))
    command = [sys.executable, TRAIN_CLI, "train", "lora", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 90
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    text, _ = child.communicate(timeout=60)
    assert child.returncode == 0, text
    assert "Stopped by SIGTERM at step" in text and "Traceback" not in text
    assert newest(tmp_path / "run").step > 0


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families_train_in_bf16_with_every_option_on(family, tmp_path):
    """What only needs to run: half precision, checkpointing of activations, flips, dropout of captions, min-SNR."""
    make_pipeline(family, tmp_path).save_pretrained(tmp_path / "base")
    write_portraits(tmp_path / "photos", 4)
    changes = {
        "run__precision": "bf16", "run__gradient_checkpointing": True, "run__accumulation": 2, "run__steps": 4,
        "run__export_every": 2, "task__flip": True, "task__caption_dropout": 0.5, "task__min_snr_gamma": 5.0,
        "task__layers": "attention+convolution", "task__export_dtype": "bf16", "report__log_every": 1,
    }  # fmt: skip
    trainer = run(tmp_path, tmp_path / "run", **changes)
    exported = load_file(tmp_path / "run" / "likeness.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    assert all(torch.isfinite(tensor).all() for tensor in exported.values())
    assert (tmp_path / "run" / "likeness-00000002.safetensors").is_file()
    picture = load_image(tmp_path / "run" / "samples" / "step-00000004.png")
    assert picture.std() > 0.01
    assert {value.dtype for value in trainer.trained.values()} == {torch.float32}
    frozen = {value.dtype for value in trainer.network.parameters() if not value.requires_grad}
    assert frozen == {torch.bfloat16}


def test_a_trial_step_that_is_not_finite_ends_the_run_before_it_begins(world, tmp_path):
    trainer = tiny_trainer(tiny_settings(world, tmp_path / "run"))
    losses = trainer.task.losses
    trainer.task.losses = lambda *given: {name: loss * float("nan") for name, loss in losses(*given).items()}
    with pytest.raises(TrainingError, match=r"trial step is not finite \(diffusion nan.*\.png"):
        trainer.check()
    assert all(torch.isfinite(value).all() for value in trainer.trained.values())


@pytest.mark.parametrize("interrupt", [encode_stops, training_stops])
def test_a_stop_during_check_is_no_error(world, tmp_path, interrupt):
    trainer = tiny_trainer(tiny_settings(world, tmp_path / "run"))
    calls = {"encode_stops": "encode", "training_stops": "losses"}[interrupt.__name__]
    setattr(trainer.task, calls, SignalAt(getattr(trainer.task, calls), 1))
    assert trainer.check() is False


def test_pruning_counts_neither_damaged_nor_later_checkpoints(straight, tmp_path):
    folder = shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints")
    shutil.copytree(folder / "step-00000008", folder / "step-00000012")
    for step in (8, 12):
        DAMAGES["truncated"](folder / f"step-{step:08d}" / "weights.safetensors")
    store = CheckpointStore(folder, keep=1)
    good = store.load()
    assert good.step == 4
    store.save(checkpoints_module.Checkpoint(5, good.tensors, good.objects, good.state))
    assert store.load().step == 5


def test_a_base_model_is_told_by_its_content_and_not_by_its_place(world, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    base = shutil.copytree(world / "base", tmp_path / "moved")
    run(world, tmp_path / "run", task__model=str(base), run__steps=9)
    assert newest(tmp_path / "run").step == 9
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    weights["conv_out.bias"] += 1
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="--model is not the file that .* was begun with"):
        run(world, tmp_path / "run", task__model=str(base), run__steps=10)


def test_a_resumed_run_obeys_changed_settings_of_the_optimiser(world, straight, tmp_path):
    output = shutil.copytree(straight, tmp_path / "run")
    changes = {"optimizer__weight_decay": 0.5, "optimizer__beta1": 0.5, "optimizer__epsilon": 1e-3}
    trainer = run(world, output, run__steps=10, **changes)
    [group] = trainer.optimizer.state_dict()["param_groups"]
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.5, (0.5, 0.999), 1e-3)
    assert next(iter(trainer.optimizer.state.values()))["step"] == 10


def test_the_average_of_the_weights_follows_its_formula(world, tmp_path):
    """Decay min(0.9, k / (9 + k)) at the k-th step after the first, which is taken as it is."""
    trainer = run(world, tmp_path / "run", run__save_every=1, run__keep=99)
    name = "conv_in.lora.up.weight"
    average = None
    for step in range(1, 9):
        checkpoint = trainer.store.load(step)
        decay = min(0.9, step / (9 + step))
        weight = checkpoint.tensors["weights"][name]
        average = weight if average is None else decay * average + (1 - decay) * weight
        torch.testing.assert_close(checkpoint.tensors["ema"][name], average, rtol=1e-5, atol=1e-8)


def test_one_output_belongs_to_one_run_at_a_time(world, tmp_path):
    (tmp_path / "run").mkdir()
    trainer = tiny_trainer(tiny_settings(world, tmp_path / "run"))
    with exclusive(tmp_path / "run" / ".lock", "x"), pytest.raises(BlockingIOError, match="run is in use by another"):
        trainer.run()
    assert trainer.run()


def command(capfd, *words: str) -> tuple[int, str]:
    for name in ("pack", "environment", "comfyui_server"):
        load_script(name)
    code = load_script("train_cli").main(list(words))
    return code, capfd.readouterr().err


MISTAKES = {
    "output inside of the data": (["--output", "{world}/photos/run"], "lies inside of --data .*photos"),
    "a file for the output": (["--output", "{world}/base/model_index.json"], "no folder to write into .*give one in"),
    "a name with folders": (["--name", "../x"], "name in .run. is '../x': give a plain name"),
    "no such model": (["--model", "nowhere"], "--model nowhere: no such file or folder"),
    "no such data": (["--data", "nowhere"], "nowhere: no such folder"),
    "a picture as model": (["--model", "{world}/photos/0.png"], "0.png"),
    "an odd bucket step": (["--bucket-step", "9"], "--bucket-step is 9: this model needs a multiple of 2"),
    "too small": (["--resolution", "8"], "resolution is 8, smaller than bucket_step 16"),
    "infinite": (["--learning-rate", "inf"], "learning_rate in .optimizer. is inf: it must be a finite number"),
    "a mistyped option": (["--stepps", "3"], "unknown option --stepps: did you mean --steps"),
    "a choice that is none": (["--layers", "atention"], "did you mean 'attention'"),
    "a huge seed": (["--seed", "99999999999999999999"], "seed in .run. is 9+: it must be at most"),
    "fp16 without GPU": (["--precision", "fp16"], "fp16 needs a GPU"),
    "wandb missing": (["--wandb-project", "x"], "wandb is needed here and not installed"),
    "8 bit missing": (["--optimizer", "adamw8bit"], "bitsandbytes is needed here and not installed"),
}


def test_a_gpu_that_only_imitates_bf16_is_told(world, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    run = tiny_settings(world, tmp_path / "run", run__precision="bf16").run
    with pytest.raises(TrainingError, match="only imitates bf16, far more slowly: use --precision fp16 or fp32"):
        start_accelerator(run)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_on_the_command_line_are_answered_with_the_mend(world, tmp_path, capfd, mistake):
    words, message = MISTAKES[mistake]
    given = {"--model": str(world / "base"), "--data": str(world / "photos"), "--output": str(tmp_path / "run"),
             "--resolution": "32", "--bucket-step": "16", "--precision": "fp32"}  # fmt: skip
    given |= dict(zip(words[::2], (word.format(world=world) for word in words[1::2]), strict=True))
    code, error = command(capfd, "check", "lora", *[part for pair in given.items() for part in pair])
    assert code == 1
    assert re.search(f"train_cli: .*{message}", error, re.DOTALL), error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "5"], "has no checkpoint of step 5: kept are 4, 8"),
        (["--file", "x.ckpt"], "--file is x.ckpt: give a name that ends with .safetensors"),
        (["--exprt-dtype", "fp32"], "did you mean --export-dtype"),
    ],
)
def test_mistakes_at_export_are_answered_with_the_mend(straight, capfd, words, message):
    code, error = command(capfd, "export", str(straight), *words)
    assert code == 1 and re.search(message, error), error


def test_machines_that_do_not_share_the_output_are_told(world, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "all_of", lambda self, items: [*items, 4])
    with pytest.raises(TrainingError, match=r"different steps \(0, 4\) in .*run: give an --output on a disk that all"):
        run(world, tmp_path / "run")
    shutil.copytree(straight, tmp_path / "other")
    with pytest.raises(TrainingError, match=r"different steps \(4, 8\)"):
        run(world, tmp_path / "other")


def test_going_beyond_the_last_step_backwards_is_refused(world, straight):
    with pytest.raises(TrainingError, match="is at step 8 already, beyond --steps 4"):
        tiny_trainer(tiny_settings(world, straight, run__steps=4)).run()


def test_a_changed_vocabulary_is_encoded_anew(tmp_path):
    make_pipeline("sd1", tmp_path).save_pretrained(tmp_path / "base")
    write_portraits(tmp_path / "photos", 1)

    def text_hash():
        task = LoraFineTune(tiny_settings(tmp_path, tmp_path / "run").task)
        task.load(torch.device("cpu"), torch.float32)
        return task.encoder_hash("prompt")

    before = text_hash()
    assert text_hash() == before
    for file in (tmp_path / "base" / "tokenizer").glob("*.json"):
        text = file.read_text(encoding="utf-8")
        swapped = text.replace('"a</w>"', '"?"').replace('"b</w>"', '"a</w>"').replace('"?"', '"b</w>"')
        file.write_text(swapped, encoding="utf-8")
    assert text_hash() != before
