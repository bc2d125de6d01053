"""First look at Likeness: python nodes/quickstart.py [photo] [--output DIR]

Makes a damaged edit of a photo (a strong colour grade, plus the warp, blur and noise of a lossy generator), gives it
the photo's structure back with SPL, and writes the pictures and a table of scores. Runs the shipped graph in a real
ComfyUI when one is found (COMFYUI_DIR, the folder above custom_nodes, ~/ComfyUI), otherwise our own pipeline.
Needs nothing but a Python: the first start makes .venv and installs the requirements there.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import comfyui_server
import environment
import pack

GRAPH = pack.ROOT / "examples_workflows" / "structure_refine_api.json"
PHOTO_NAME, EDIT_NAME = "likeness_photo.png", "likeness_edit.png"
MODULES = ("torch", "numpy", "cv2", "PIL", "skimage", "aiohttp")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", type=Path, help="a photo (default: the portrait that scikit-image ships)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for the results (default: output)")
    parser.add_argument(
        "--host",
        choices=["auto", "comfyui", "pipeline"],
        default="auto",
        help="where to run: auto takes ComfyUI if one is found (default: auto)",
    )
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    environment.ensure_environment(MODULES)
    pack.load_pack()
    try:
        run(options)
    except (ValueError, OSError, ImportError, comfyui_server.ComfyServerError, comfyui_server.ComfyRunError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    from likeness.pipelines.images import example_photo, load_image, save_image, size_text
    from likeness.pipelines.spl.damage import lossy_edit
    from likeness.pipelines.spl.score import MIN_SIDE

    photo = load_image(options.photo) if options.photo else example_photo()
    if min(photo.shape[-2:]) < MIN_SIDE:
        raise ValueError(f"{options.photo} is {size_text(photo)} pixels: use a photo of at least {MIN_SIDE} a side.")
    host = choose_host(options.host)
    output = options.output
    output.mkdir(parents=True, exist_ok=True)
    files = {name: output / f"{name}.png" for name in ("photo", "edit", "refined", "comparison")}
    save_image(photo[0], files["photo"])
    save_image(lossy_edit(photo)[0], files["edit"])

    started = time.perf_counter()
    if host is None:
        print("Running in our own pipeline.")
        refine_in_pipeline(files)
    else:
        print(f"Running the graph {GRAPH.name} in the ComfyUI at {host[0]}.")
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
            missing = comfyui_server.missing_modules(python, MODULES)
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

    graph = json.loads(GRAPH.read_text(encoding="utf-8"))
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
