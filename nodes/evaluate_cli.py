"""Measures: python nodes/evaluate_cli.py COMMAND ...

  embedded   put the embedded models together from the exports of their training, measure them, write their card

examples
  python nodes/evaluate_cli.py embedded --autoencoder runs/vae/vae --clip runs/clip/clip --text-to-image runs/unet/unet
    --face-embedder runs/face/face --judge runs/judge/judge --held-out data/held --output models/portrait
  python nodes/evaluate_cli.py embedded --judge runs/judge/judge --held-out data/held --measure models/portrait

exit codes
  0  done
  1  failed; the message says why
  2  wrong usage
"""

import argparse
import os
import sys
from pathlib import Path

import environment
import pack

MODULES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "PIL", "cv2", "skimage")
EXPORTS = ("autoencoder", "clip", "text_to_image", "face_embedder")


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    environment.ensure_environment(MODULES)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    pack.load_pack()
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"evaluate_cli: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{embedded}")
    embedded = commands.add_parser("embedded", help="put together, measure and describe the embedded models")
    embedded.set_defaults(run=run_embedded)
    for name in EXPORTS:
        flag = f"--{name.replace('_', '-')}"
        embedded.add_argument(flag, type=Path, help=f"folder that the task embedded-{flag[2:]} exported")
    target = embedded.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=Path, help="the new folder")
    target.add_argument("--measure", type=Path, help="measure this folder again, instead of making one")
    embedded.add_argument("--judge", type=Path, required=True, help="folder that the task embedded-judge exported")
    embedded.add_argument("--held-out", type=Path, required=True, help="data set of people not trained on")
    embedded.add_argument("--generated", type=int, default=1000, help="pictures to generate (default: 1000)")
    embedded.add_argument("--guidance-scale", type=float, default=4.0, help="of generated pictures (default: 4)")
    embedded.add_argument("--steps", type=int, default=25, help="sampling steps of generated pictures (default: 25)")
    return parser


def run_embedded(options: argparse.Namespace) -> int:
    """The command ``embedded``."""
    from likeness.pipelines.embedded.card import write_card
    from likeness.pipelines.embedded.family import assemble, load_family
    from likeness.pipelines.embedded.judge import load_judge
    from likeness.pipelines.embedded.measure import measure_family
    from likeness.pipelines.embedded.portrait_set import PortraitSet

    judge, held_out = load_judge(options.judge / "judge"), PortraitSet(options.held_out).read()
    if not 2 <= options.generated <= len(held_out):
        raise ValueError(f"--generated is {options.generated}: give 2 to {len(held_out)}, the held-out captions.")
    if options.output is not None:
        missing = [name for name in EXPORTS if getattr(options, name) is None]
        if missing:
            raise ValueError(f"--{missing[0].replace('_', '-')} is missing: --output is made from all four exports.")
        assemble(options.output, {name: getattr(options, name) for name in EXPORTS})
    folder = options.output or options.measure
    figures = measure_family(
        load_family(folder), judge, held_out, options.generated, options.guidance_scale, options.steps, _show
    )
    settings = {"held_out": f"{len(held_out)} portraits", "generated": f"{options.generated} pictures",
                "guidance_scale": options.guidance_scale, "steps": options.steps}  # fmt: skip
    write_card(folder, figures, settings)
    for name, value in figures.items():
        print(f"{name:60} {value:.4f}")
    return 0


def _show(what: str, done: int, total: int) -> None:
    print(f"\r{what}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
