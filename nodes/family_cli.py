"""Makes the embedded portrait models, and all that stands on them, from nothing: python nodes/family_cli.py COMMAND ...

  make --output WORK [STAGE ...]   run all stages, or some with what they need; the same command goes on
  show [--output WORK]             the stages with their commands; with WORK also which are done and how long

A stage is a command of another script here: data, a training, the family with its card, the relighting adapter, the
claims. Which stages there are and with which settings is in a recipe, a TOML file (--recipe; the pack's own is
pipelines/embedded/family.toml: copy it to change it). Each stage works in WORK/STAGE. What stands on something is not
made before that is finished. Ctrl-C, SIGTERM or a file WORK/STOP stops the stage that runs, which saves, and ends.

examples
  python nodes/family_cli.py make --output work
  python nodes/family_cli.py make --output work family
  python nodes/family_cli.py show --output work

exit codes
  0  all that was asked for is finished, or a stop was asked for
  1  a stage failed, or the recipe is wrong; the message says which and why
  2  wrong usage
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

# Pythons that start isolated, as that of ComfyUI's portable build does, do not look beside the script.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import environment
import pack
import terminal

MODULES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "PIL", "cv2", "skimage", "scipy", "sklearn",
           "accelerate", "tomlkit", "tensorboardX", "tqdm")  # fmt: skip
RECIPE = pack.ROOT / "pipelines" / "embedded" / "family.toml"
POLL = 0.5  # seconds between two looks at the stage that runs


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(terminal.typed(arguments))
    return terminal.run_script("family_cli", lambda: _run(options), 0, "the same command goes on")


def _run(options: argparse.Namespace) -> int:
    environment.ensure_environment(MODULES)
    pack.load_pack()
    from likeness.pipelines.stop import Stopped

    try:
        return options.run(options)
    except Stopped as stopped:
        print(f"family_cli: stopped by {stopped}; the same command goes on.", file=sys.stderr)
        return 0
    except (ValueError, OSError) as error:
        print(f"family_cli: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{make,show}")
    make = commands.add_parser("make", help="run the stages that are not finished")
    make.set_defaults(run=make_stages)
    make.add_argument("stages", nargs="*", metavar="STAGE", help="only these and what they need (default: all)")
    make.add_argument("--output", type=Path, required=True, help="folder that everything is made in")
    show = commands.add_parser("show", help="the stages and their commands")
    show.set_defaults(run=show_stages)
    show.add_argument("--output", type=Path, default=Path("WORK"), help="folder that everything is made in")
    for command in (make, show):
        command.add_argument("--recipe", type=Path, default=RECIPE, help="TOML file with the stages (default: ours)")
    return parser


def show_stages(options: argparse.Namespace) -> int:
    """The command ``show``."""
    from likeness.pipelines.embedded.recipe import command, is_finished, read_note, read_recipe

    stages = read_recipe(options.recipe)
    for stage in stages.values():
        state = ""
        try:
            if is_finished(stage, options.output):
                state = f"  done, its last go in {_duration(read_note(stage, options.output)['seconds'])}"
        except ValueError as error:
            state = f"  {error}"
        print(f"{stage.name}{state}\n  {_shown(command(stage.run, stage, stages, options.output))}")
    return 0


def make_stages(options: argparse.Namespace) -> int:
    """The command ``make``."""
    from likeness.pipelines.embedded.recipe import is_finished, read_recipe, with_needs
    from likeness.pipelines.files import exclusive, make_folder
    from likeness.pipelines.stop import StopRequest

    # Runs know their inputs by path, so it has to be the same one from wherever this is started.
    work = Path(os.path.abspath(options.output))
    stages = read_recipe(options.recipe)
    wanted = with_needs(options.stages, stages)
    make_folder(work)
    with exclusive(work / "make.lock", str(work), remove=True), StopRequest(work) as stop:
        left = [stage for stage in wanted if not is_finished(stage, work)]
        print(f"{len(wanted) - len(left)} of {len(wanted)} stages are finished.", flush=True)
        for number, stage in enumerate(left, 1):
            stop.check()
            _make(stage, stages, work, f"{number} of {len(left)}", stop)
    print(f"All is made, in {work}.")
    return 0


def _make(stage, stages, work: Path, place: str, stop) -> None:
    """Run one stage to its end and note that. Raises ``ValueError`` where it fails, ``Stopped`` where it is stopped."""
    from likeness.pipelines.embedded.recipe import command, write_note

    words, start = command(stage.run, stage, stages, work), time.monotonic()
    print(f"\n== {stage.name} ({place})\n{_shown(words)}", flush=True)
    write_note(stage, work, words)
    code = _call(words, stage, work, stop)
    stop.check()
    if code != 0:
        raise ValueError(f"stage {stage.name} ended with {code}, see above; the same command goes on where it was.")
    if not stage.proof(work).exists():
        raise ValueError(f"stage {stage.name} ended, but {stage.proof(work)} is not there: it was stopped, or gives "
                         "something else than the recipe says.")  # fmt: skip
    code = _call(command(stage.check, stage, stages, work), stage, work, stop) if stage.check else 0
    stop.check()
    if code != 0:
        raise ValueError(f"stage {stage.name} is not finished, see above; the same command goes on.")
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_note(stage, work, words, time.monotonic() - start, date)


def _call(words: list[str], stage, work: Path, stop) -> int:
    """The exit code of a script of this pack.

    If a stop is asked for, files named STOP tell it so, again and again: a script that only begins takes one for old,
    and which folder it looks into is its own affair. Ctrl-C reaches it by itself, too.
    """
    process = subprocess.Popen([sys.executable, str(pack.ROOT / "nodes" / words[0]), *words[1:]])
    files = [folder / "STOP" for folder in {stage.folder(work), stage.result(work)}]
    while True:
        try:
            code = process.wait(POLL)
            break
        except subprocess.TimeoutExpired:
            for file in files if stop.requested else ():
                with suppress(OSError):  # a full disk, or a folder that is not there yet
                    file.touch()
    for file in files:
        with suppress(OSError):
            file.unlink()
    return code


def _shown(words: list[str]) -> str:
    return shlex.join(["python", f"nodes/{words[0]}", *words[1:]])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
