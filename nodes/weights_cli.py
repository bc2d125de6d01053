"""External weights: python nodes/weights_cli.py COMMAND [NAME ...]

  list       what there is: name, licence, size, whether it is on this machine
  check      whether files are there and right; --checksums also reads and compares their contents
  download   put files where ComfyUI and this pack look for them
  where      the paths at which files are, or belong

NAME is a name from `list` or a group (what stands before the slash); list, check and where take all files for none.
Nothing is downloaded unless you name it. A download that was stopped or cut off goes on where it was.

examples
  python nodes/weights_cli.py list --method idetail
  python nodes/weights_cli.py download instantid yunet --models ~/ComfyUI/models
  python nodes/weights_cli.py check --checksums sdxl
  HF_HUB_OFFLINE=1 python nodes/weights_cli.py download instantid    (says which file to put where by hand)

exit codes
  0  done; for download also: stopped on request, what was loaded is kept
  1  something is missing, damaged or could not be had; the message says which and why
  2  wrong usage
"""

import argparse
import json
import sys
from pathlib import Path

# Pythons that start isolated, as that of ComfyUI's portable build does, do not look beside the script.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import comfyui_server
import environment
import pack
import terminal

MODULES = ("torch", "safetensors", "huggingface_hub", "tqdm", "numpy")


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(terminal.typed(arguments))
    download = options.run is run_download
    left = "the same command goes on there" if download else "nothing has changed"
    return terminal.run_script("weights_cli", lambda: _run(options), 0 if download else 1, left)


def _run(options: argparse.Namespace) -> int:
    environment.ensure_environment(MODULES)
    pack.load_pack()
    from likeness.pipelines.stop import Stopped

    try:
        return options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"weights_cli: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"\nweights_cli: stopped by {stopped}; the same command goes on there.", file=sys.stderr)
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{list,check,download,where}")
    for name, run, summary in (
        ("list", run_list, "what there is"),
        ("check", run_check, "whether files are there and right"),
        ("download", run_download, "get files"),
        ("where", run_where, "the paths of files"),
    ):
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        command.set_defaults(run=run)
        command.add_argument("names", nargs="+" if name == "download" else "*", metavar="NAME", help="file or group")
        command.add_argument(
            "--models", type=Path, action="append", metavar="DIR",
            help="a models folder (default: that of the ComfyUI found); may be repeated, downloads go to the first",
        )  # fmt: skip
    commands.choices["list"].add_argument("--method", help="only what this method needs: spl, idetail, mcdm, ...")
    commands.choices["list"].add_argument("--json", action="store_true", help="the entries as JSON")
    commands.choices["check"].add_argument("--checksums", action="store_true", help="read and compare the contents")
    return parser


def models_folders(options: argparse.Namespace) -> list[Path]:
    """Where to look. Raises ``ValueError`` where no ComfyUI is found and none is given."""
    if options.models:
        missing = [folder for folder in options.models if not folder.is_dir()]
        if missing:
            raise ValueError(f"--models {missing[0]} is no folder: make it first, or give ComfyUI's models folder.")
        return options.models
    found = comfyui_server.find_models(pack.ROOT)
    if found is None:
        raise ValueError("no ComfyUI was found (COMFYUI_DIR, above custom_nodes, ~/ComfyUI): give --models DIR.")
    return [found]


def chosen(options: argparse.Namespace) -> list:
    """The entries of the names given."""
    from likeness.pipelines.weights.manifest import read_manifest, select

    return select(read_manifest(), options.names)


def run_list(options: argparse.Namespace) -> int:
    """The command ``list``."""
    from likeness.pipelines.files import bytes_text
    from likeness.pipelines.weights.manifest import state

    weights = chosen(options)
    if options.method:
        known = sorted({method for weight in weights for method in weight.methods})
        weights = [weight for weight in weights if options.method in weight.methods]
        if not weights:
            raise ValueError(f"--method is {options.method!r}: give one of {', '.join(known)}.")
    if options.json:
        print(json.dumps([vars(weight) for weight in weights], indent=2, ensure_ascii=False))
        return 0
    try:
        folders = models_folders(options)
    except ValueError as error:
        if options.models:
            raise
        print(f"What is on this machine is not shown: {error}", file=sys.stderr)
        folders = None
    for weight in weights:
        there = "" if folders is None else f"[{state(weight, folders).value}]  "
        size = "size unknown" if weight.size is None else bytes_text(weight.size)
        uses = {True: "", False: "; no commercial use", None: "; commercial use unclear"}[weight.commercial_use]
        print(f"{weight.name}  {there}{size}")
        print(f"    {weight.purpose}\n    {weight.licence}{uses}")
    return 0


def run_check(options: argparse.Namespace) -> int:
    """The command ``check``: 1 if anything named is not there or not right."""
    from likeness.pipelines.weights.manifest import State, state

    folders, bad = models_folders(options), 0
    for weight in chosen(options):
        found = state(weight, folders, options.checksums)
        bad += found in (State.MISSING, State.DAMAGED)
        unknown = options.checksums and found is State.PRESENT
        print(f"{weight.name:40} {found.value}{' (no checksum is known for it)' if unknown else ''}")
    return 1 if bad else 0


def run_where(options: argparse.Namespace) -> int:
    """The command ``where``: 1 if a file is missing."""
    from likeness.pipelines.weights.manifest import destination, find

    folders, missing = models_folders(options), 0
    for weight in chosen(options):
        paths = find(weight, folders)
        missing += paths is None
        for path in paths or [destination(weight, folders[0]) / name for name in weight.names]:
            print(path if paths else f"{path}  (missing)")
    return 1 if missing else 0


def run_download(options: argparse.Namespace) -> int:
    """The command ``download``: goes on with the next file where one fails."""
    from likeness.pipelines.stop import StopRequest
    from likeness.pipelines.weights.download import download

    folders, failed = models_folders(options), 0
    with StopRequest() as stop:
        for weight in chosen(options):
            if weight.commercial_use is not True:
                print(f"{weight.name}: {weight.licence}; not, or not clearly, for commercial use.")
            try:
                for path in download(weight, folders[0], stop.check):
                    print(path)
            except (ValueError, OSError) as error:
                failed += 1
                print(f"weights_cli: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
