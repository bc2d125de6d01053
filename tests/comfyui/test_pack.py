"""The pack in a running ComfyUI: its nodes, the shipped graphs, quickstart, and what bad input looks like there."""

import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_server import ComfyRunError
from likeness.pipelines.images import from_uint8, load_image, save_image, to_uint8
from likeness.pipelines.spl import StructureSettings, preserve_structure, structure_loss
from likeness.pipelines.spl.damage import lossy_edit
from likeness.pipelines.spl.score import score_structure
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "examples_workflows"
NAMES = (
    "StructureGuidance", "StructureRefine", "UpsampleMaskToEdges", "StructureScore",
    "EditGuider", "VirtualInversionSampler", "DDIMInversionSampler", "EditMask", "LoadEmbeddedPortraitModel",
    "Weights", "PortraitScores", "KeepBest", "RelightConditioning", "RelightLoraLoader", "RelightPrompt",
    "DetectFaces", "FaceCrop", "PasteFaceBack", "IdentityFromFaces", "SaveIdentity", "LoadIdentity",
    "ForegroundMask", "ClothingMask", "FaceMask", "SplitPeopleMask", "SoftenMask", "CleanMask", "MaskEdgeBand",
    "DetailRestore",
)  # fmt: skip
NODES = {f"Likeness{name}" for name in NAMES}
REFINE = json.loads((WORKFLOWS / "structure_refine_api.json").read_text(encoding="utf-8"))
SAVE = "4"


@pytest.fixture(scope="module")
def pictures(server, tmp_path_factory):
    """A portrait and its damaged edit, uploaded under the names the graph uses; returns them as tensors."""
    import skimage.data

    folder = tmp_path_factory.mktemp("pictures")
    photo = from_uint8(skimage.data.astronaut()[60:316, 100:420])
    images = {"likeness_photo.png": photo, "likeness_edit.png": lossy_edit(photo)}
    for name, image in images.items():
        save_image(image[0], folder / name)
        server.upload_image(folder / name)
    return [load_image(folder / name) for name in images]


def changed(**inputs_by_node) -> dict:
    """The refine graph with other inputs: changed(node_3={"iterations": 5})."""
    graph = copy.deepcopy(REFINE)
    for name, inputs in inputs_by_node.items():
        graph[name.removeprefix("node_")]["inputs"].update(inputs)
    return graph


def fetched(server, outputs, node=SAVE):
    png = server.fetch_image(**outputs[node]["images"][0])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_every_node_is_registered_with_category_tooltips_and_ranges(server):
    info = {name: entry for name, entry in server.object_info().items() if name.startswith("Likeness")}
    assert set(info) == NODES
    for name, entry in info.items():
        assert entry["category"].startswith("Likeness/")
        assert entry["description"]
        assert all(entry["output_tooltips"])
        for kind in ("required", "optional"):
            for key, (_, *options) in entry["input"].get(kind, {}).items():
                assert options[0].get("tooltip"), f"{name}.{key} has no tooltip"


def test_the_shipped_graph_gives_the_headless_picture(server, pictures):
    photo, edit = pictures
    outputs = server.run(REFINE)
    ours = preserve_structure(edit, photo, None, StructureSettings(color_weight=0))
    difference = np.abs(fetched(server, outputs) - to_uint8(ours[0]).astype(int))
    assert difference.max() <= 1
    assert outputs["6"]["text"] == [score_structure(ours, photo).table()]
    assert outputs["10"]["text"] == outputs["6"]["text"]


def test_graphs_name_only_nodes_and_inputs_that_exist(server):
    known = server.object_info()
    for path in WORKFLOWS.glob("*_api.json"):
        for content in json.loads(path.read_text(encoding="utf-8")).values():
            description = known[content["class_type"]]["input"]
            names = {*description["required"], *description.get("optional", {})}
            assert set(content["inputs"]) <= names
            assert set(description["required"]) <= set(content["inputs"])


def test_a_changed_widget_gives_another_picture_and_the_same_widget_the_same(server, pictures):
    first = fetched(server, server.run(changed(node_3={"iterations": 5})))
    second = fetched(server, server.run(changed(node_3={"iterations": 6})))
    third = fetched(server, server.run(changed(node_3={"iterations": 5}, node_4={"filename_prefix": "again"})))
    assert (first != second).any()
    assert (first == third).all()


def test_interrupt_ends_a_long_refinement(server, pictures):
    def interrupt(node, done, total):
        if node == "3" and done > 1:
            server.interrupt()

    with pytest.raises(ComfyRunError, match=r"interrupted in node 3 \(LikenessStructureRefine\)"):
        server.run(changed(node_3={"iterations": 1000, "structure_weight": 9000}), interrupt)


def test_upsampled_mask_from_a_graph(server, pictures):
    graph = changed()
    graph |= {
        "20": {"class_type": "SolidMask", "inputs": {"value": 0.8, "width": 20, "height": 16}},
        "21": {
            "class_type": "LikenessUpsampleMaskToEdges",
            "inputs": {"mask": ["20", 0], "image": ["1", 0], "suppress_background": False},
        },
        "22": {"class_type": "MaskToImage", "inputs": {"mask": ["21", 0]}},
        "23": {"class_type": "SaveImage", "inputs": {"images": ["22", 0], "filename_prefix": "mask"}},
    }
    mask = fetched(server, server.run(graph), "23")
    assert mask.shape == (256, 320, 3)
    assert abs(mask - 204).max() <= 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"iterations": 0}, "Value 0 smaller than min of 1"),
        ({"structure_weight": -5}, "Value -5.0 smaller than min of 0"),
        ({"structure_weight": 0}, "structure_weight is 0 and keep_colors is off, so nothing is left to do"),
        ({"radius": 64, "image": ["30", 0], "source": ["30", 0]}, "image is 100x40 pixels, smaller than the win"),
        ({"source": ["30", 0]}, "edited image is 320x256, source image is 100x40"),
        ({"mask": ["31", 0]}, "mask is 50x50, image is 320x256"),
    ],
)
def test_bad_input_is_a_message_that_names_the_node(server, pictures, inputs, message):
    graph = changed(node_3=inputs)
    graph["30"] = {"class_type": "EmptyImage", "inputs": {"width": 100, "height": 40, "batch_size": 1, "color": 0}}
    graph["31"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 50, "height": 50}}
    with pytest.raises(ComfyRunError, match=message) as error:
        server.run(graph)
    assert error.value.node == "3"


def test_loading_the_pack_imports_no_optional_package(comfyui_dir):
    """A diffusers that is missing or broken must not take the nodes with it that do without."""
    lines = (
        "import sys", f"sys.path[:0] = [{str(comfyui_dir)!r}, {str(ROOT / 'tests')!r}]", "import comfy.cli_args",
        "comfy.cli_args.args.cpu = True", "from comfyui_environment import load_script",
        "load_script('pack').load_pack()", "import likeness.nodes.extension",
        "print([name for name in ('diffusers', 'skimage', 'insightface', 'accelerate') if name in sys.modules])",
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


def quickstart(folder, *arguments) -> str:
    command = [sys.executable, str(ROOT / "nodes" / "quickstart.py"), "--output", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ.copy())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_edits_by_text_in_comfyui(comfyui_dir, tmp_path):
    said = quickstart(tmp_path, "--host", "comfyui", "--text", "a portrait of a calm person at golden hour")
    assert f"in the ComfyUI at {comfyui_dir}" in said
    portrait, plain, kept = (load_image(tmp_path / f"{name}.png") for name in ("portrait", "edit", "edit_structure"))
    assert (plain - portrait).abs().mean() > 0.01 and (kept - portrait).abs().mean() > 0.01
    assert structure_loss(kept, portrait) < 0.3 * structure_loss(plain, portrait)


def test_quickstart_gives_the_same_picture_in_comfyui_and_alone(comfyui_dir, tmp_path):
    said = quickstart(tmp_path / "comfyui", "--job", "refine", "--host", "comfyui")
    assert f"in the ComfyUI at {comfyui_dir}" in said
    said = quickstart(tmp_path / "alone", "--job", "refine", "--host", "pipeline")
    assert "our own pipeline" in said
    in_comfyui, alone = (load_image(tmp_path / host / "refined.png") for host in ("comfyui", "alone"))
    assert (in_comfyui - alone).abs().max() <= 1.01 / 255
    assert torch.equal(load_image(tmp_path / "comfyui" / "edit.png"), load_image(tmp_path / "alone" / "edit.png"))
