"""First look at Likeness: python nodes/quickstart.py [photo] [--output DIR]

Without a photo: edits a portrait by text ("in red and blue light", "laughing", ...) with the small model that comes
with the pack, once as usual and once with the portrait's structure preserved, and writes the pictures and their scores;
then relights it from prompts, with the backgrounds that belong to them. With a photo of yours, or with --job refine:
makes a damaged edit of it (a strong colour grade, plus the warp, blur and noise of a lossy generator) and gives it the
photo's structure back.

Runs the shipped graph in a real ComfyUI when one is found (COMFYUI_DIR, the folder above custom_nodes, ~/ComfyUI),
otherwise our own pipeline. Needs nothing but a Python: the first start makes .venv and installs the requirements there.
"""

import argparse
import json
import sys
import time
from pathlib import Path

# Pythons that start isolated, as that of ComfyUI's portable build does, do not look beside the script.
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import comfyui_server
import environment
import pack
import terminal

WORKFLOWS = pack.ROOT / "examples_workflows"
REFINE_GRAPH, EDIT_GRAPH = WORKFLOWS / "structure_refine_api.json", WORKFLOWS / "text_edit_embedded_api.json"
RELIGHT_GRAPH = WORKFLOWS / "relight_embedded_api.json"
PORTRAIT, PORTRAIT_MASK = (WORKFLOWS / "input" / f"likeness_portrait{part}.png" for part in ("", "_mask"))
PHOTO_NAME, EDIT_NAME = "likeness_photo.png", "likeness_edit.png"
IN_COMFYUI = ("torch", "numpy", "cv2", "PIL", "skimage", "aiohttp")  # what the graphs need there
MODULES = (*IN_COMFYUI, "diffusers", "transformers", "safetensors")
SOURCE_TEXT = "a portrait of a calm person in studio light"
EDITS = {
    "red_and_blue_light": "a portrait of a calm person in red and blue light",
    "golden_hour": "a portrait of a calm person at golden hour",
    "laughing": "a portrait of a laughing person in studio light",
}
EFFECTS = ("pantone", "window grill", "golden hour", "night sky")  # the first two are trained, the others are not


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", type=Path, help="a photo, for the job refine")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for the results (default: output)")
    parser.add_argument("--job", choices=["edit", "relight", "refine"],
                        help="only this (default: edit and relight, with a photo refine)")
    parser.add_argument("--text", help="for the job edit: what the edited portrait shall show, instead of our examples")
    parser.add_argument(
        "--host",
        choices=["auto", "comfyui", "pipeline"],
        default="auto",
        help="where to run: auto takes ComfyUI if one is found (default: auto)",
    )
    options = parser.parse_args(terminal.typed(sys.argv[1:] if arguments is None else arguments))
    options.jobs = [options.job] if options.job else ["refine"] if options.photo else ["edit", "relight"]
    if options.photo and options.jobs != ["refine"]:
        parser.error("the small model knows its own portraits only: leave the photo out, or use --job refine")
    return options


def main() -> int:
    options = parse_arguments()
    return terminal.run_script("quickstart", lambda: run(options), 1, "what was written until then stays")


def run(options: argparse.Namespace) -> int:
    environment.ensure_environment(MODULES)
    pack.load_pack()
    try:
        host = choose_host(options.host)
        for job in options.jobs:
            {"edit": run_edits, "relight": run_relighting, "refine": run_refine}[job](options, host)
    except (ValueError, OSError, ImportError, comfyui_server.ComfyServerError, comfyui_server.ComfyRunError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    return 0


# ---- editing a portrait by text


def run_edits(options: argparse.Namespace, host: tuple[Path, Path] | None) -> None:
    from likeness.pipelines.files import make_folder
    from likeness.pipelines.images import load_image, save_image

    output = make_folder(options.output)
    edits, portrait = {"edit": options.text} if options.text else EDITS, load_image(PORTRAIT)
    started = time.perf_counter()
    if host is None:
        print("Running in our own pipeline.")
        edited = edit_in_pipeline(portrait, edits)
    else:
        print(f"Running the graph {EDIT_GRAPH.name} in the ComfyUI at {host[0]}.")
        edited = edit_in_comfyui(edits, *host)
    print(f"Made {len(edits)} edits, each with and without structure preservation, in "
          f"{time.perf_counter() - started:.1f} s.")  # fmt: skip
    save_image(portrait[0], output / "portrait.png")
    for name, pictures in edited.items():
        for ending, picture in zip(("", "_structure"), pictures, strict=True):
            save_image(picture[0], output / f"{name}{ending}.png")
    report_edits(portrait, edited, edits, output)


def edit_in_pipeline(portrait, edits: dict[str, str]) -> dict[str, list]:
    """(plain edit, edit with structure preserved) of the portrait for each text, by the diffusers pipeline."""
    pack.quiet_libraries()
    import torch
    from likeness.pipelines.spl import StructureSettings
    from likeness.pipelines.spl.edit_pipeline import EditSettings
    from likeness.pipelines.spl.embedded import embedded_edit_pipeline

    pipeline = embedded_edit_pipeline()
    settings, kept = EditSettings(target_guidance=3.0), StructureSettings(color_weight=0)
    return {
        name: [
            pipeline(portrait, SOURCE_TEXT, text, settings=settings, structure=structure,
                     generator=torch.Generator().manual_seed(1), on_step=show_progress)
            for structure in (None, kept)
        ]
        for name, text in edits.items()
    }  # fmt: skip


def edit_in_comfyui(edits: dict[str, str], folder: Path, python: Path) -> dict[str, list]:
    """The same, by the shipped graph in a ComfyUI."""
    from likeness.pipelines.generation.recipe import decode

    graph = json.loads(EDIT_GRAPH.read_text(encoding="utf-8"))
    saved = [node for node, content in graph.items() if content["class_type"] == "SaveImage"]
    guiders = [node for node, content in graph.items() if content["class_type"] == "LikenessEditGuider"]
    edited = {}
    with comfyui_server.ComfyServer(folder, python) as server:
        server.upload_image(PORTRAIT, PORTRAIT.name)
        for name, text in edits.items():
            for node in guiders:
                graph[node]["inputs"].update(source_text=SOURCE_TEXT, target_text=text)
            outputs = server.run(graph, lambda node, done, total: show_progress(done, total))
            edited[name] = [decode("png", server.fetch_image(**outputs[node]["images"][0]))[None] for node in saved]
    return edited


def report_edits(portrait, edited: dict[str, list], edits: dict[str, str], output: Path) -> None:
    """Write and print the scores, and write all pictures in one."""
    import torch
    from likeness.pipelines.images import save_image
    from likeness.pipelines.spl.score import score_structure

    names = [f"{name}{ending}" for name in edited for ending in ("", ", structure kept")]
    scores = score_structure(torch.cat([picture for pair in edited.values() for picture in pair]), portrait)
    table = scores.table(tuple(names))
    (output / "scores.txt").write_text(table + "\n", encoding="utf-8")
    columns = [torch.cat([portrait, portrait], 2), *(torch.cat(pair, 2) for pair in edited.values())]
    save_image(torch.cat(columns, 3)[0], output / "comparison.png")
    for name, text in edits.items():
        print(f"  {name}: {text}")
    print(f"\nStructure kept from the portrait (SPL, GMSD: lower is better; SSIM, FSIM: higher):\n{table}\n")
    print(f"Pictures in {output}; comparison.png shows the portrait, then each edit: as usual above, with the "
          "portrait's structure preserved below.")  # fmt: skip


# ---- relighting it


def run_relighting(options: argparse.Namespace, host: tuple[Path, Path] | None) -> None:
    import torch
    from likeness.pipelines.files import make_folder
    from likeness.pipelines.images import load_image, save_image

    output = make_folder(options.output)
    started = time.perf_counter()
    if host is None:
        print("Relighting in our own pipeline.")
        relit = relight_in_pipeline()
    else:
        print(f"Relighting by the graph {RELIGHT_GRAPH.name} in the ComfyUI at {host[0]}.")
        relit = relight_in_comfyui(*host)
    for effect, picture in relit.items():
        save_image(picture[0], output / f"relit_{effect.replace(' ', '_')}.png")
    save_image(torch.cat([load_image(PORTRAIT), *relit.values()], 3)[0], output / "relit.png")
    print(f"Relit the portrait in {time.perf_counter() - started:.1f} s; relit.png shows it, then: {', '.join(relit)}.")


def relight_in_pipeline() -> dict:
    """The portrait in the light of each of ``EFFECTS``, by the diffusers pipeline."""
    pack.quiet_libraries()
    import torch
    from likeness.pipelines.idetail.embedded import embedded_relight_pipeline
    from likeness.pipelines.idetail.prompts import relight_prompt
    from likeness.pipelines.images import load_image

    pipeline, portrait, mask = embedded_relight_pipeline(), load_image(PORTRAIT), load_image(PORTRAIT_MASK)[:, :1]
    return {
        effect: pipeline(portrait, relight_prompt(effect), mask, guidance_scale=2.0,
                         generator=torch.Generator().manual_seed(1), on_step=show_progress)
        for effect in EFFECTS
    }  # fmt: skip


def relight_in_comfyui(folder: Path, python: Path) -> dict:
    """The same, by the shipped graph in a ComfyUI."""
    from likeness.pipelines.generation.recipe import decode

    graph = json.loads(RELIGHT_GRAPH.read_text(encoding="utf-8"))
    nodes = {content["class_type"]: node for node, content in graph.items()}
    relit = {}
    with comfyui_server.ComfyServer(folder, python) as server:
        for picture in (PORTRAIT, PORTRAIT_MASK):
            server.upload_image(picture, picture.name)
        for effect in EFFECTS:
            graph[nodes["LikenessRelightPrompt"]]["inputs"]["effect"] = effect
            outputs = server.run(graph, lambda node, done, total: show_progress(done, total))
            saved = outputs[nodes["SaveImage"]]["images"][0]
            relit[effect] = decode("png", server.fetch_image(**saved))[None]
    return relit


# ---- giving a damaged edit its structure back


def run_refine(options: argparse.Namespace, host: tuple[Path, Path] | None) -> None:
    from likeness.pipelines.files import make_folder
    from likeness.pipelines.images import example_photo, load_image, save_image, size_text
    from likeness.pipelines.spl.damage import lossy_edit
    from likeness.pipelines.spl.score import MIN_SIDE

    photo = load_image(options.photo) if options.photo else example_photo()
    if min(photo.shape[-2:]) < MIN_SIDE:
        raise ValueError(f"{options.photo} is {size_text(photo)} pixels: use a photo of at least {MIN_SIDE} a side.")
    output = make_folder(options.output)
    files = {name: output / f"{name}.png" for name in ("photo", "edit", "refined", "comparison")}
    save_image(photo[0], files["photo"])
    save_image(lossy_edit(photo)[0], files["edit"])

    started = time.perf_counter()
    if host is None:
        print("Running in our own pipeline.")
        refine_in_pipeline(files)
    else:
        print(f"Running the graph {REFINE_GRAPH.name} in the ComfyUI at {host[0]}.")
        refine_in_comfyui(files, *host)
    print(f"Refined in {time.perf_counter() - started:.1f} s.")
    report(files, output)


def choose_host(asked: str) -> tuple[Path, Path] | None:
    """(ComfyUI folder, its Python), or None for our own pipeline; says why when a ComfyUI cannot be used."""
    if asked == "pipeline":
        return None
    # Not resolved: a checkout may be linked into custom_nodes.
    folder = comfyui_server.find_comfyui(Path(__file__).absolute().parent.parent)
    if folder is None:
        reason = "No ComfyUI found (COMFYUI_DIR, the folder above custom_nodes, ~/ComfyUI)."
    else:
        python = comfyui_server.find_python(folder)
        if python is not None:
            missing = comfyui_server.missing_modules(python, IN_COMFYUI)
            if not missing:
                return folder, python
            reason = (
                f"The ComfyUI at {folder} lacks {', '.join(missing)}, which Likeness needs. Install with:\n"
                f"  {python} -m pip install -r {pack.ROOT / 'requirements.txt'}\n"
            )
        else:
            reason = f"Found no Python that can run the ComfyUI at {folder}: set COMFYUI_PYTHON to the one it uses."
    if asked == "comfyui":
        raise ValueError(reason)
    print(reason)
    return None


def refine_in_pipeline(files: dict[str, Path]) -> None:
    """The graph's steps without ComfyUI, from the same two files."""
    from likeness.pipelines.images import load_image, save_image
    from likeness.pipelines.spl import StructureSettings, preserve_structure

    settings = StructureSettings(color_weight=0)
    refined = preserve_structure(load_image(files["edit"]), load_image(files["photo"]), None, settings, show_progress)
    save_image(refined[0], files["refined"])


def refine_in_comfyui(files: dict[str, Path], folder: Path, python: Path) -> None:
    from likeness.pipelines.files import atomic_file

    graph = json.loads(REFINE_GRAPH.read_text(encoding="utf-8"))
    save_node = next(node for node, content in graph.items() if content["class_type"] == "SaveImage")
    with comfyui_server.ComfyServer(folder, python) as server:
        server.upload_image(files["photo"], PHOTO_NAME)
        server.upload_image(files["edit"], EDIT_NAME)
        outputs = server.run(graph, lambda node, done, total: show_progress(done, total))
        picture = server.fetch_image(**outputs[save_node]["images"][0])
    with atomic_file(files["refined"]) as temporary:
        temporary.write_bytes(picture)


def show_progress(done: int, total: int) -> None:
    if total > 1 and (done == total or done % 10 == 0):
        print(f"\r  {done}/{total}", end="\n" if done == total else "", flush=True)


def report(files: dict[str, Path], output: Path) -> None:
    """Write and print the scores of edit and refined edit; write the pictures side by side."""
    import torch
    from likeness.pipelines.images import load_image, save_image
    from likeness.pipelines.spl.score import score_structure

    photo, edit, refined = (load_image(files[name]) for name in ("photo", "edit", "refined"))
    scores = score_structure(torch.cat([edit, refined]), photo)
    table = scores.table(("edit", "refined"))
    (output / "scores.txt").write_text(table + "\n", encoding="utf-8")
    save_image(side_by_side([photo, edit, refined]), files["comparison"])
    print(f"\nStructure kept from the photo (SPL, GMSD: lower is better; SSIM, FSIM: higher):\n{table}\n")
    print(f"Pictures in {output}: photo.png, edit.png, refined.png, and side by side comparison.png")


def side_by_side(images: list):
    """The images in a row ``[3, H, W]``, and under each the same quarter of it at twice the size."""
    import torch
    from torch.nn.functional import interpolate

    height, width = images[0].shape[-2:]
    top, left = height // 16, width // 4
    details = [
        interpolate(image[..., top : top + height // 2, left : left + width // 2], size=(height, width), mode="bicubic")
        for image in images
    ]
    rows = [torch.cat([image[0] for image in row], dim=-1) for row in (images, details)]
    return torch.cat(rows, dim=-2).clamp(0, 1)


if __name__ == "__main__":
    sys.exit(main())
