"""Measures: python nodes/evaluate_cli.py COMMAND ...

  claims     re-run a paper's claims on the portrait world, where the truth about every edit is known
  adapter    measure a method's adapter for the embedded models and write its card beside it
  embedded   put the embedded models together from the exports of their training, measure them, write their card
  score      scores of pictures: against a source, a prompt, a person, a mask of the clothes
  compare    a folder of pictures against another: each picture, and both folders as wholes; CSV, JSON, HTML page

examples
  python nodes/evaluate_cli.py score edit.png --source photo.png --prompt "a portrait at golden hour" --json scores.json
  python nodes/evaluate_cli.py compare generated real --output results --features dinov2 --models ComfyUI/models
  python nodes/evaluate_cli.py claims spl --people 100 --output results
  python nodes/evaluate_cli.py claims idetail --data data/people --conv-in runs/conv/conv_in.safetensors --output out
  python nodes/evaluate_cli.py embedded --autoencoder runs/vae/vae --clip runs/clip/clip --text-to-image runs/unet/unet
    --face-embedder runs/face/face --judge runs/judge/judge --held-out data/held --output models/portrait
  python nodes/evaluate_cli.py embedded --judge runs/judge/judge --held-out data/held --measure models/portrait
  python nodes/evaluate_cli.py embedded --face-detector runs/finder/finder --held-out data/held --extend models/portrait

exit codes
  0  done, or stopped on request (Ctrl-C, or a file named STOP in the output folder) with what was found written
  1  failed; the message says why
  2  wrong usage
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

# Pythons that start isolated, as that of ComfyUI's portable build does, do not look beside the script.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import comfyui_server
import environment
import pack
import terminal

MODULES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "PIL", "cv2", "skimage", "scipy", "sklearn",
           "accelerate", "tomlkit", "tensorboardX", "tqdm")  # fmt: skip
EXPORTS = ("autoencoder", "clip", "text_to_image", "face_embedder", "face_detector")


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(terminal.typed(arguments))
    return terminal.run_script("evaluate_cli", lambda: _run(options), 0, options.left)


def _run(options: argparse.Namespace) -> int:
    environment.ensure_environment(MODULES)
    pack.quiet_libraries()
    pack.load_pack()
    from likeness.pipelines.stop import Stopped

    try:
        return options.run(options)
    except Stopped as stopped:
        print(f"\nevaluate_cli: stopped by {stopped}; {options.left}.", file=sys.stderr)
        return 0
    except _expected_errors() as error:
        print(f"evaluate_cli: {error}", file=sys.stderr)
        return 1


def _expected_errors() -> tuple[type[Exception], ...]:
    from likeness.pipelines.training import CheckpointError, TrainingError

    return (ValueError, OSError, ImportError, TrainingError, CheckpointError)


@contextmanager
def _listening(folder: Path) -> Iterator[Callable[[str, int, int], None]]:
    """Block in which a stop is heard: gives the progress callback ``(what, done, total)`` that raises ``Stopped``."""
    from likeness.pipelines.stop import StopRequest

    with StopRequest(folder) as stop:

        def step(what: str, done: int, total: int) -> None:
            _show(what, done, total)
            stop.check()

        yield step


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(left="nothing is written")
    commands = parser.add_subparsers(required=True, metavar="{claims,adapter,embedded,score,compare}")
    _add_claims(commands)
    _add_adapter(commands)
    _add_score(commands)
    _add_compare(commands)
    embedded = commands.add_parser("embedded", help="put together, measure and describe the embedded models")
    embedded.set_defaults(run=run_embedded, left="no figures are written: measure the folder with --measure")
    for name in EXPORTS:
        flag = f"--{name.replace('_', '-')}"
        embedded.add_argument(flag, type=Path, help=f"folder that the task embedded-{flag[2:]} exported")
    target = embedded.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=Path, help="the new folder")
    target.add_argument("--measure", type=Path, help="measure this folder again, instead of making one")
    target.add_argument("--extend", type=Path, help="put face embedder or detector into this folder, measure these "
                        "alone, and keep the rest and its figures; or an autoencoder with a new decoder, and measure "
                        "all")  # fmt: skip
    embedded.add_argument(
        "--judge", type=Path, help="folder that the task embedded-judge exported, wherever all is measured"
    )
    embedded.add_argument("--held-out", type=Path, required=True, help="data set of people not trained on")
    embedded.add_argument("--generated", type=int, default=1000, help="pictures to generate (default: 1000)")
    embedded.add_argument("--guidance-scale", type=float, default=4.0, help="of generated pictures (default: 4)")
    embedded.add_argument("--steps", type=int, default=25, help="sampling steps of generated pictures (default: 25)")
    return parser


def _add_claims(commands) -> None:
    claims = commands.add_parser("claims", help="re-run a paper's claims on the portrait world")
    methods = claims.add_subparsers(required=True, metavar="{spl,idetail}")
    spl = methods.add_parser("spl", help="structure preservation")
    spl.set_defaults(run=run_claims_spl, method="spl", left="the same command goes on, scores of people are kept")
    _add_claims_settings(spl, people=100)
    spl.add_argument("--steps", type=int, default=15, help="sampling steps of an edit (default: 15)")
    spl.add_argument("--batch", type=int, default=20, help="pictures edited at once (default: 20)")
    idetail = methods.add_parser("idetail", help="relighting: trains every row first, or goes on with it")
    idetail.set_defaults(run=run_claims_idetail, method="idetail",
                         left="the same command goes on, trained rows are kept")  # fmt: skip
    _add_claims_settings(idetail, people=20)
    idetail.add_argument("--data", type=Path, required=True, help="data set of `generate idetail_portraits`")
    idetail.add_argument("--conv-in", type=Path, required=True, help="file that idetail-conv-in exported")
    idetail.add_argument("--steps", type=int, default=200, help="training steps of each row (default: 200)")
    idetail.add_argument("--rows", nargs="*", help="only rows whose name begins so (default: all)")


def _add_adapter(commands) -> None:
    adapter = commands.add_parser("adapter", help="measure a method's adapter for the embedded models, write its card")
    adapter.set_defaults(run=run_adapter_idetail)
    adapter.add_argument("method", choices=("idetail",))
    adapter.add_argument("--conv-in", type=Path, required=True, help="file that idetail-conv-in exported")
    adapter.add_argument("--relight", type=Path, required=True, help="file that idetail-lora exported")
    adapter.add_argument("--output", type=Path, required=True, help="folder that gets both, the card and the metrics")
    adapter.add_argument("--models", type=Path, help="folder of the embedded models (default: those of this pack)")
    adapter.add_argument("--people", type=int, default=20, help="how many held-out people (default: 20)")
    adapter.add_argument("--population", type=int, default=2, help="seed of the people (default: 2)")


def _add_claims_settings(claims, people: int) -> None:
    claims.add_argument("--output", type=Path, required=True, help="folder for the report and all scores")
    claims.add_argument("--models", type=Path, help="folder of the embedded models (default: those of this pack)")
    claims.add_argument("--people", type=int, default=people, help=f"how many held-out people (default: {people})")
    claims.add_argument("--population", type=int, default=2, help="seed of the people (default: 2)")
    claims.add_argument("--readme", action="store_true", help="also put the report into README.md")


def _add_score(commands) -> None:
    score = commands.add_parser("score", help="scores of pictures")
    score.set_defaults(run=run_score)
    score.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    score.add_argument("--source", type=Path, help="the picture they were made from")
    score.add_argument("--source-prompt", help="what the source shows, for the CLIP directional similarity")
    score.add_argument("--mask", type=Path, help="mask of the clothes (white), for the Clothing score")
    score.add_argument("--json", type=Path, help="write the scores into this file, too")
    _add_networks(score)


def _add_compare(commands) -> None:
    compare = commands.add_parser("compare", help="a folder of pictures against another")
    compare.set_defaults(run=run_compare)
    compare.add_argument("folder", type=Path, help="the pictures to measure; a subfolder each person where it counts")
    compare.add_argument("reference", type=Path, help="the pictures to measure them by; equal names are compared")
    compare.add_argument("--output", type=Path, required=True, help="folder for the table, the scores and the page")
    compare.add_argument("--masks", type=Path, help="masks of the clothes by the pictures' names")
    _add_networks(compare)
    compare.add_argument("--features", choices=("embedded-clip", "clip", "dinov2", "inception", "vgg16"),
                         help="what sees sets of pictures (default: the CLIP that the prompts use)")  # fmt: skip
    compare.add_argument("--dinov2", type=Path, help="folder of a DINOv2 (default: below --models)")
    compare.add_argument("--inception", type=Path, help="weights of the FID's Inception (default: below --models)")


def _add_networks(command) -> None:
    command.add_argument("--prompt", help="what the pictures should show; a .txt beside a picture goes before it")
    command.add_argument("--clip", type=Path, help="folder of a CLIP (default: below --models, else the embedded one)")
    command.add_argument("--vgg16", type=Path, help="weights of VGG16 for the Clothing score (default: it uses CLIP)")
    command.add_argument("--device", default="cpu", help="what CLIP, DINOv2 and the like run on, such as cuda "
                         "(default: cpu)")  # fmt: skip
    command.add_argument("--faces", choices=("none", "embedded", "opencv", "insightface"), default="none",
                         help="what finds and embeds faces (default: none)")  # fmt: skip
    command.add_argument("--models", type=Path, help="ComfyUI's models folder, or one like it (default: that "
                         "of the ComfyUI found, else ./models)")  # fmt: skip


def run_score(options: argparse.Namespace) -> int:
    """The command ``score``: a table on the screen, and a JSON file."""
    from likeness.pipelines.evaluation.files import score_files
    from likeness.pipelines.files import make_folder, write_json
    from likeness.pipelines.stop import StopRequest

    if options.json is not None:  # now, for the scores take long
        make_folder(options.json.parent)
    with StopRequest() as stop:
        found = score_files(options.pictures, _panel(options), options.source, options.prompt,
                            options.source_prompt, options.mask, stop.check)  # fmt: skip
    if options.json is not None:
        write_json(options.json, found.as_json())
    print(found.text())
    for reason in found.bad.values():
        print(f"left out: {reason}", file=sys.stderr)
    if not found.complete:
        print("Stopped; the other pictures were not scored.", file=sys.stderr)
    return 0 if found.scores or not found.complete else 1


def run_compare(options: argparse.Namespace) -> int:
    """The command ``compare``: pictures.csv, scores.json and report.html in the output folder."""
    from likeness.pipelines.evaluation.folders import compare_folders
    from likeness.pipelines.evaluation.report import write_report
    from likeness.pipelines.evaluation.sets import SetScores, score_sets
    from likeness.pipelines.files import make_folder
    from likeness.pipelines.stop import Stopped

    panel = _panel(options)
    make_folder(options.output)
    with _listening(options.output) as step:
        found = compare_folders(options.folder, options.reference, panel, options.prompt, options.masks, step)
        sets = None
        if found.complete:
            # Sets take long and much memory: what the pictures gave is not to be lost with them.
            write_report(options.output, found, SetScores(warnings=["The folders as wholes were not scored."]), _show)
            try:
                embedder = panel.faces.embedder if panel.faces else None
                sets = score_sets(found, panel.features.name, embedder, step)
            except Stopped:
                found.complete = False
    files = write_report(options.output, found, sets or SetScores(), _show)
    for name, value in (sets.values if sets else {}).items():
        print(f"{name:70} {value:.4f}")
    print("".join(f"{reason}\n" for reason in found.bad.values()), end="", file=sys.stderr)
    print(f"{'' if found.complete else 'Stopped; what was done is in '}{files['report.html']}")
    return 0


def _panel(options: argparse.Namespace):
    """What measures, by the options of ``_add_networks``."""
    from likeness.pipelines.evaluation.backbones import load_network
    from likeness.pipelines.evaluation.folders import Panel
    from likeness.pipelines.evaluation.panel import portrait_scores, words_network
    from likeness.pipelines.spl.score import SCORES

    folder = options.models or comfyui_server.find_models(pack.ROOT) or Path("models")
    models, faces = [folder], None
    if options.faces != "none":
        from likeness.pipelines.faces import BackendSettings, load_backend

        faces = load_backend(options.faces, BackendSettings(folder))
    words = words_network(models, options.clip)
    clothes = load_network("vgg16", models, options.vgg16) if options.vgg16 else None
    name = getattr(options, "features", None)
    features = load_network(name, models, getattr(options, name.replace("-", "_"), None)) if name else words
    words, features, clothes = (network and network.to(options.device) for network in (words, features, clothes))
    return Panel(portrait_scores(models, words, faces and faces.embedder, SCORES, clothes), features, faces)


def run_claims_spl(options: argparse.Namespace) -> int:
    """The command ``claims spl``: scores are kept in OUTPUT/people, from where a stopped run goes on."""
    from likeness.pipelines.embedded import SHIPPED
    from likeness.pipelines.embedded.family import load_family
    from likeness.pipelines.spl.claims import ClaimsSettings, claims_report, measure_claims
    from likeness.pipelines.spl.edit_pipeline import EditSettings

    _check(options)
    settings = ClaimsSettings(options.people, options.population, options.batch, edit=EditSettings(steps=options.steps))
    family = load_family(options.models or SHIPPED)
    with _listening(options.output) as step:
        found = measure_claims(family, settings, partial(step, "edits"), options.output / "people")
    return _write_claims(options, claims_report(found, settings), found)


def run_claims_idetail(options: argparse.Namespace) -> int:
    """The command ``claims idetail``: rows are trained in OUTPUT/runs, where a stopped one goes on."""
    from likeness.pipelines.embedded import SHIPPED
    from likeness.pipelines.embedded.family import load_family
    from likeness.pipelines.idetail import claims
    from likeness.pipelines.stop import StopRequest

    _check(options)
    models = options.models or SHIPPED
    settings = claims.ClaimsSettings(
        options.data, options.conv_in, options.output / "runs", models, options.steps, people=options.people,
        population=options.population,
    )  # fmt: skip
    rows = [row for row in claims.ROWS if options.rows is None or row.name.startswith(tuple(options.rows))]
    files: dict[str, Path | None] = {claims.BASE: None}
    for row in rows:
        print(row.name, flush=True)
        file = claims.train_row(row, settings, stop=StopRequest(options.output))
        if file is None:
            return 0
        files[row.name] = file
    family, more = load_family(models), {}
    with _listening(options.output) as step:
        found = claims.measure(family, files, settings, partial(step, "relighting"))
        if claims.FULL in files:
            more = claims.measure_more(family, files[claims.FULL], settings, partial(step, "several people"))
    return _write_claims(options, claims.claims_report(found, more, settings), {**found, **more})


def run_adapter_idetail(options: argparse.Namespace) -> int:
    """The command ``adapter idetail``."""
    from likeness.pipelines.embedded import SHIPPED
    from likeness.pipelines.embedded.family import load_family
    from likeness.pipelines.idetail import claims
    from likeness.pipelines.idetail.card import ship
    from likeness.pipelines.idetail.prompts import EFFECTS

    _check(options)
    models = options.models or SHIPPED
    settings = claims.ClaimsSettings(
        options.output, options.conv_in, options.output, models, people=options.people, population=options.population,
        effects=tuple(EFFECTS),
    )  # fmt: skip
    name = "this adapter"
    files, family = {claims.BASE: None, name: options.relight}, load_family(models)
    with _listening(options.output) as step:
        found = claims.measure(family, files, settings, partial(step, "relighting"))
    found |= claims.split_by_training(found, name, settings.effects)
    ship({"conv_in": options.conv_in, "relight": options.relight}, options.output, found, settings)
    print((options.output / "README.md").read_text(encoding="utf-8"))
    return 0


def _check(options: argparse.Namespace) -> None:
    """What would fail only after everything was measured."""
    from likeness.pipelines.files import make_folder

    if options.people < 2:
        raise ValueError(f"--people is {options.people}: give at least 2, intervals are over people.")
    make_folder(options.output)


def _write_claims(options: argparse.Namespace, report: str, found) -> int:
    from likeness.pipelines.files import write_between, write_json, write_text

    write_text(options.output / "report.md", report + "\n")
    scores = {row: {name: values.tolist() for name, values in columns.items()} for row, columns in found.items()}
    write_json(options.output / "scores.json", scores)
    if options.readme:
        write_between(pack.ROOT / "README.md", f"claims:{options.method}", report)
    print(report)
    return 0


def run_embedded(options: argparse.Namespace) -> int:
    """The command ``embedded``."""
    from likeness.pipelines.embedded.portrait_set import PortraitSet

    exports = {name: getattr(options, name) for name in EXPORTS if getattr(options, name)}
    with _listening(options.output or options.measure or options.extend) as step:
        held_out = PortraitSet(options.held_out).read(partial(step, "held-out portraits"))
        figures = (extend_family if options.extend else make_family)(options, exports, held_out, step)
    for name, value in figures.items():
        print(f"{name:60} {value:.4f}")
    return 0


def make_family(options: argparse.Namespace, exports: dict[str, Path], held_out, step: Callable) -> dict[str, float]:
    """Put a family together, or take one that is there, and measure all of it."""
    from likeness.pipelines.embedded.family import assemble, make_room

    judge = _judge(options, held_out)
    if options.output is not None:
        make_room(options.output)
        assemble(options.output, exports)
    elif exports:
        raise ValueError("--measure takes the models of that folder: leave the exports out, or give --output.")
    return _measure_all(options.output or options.measure, judge, options, held_out, step)


def _judge(options: argparse.Namespace, held_out):
    """The judge, once all that measuring with it needs is there."""
    from likeness.pipelines.embedded.judge import load_judge

    if options.judge is None:
        raise ValueError("--judge is missing: give the folder that the task embedded-judge exported.")
    if not 2 <= options.generated <= len(held_out):
        raise ValueError(f"--generated is {options.generated}: give 2 to {len(held_out)}, the held-out captions.")
    return load_judge(options.judge / "judge")


def _measure_all(folder: Path, judge, options: argparse.Namespace, held_out, step: Callable) -> dict[str, float]:
    """All figures of a family, which its card then tells."""
    from likeness.pipelines.embedded.card import write_card
    from likeness.pipelines.embedded.family import load_family
    from likeness.pipelines.embedded.measure import measure_family

    figures = measure_family(
        load_family(folder), judge, held_out, options.generated, options.guidance_scale, options.steps, step
    )
    settings = {"held_out": f"{len(held_out)} portraits", "generated": f"{options.generated} pictures",
                "guidance_scale": options.guidance_scale, "steps": options.steps}  # fmt: skip
    write_card(folder, figures, settings)
    return figures


def extend_family(options: argparse.Namespace, exports: dict[str, Path], held_out, step: Callable) -> dict[str, float]:
    """Put models into a family that no other model stands on, and measure these; with a new decoder all of it."""
    from likeness.pipelines.embedded.card import read_figures, write_card
    from likeness.pipelines.embedded.family import extend, load_family
    from likeness.pipelines.embedded.measure import measure_faces

    if "autoencoder" in exports:
        judge = _judge(options, held_out)
        extend(options.extend, exports)
        return _measure_all(options.extend, judge, options, held_out, step)
    figures, settings = read_figures(options.extend, f"{len(held_out)} portraits")
    extend(options.extend, exports)
    figures |= measure_faces(load_family(options.extend), held_out, step)
    write_card(options.extend, figures, settings)
    return figures


def _show(what: str, done: int, total: int) -> None:
    print(f"\r{what}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
