"""Makes, checks and exports data sets: python nodes/dataset_cli.py COMMAND ...

  list-recipes                    what can be made
  generate RECIPE --output DIR    make a data set, or go on with one; `generate RECIPE --help` lists all settings
  status DIR                      how far it is: shards, rejects and their reasons
  verify DIR [--repair]           check every byte; --repair has generate make the bad shards anew
  export-folder DIR TARGET        pictures and captions as a plain folder for other trainers

A data set is a folder of shards, tar files in WebDataset layout with a JSON sidecar each. Shards come out the same
byte for byte with any number of workers and after any number of interruptions. Stop with Ctrl-C, SIGTERM or a file
named STOP in the folder; the same command goes on, and with a larger --total it adds to what is there. Several
machines work together if each runs the same command on one shared folder.

examples
  python nodes/dataset_cli.py generate structure_pairs --output data/pairs --total 2000 --photos ~/photos --workers 4
  python nodes/dataset_cli.py generate structure_pairs --dump-config > pairs.toml
  python nodes/dataset_cli.py generate structure_pairs --output data/pairs --config pairs.toml --seed 7
  python nodes/dataset_cli.py generate idetail --output data/relight --photos ~/photos --models ~/ComfyUI/models
  python nodes/dataset_cli.py generate my_recipes.py:MyRecipe --output data/mine
  python nodes/dataset_cli.py verify data/pairs --repair

exit codes
  0  done; for generate also: stopped on request, all that was finished is kept
  1  failed, or verify found faults, or shards were given up; the message says which and why
  2  wrong usage
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import is_dataclass, make_dataclass
from pathlib import Path

# Pythons that start isolated, as that of ComfyUI's portable build does, do not look beside the script.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import comfyui_server
import environment
import pack
import terminal

MODULES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "PIL", "cv2", "skimage", "accelerate",
           "tomlkit", "tqdm")  # fmt: skip
RECIPES = {
    "structure_pairs": "pipelines.spl.data:StructurePairs", "portraits": "pipelines.portraits.data:Portraits",
    "idetail_portraits": "pipelines.idetail.world:IdetailPortraits",
    "idetail": "pipelines.idetail.photo_data:IdetailPhotos",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    arguments = terminal.typed(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["work"]:
        return run(arguments)  # its engine knows what an interrupt means
    code = 0 if arguments[:1] == ["generate"] else 1
    return terminal.run_script("dataset_cli", lambda: run(arguments), code, "nothing has changed")


def run(arguments: list[str]) -> int:
    environment.ensure_environment(MODULES)
    pack.load_pack()
    from likeness.pipelines.generation.worker import GenerationError
    from likeness.pipelines.stop import Stopped

    try:
        if arguments[:1] == ["work"]:  # how generate starts its workers; not for people
            return run_worker(*arguments[1:])
        options = parse_arguments(arguments)
        return options.run(options)
    except (ValueError, OSError, ImportError, GenerationError) as error:
        print(f"dataset_cli: {error}", file=sys.stderr)
    except Stopped as stopped:
        print(f"dataset_cli: stopped by {stopped} before the end; nothing has changed.", file=sys.stderr)
    return 1


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dataset_cli.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command(commands, list_recipes, "list-recipes", "what can be made")
    add_generate(commands, arguments)
    for run, name, summary in (
        (show_status, "status", "how far a data set is"),
        (verify, "verify", "check every byte of a data set; exit code 1 if anything is wrong or unfinished"),
        (export, "export-folder", "write the items as a plain folder of pictures, captions and metadata.jsonl"),
    ):
        command(commands, run, name, summary).add_argument("folder", type=Path, help="folder of the data set")
    commands.choices["verify"].add_argument(
        "--repair", action="store_true", help="forget the bad shards, so that generate makes them anew"
    )
    commands.choices["export-folder"].add_argument("target", type=Path, help="the new folder")
    commands.choices["export-folder"].add_argument(
        "--partial", action="store_true", help="what is finished of an unfinished data set"
    )
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        if hasattr(options, "recipe"):
            from likeness.pipelines.configuration import unknown_option

            raise ValueError(unknown_option(unknown[0], settings_class(find_recipe(options.recipe))))
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def command(commands, run: Callable[[argparse.Namespace], int], name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def add_generate(commands, arguments: list[str]) -> None:
    """The settings of a recipe become options once it is known which: it has to follow the word generate."""
    from likeness.pipelines.configuration import add_arguments

    parser = command(commands, generate, "generate", "make a data set, or go on with one")
    parser.add_argument("recipe", metavar="RECIPE", help="a name from list-recipes, or file.py:Class of your own")
    parser.add_argument("--output", type=Path, help="folder of the data set (required)")
    parser.add_argument("--config", type=Path, help="TOML file with settings; options on the command line win")
    parser.add_argument("--dump-config", action="store_true", help="print all settings as TOML and end")
    if arguments[:1] == ["generate"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        add_arguments(parser, settings_class(find_recipe(arguments[1])))


def settings_class(recipe_class: type) -> type:
    from likeness.pipelines.generation import DatasetSettings, RunSettings

    sections = [("dataset", DatasetSettings), ("recipe", recipe_class.Settings), ("run", RunSettings)]
    return make_dataclass("GenerationSettings", sections, frozen=True)


def find_recipe(reference: str) -> type:
    """The class of a recipe by its name, or by "file.py:Class". Raises ``ValueError`` if there is none."""
    if reference in RECIPES:
        module, _, name = RECIPES[reference].partition(":")
        return getattr(importlib.import_module(f"{pack.ALIAS}.{module}"), name)
    path, _, name = reference.rpartition(":")
    if not path.endswith(".py"):
        known = ", ".join(RECIPES)
        raise ValueError(f"there is no recipe {reference!r}: known are {known}; file.py:Class names one of your own.")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file, so there is no recipe {reference!r}.")
    found = getattr(load_file(Path(path).resolve()), name, None)
    if found is None:
        raise ValueError(f"{path} has no class {name!r}.")
    missing = [part for part in ("name", "version", "parameters", "make") if not hasattr(found, part)]
    missing += [] if is_dataclass(getattr(found, "Settings", None)) else ["Settings (a dataclass)"]
    if missing:
        raise ValueError(f"{reference} is no recipe: it lacks {', '.join(missing)}; see generation/recipe.py.")
    return found


def load_file(path: Path):
    name = f"likeness_recipes_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except Exception as error:  # whatever is in it
            del sys.modules[name]
            raise ValueError(f"{path} cannot be loaded ({type(error).__name__}: {error}): correct it.") from error
    return sys.modules[name]


def list_recipes(options: argparse.Namespace) -> int:
    for name in RECIPES:
        recipe = find_recipe(name)
        print(f"{name:20} {recipe.summary}")
    return 0


def generate(options: argparse.Namespace) -> int:
    from likeness.pipelines.configuration import dump_toml, settings_of_command
    from likeness.pipelines.generation import WorkerScript, prepare_dataset
    from likeness.pipelines.generation import generate as run_engine
    from likeness.pipelines.generation.local import all_devices
    from likeness.pipelines.stop import StopRequest

    recipe_class = find_recipe(options.recipe)
    defaults = comfyui_server.tokenizer_setting("recipe", recipe_class.Settings)
    settings = settings_of_command(settings_class(recipe_class), defaults, options)
    if options.dump_config:
        terminal.print_file(dump_toml(settings))
        return 0
    if options.output is None:
        raise ValueError("--output is missing: give the folder for the data set.")
    reference = options.recipe if options.recipe in RECIPES else absolute_reference(options.recipe)
    script = WorkerScript(Path(__file__).resolve(), ("work", reference))
    with StopRequest(options.output) as stop:
        recipe = recipe_class(settings.recipe, "cpu")
        dataset = prepare_dataset(options.output, recipe, settings.dataset)
        if "cpu" in (settings.run.devices or all_devices()) and (advice := getattr(recipe, "advice", str)()):
            print(advice)
        state = run_engine(dataset, recipe, script, settings.run, stop)
    print(state.summary())
    return conclude(state, stop.reason)


def absolute_reference(reference: str) -> str:
    path, _, name = reference.rpartition(":")
    return f"{Path(path).resolve()}:{name}"


def conclude(state, stopped_by: str | None) -> int:
    if state.complete:
        less = f", {state.absent} less than asked for: there is nothing to make of them" if state.absent else ""
        print(f"Finished: {state.kept} items in {state.dataset.folder}{less}.")
        return 0
    if stopped_by:
        print(f"Stopped by {stopped_by}. Start the same command again to go on; finished shards are kept.")
        return 0
    left = len(state.dataset.shards) - len(state.finished)
    print(f"dataset_cli: {left} shards are not finished, see above; start the same command again to try them anew, "
          "or do without them: export-folder and IDetail's training have --partial.",
          file=sys.stderr)  # fmt: skip
    return 1


def run_worker(reference: str, job: str) -> int:
    from likeness.pipelines.generation import Job, worker_main

    return worker_main(find_recipe(reference), Job.from_text(job))


def show_status(options: argparse.Namespace) -> int:
    from likeness.pipelines.generation import RunSettings, Survey, open_dataset

    print(Survey(open_dataset(options.folder), RunSettings().lease_timeout).look().summary())
    return 0


def verify(options: argparse.Namespace) -> int:
    from likeness.pipelines.generation import open_dataset, verify_dataset
    from likeness.pipelines.generation.verify import repair
    from likeness.pipelines.stop import StopRequest

    dataset = open_dataset(options.folder)
    with StopRequest() as stop:
        problems = verify_dataset(dataset, stop.check)
    unfinished = [shard for shard in dataset.shards if shard not in problems and dataset.finished(shard) is None]
    for shard, found in problems.items():
        print(f"shard {shard}:\n" + "\n".join(f"  {line}" for line in found))
    if options.repair:
        repair(dataset, problems)
    good = len(set(dataset.shards) - set(problems)) - len(unfinished)
    print(f"{good} of {len(dataset.shards)} shards are good, {len(problems)} bad, {len(unfinished)} not finished.")
    if problems or unfinished:
        mend = "run generate again" if options.repair or not problems else "run verify --repair, then generate again"
        print(f"To mend it: {mend}.")
    return 1 if problems or unfinished else 0


def export(options: argparse.Namespace) -> int:
    from likeness.pipelines.generation import DatasetReader, export_folder
    from likeness.pipelines.stop import StopRequest

    reader = DatasetReader(options.folder, options.partial)
    with StopRequest() as stop:
        export_folder(reader, options.target, stop.check)
    print(f"{len(reader)} items in {options.target}: pictures, captions and metadata.jsonl.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
