"""Trains the models of Likeness: python nodes/train_cli.py train TASK [options]

  python nodes/train_cli.py list-tasks
  python nodes/train_cli.py check lora --model sd15.safetensors --data photos --output runs/anna
  python nodes/train_cli.py train lora --config anna.toml --steps 2000
  accelerate launch --num_processes 4 nodes/train_cli.py train lora --config anna.toml
  python nodes/train_cli.py export runs/anna --step 1500 --file anna-1500.safetensors

train   does all that check does, then trains. The same command again goes on from the newest good checkpoint.
        Ctrl-C, SIGTERM or a file OUTPUT/STOP: saves and ends with 0; a second signal ends at once. (accelerate's
        launcher itself ends with 1 after a signal; with it, use the file.)
check   decodes every file of a folder (pictures of a data set are left to `dataset_cli.py verify`), looks for captions,
        sizes and duplicates, estimates the disk, makes one trial step at the largest size, one validation and one save;
        trains nothing.
export  writes the file that a user loads, from any checkpoint that is kept; settings such as --export-dtype may differ
        from those of the run.

Settings come from a TOML file (--config), and from the command line, which wins; --dump-config prints them all as TOML.
`train TASK --help` explains each. In OUTPUT: checkpoints, samples (validation pictures), logs (for TensorBoard), cache
(encoded data), settings.toml, and NAME.safetensors when it is done. Needs nothing from the network.

Ends with 0 when finished or stopped as asked, 1 when something went wrong (the message says what to do), 2 for a
command that cannot be understood.
"""

import argparse
import importlib
import sys
from pathlib import Path

# Pythons that start isolated, as that of ComfyUI's portable build does, do not look beside the script.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import comfyui_server
import environment
import pack
import terminal

# Name: (module, class) below the pack; imported only when asked for.
TASKS = {
    "lora": ("pipelines.training.lora_task", "LoraFineTune"),
    "idetail-conv-in": ("pipelines.idetail.task", "TrainConvIn"),
    "idetail-lora": ("pipelines.idetail.task", "TrainRelight"),
    "embedded-autoencoder": ("pipelines.embedded.autoencoder", "TrainAutoencoder"),
    "embedded-clip": ("pipelines.embedded.clip", "TrainClip"),
    "embedded-text-to-image": ("pipelines.embedded.text_to_image", "TrainTextToImage"),
    "embedded-face-embedder": ("pipelines.embedded.face_embedder", "TrainFaceEmbedder"),
    "embedded-face-detector": ("pipelines.embedded.face_detector", "TrainFaceDetector"),
    "embedded-judge": ("pipelines.embedded.judge", "TrainJudge"),
}
MODULES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "PIL", "accelerate", "tomlkit",
           "tensorboardX", "tqdm")  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code."""
    return terminal.run_script("train_cli", lambda: run(terminal.typed(arguments)), 0, "nothing has changed")


def run(arguments: list[str]) -> int:
    if arguments[:1] in (["train"], ["check"]) and arguments[1:2] in ([], ["-h"], ["--help"]):
        print(f"usage: train_cli.py {arguments[0]} TASK [settings], TASK one of: {', '.join(sorted(TASKS))}")
        return 0 if arguments[1:] else 2
    options, rest = _front_parser().parse_known_args(arguments)
    environment.ensure_environment(MODULES)
    pack.quiet_libraries()
    pack.load_pack()
    commands = {"train": run_task, "check": run_task, "list-tasks": list_tasks, "export": export}
    try:
        return commands[options.command](options, rest)
    except _expected_errors() as error:
        print(f"train_cli: {error}", file=sys.stderr)
        return 1


def _front_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,check,export,list-tasks}")
    for name in ("train", "check"):
        # Its help lists the settings of the task, so it is left to the parser that knows them.
        command = commands.add_parser(name, add_help=False)
        command.add_argument("task", choices=sorted(TASKS))
    commands.add_parser("list-tasks")
    command = commands.add_parser("export", help="write what a user loads from a checkpoint")
    command.add_argument("run", type=Path, help="output folder of a run")
    command.add_argument("--step", type=int, help="which checkpoint (default: the newest good one)")
    command.add_argument("--file", type=Path, help="where to (default: RUN/NAME-STEP.safetensors)")
    command.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True,
                         help="the moving average, where the run keeps one (default: yes)")  # fmt: skip
    return parser


def _expected_errors() -> tuple[type[Exception], ...]:
    from likeness.pipelines.training import CheckpointError, TrainingError

    return (ValueError, OSError, ImportError, TrainingError, CheckpointError)


def task_class(name: str) -> type:
    """The class of a task, imported now."""
    module, attribute = TASKS[name]
    return getattr(importlib.import_module(f"{pack.ALIAS}.{module}"), attribute)


def list_tasks(options: argparse.Namespace, rest: list[str]) -> int:
    for name in sorted(TASKS):
        print(f"{name:24} {task_class(name).summary}")
    return 0


def run_task(options: argparse.Namespace, rest: list[str]) -> int:
    """The commands ``train`` and ``check``."""
    from likeness.pipelines.configuration import dump_toml
    from likeness.pipelines.training import Trainer

    cls = task_class(options.task)
    given = _parse_settings(f"train_cli.py {options.command} {options.task}", cls, rest)
    settings = _settings(cls, given)
    if given.dump_config:
        terminal.print_file(dump_toml(settings))
        return 0
    trainer = Trainer(cls(settings.task, settings.run.seed), settings)
    if options.command == "train":
        trainer.run()
    elif trainer.check():
        print("All checks passed.")
    return 0


def _parse_settings(program: str, cls: type, rest: list[str]) -> argparse.Namespace:
    from likeness.pipelines.configuration import SettingsError, add_arguments, unknown_option
    from likeness.pipelines.training import settings_class

    parser = argparse.ArgumentParser(
        prog=program, usage=f"{program} [settings]", description=f"{cls.summary}.", allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, help="TOML file with any of the settings below, by section")
    parser.add_argument("--dump-config", action="store_true", help="print all settings as TOML and end")
    add_arguments(parser, settings_class(cls))
    given, unknown = parser.parse_known_args(rest)
    if unknown:
        raise SettingsError(unknown_option(unknown[0], settings_class(cls)))
    return given


def _settings(cls: type, given: argparse.Namespace):
    from likeness.pipelines.configuration import settings_of_command
    from likeness.pipelines.training import settings_class

    where = str(given.config or "the command line")
    defaults = comfyui_server.tokenizer_setting("task", cls.Settings)
    return settings_of_command(settings_class(cls), defaults, given, where)


def export(options: argparse.Namespace, rest: list[str]) -> int:
    """Write the exported file of a kept checkpoint; needs neither the base model nor the data."""
    from likeness.pipelines.configuration import build_settings, given_on_command_line
    from likeness.pipelines.files import make_folder
    from likeness.pipelines.training import CheckpointStore, export_checkpoint, settings_class

    checkpoint = CheckpointStore(options.run / "checkpoints", keep=1).load(options.step)
    if checkpoint is None:
        raise ValueError(f"{options.run} holds no checkpoint: give the output folder of a run.")
    cls = task_class(checkpoint.state["task"])
    changes = given_on_command_line(_parse_settings("train_cli.py export RUN", cls, rest))
    settings = build_settings(settings_class(cls), checkpoint.state["settings"], changes)
    target = options.file or options.run / f"{settings.run.name}-{checkpoint.step:08d}.safetensors"
    if target.suffix != ".safetensors":
        raise ValueError(f"--file is {target}: give a name that ends with .safetensors.")
    make_folder(target.parent)
    task = cls(settings.task, settings.run.seed)
    for path in export_checkpoint(task, settings, checkpoint, target.parent, target.stem, options.ema):
        print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
