"""Full-size checkpoints with random weights through ComfyUI's stock loader, with every MODEL node of the pack."""

import json
from pathlib import Path

import comfy.supported_models  # noqa: F401 - so that the folder is left out where there is no ComfyUI
import pytest
import torch
from comfyui_server import ComfyServer, find_python
from diffusers import UNet2DConditionModel
from likeness.pipelines.idetail.adapter import ORDER
from likeness.pipelines.idetail.conditioning import ORDERS
from likeness.pipelines.images import from_uint8, save_image
from likeness.pipelines.weights.architectures import unet_config
from relight_hosts import random_conv_in, random_lora
from safetensors.torch import save_file
from test_weights import comfyui_unet, write_full_size

WORKFLOWS = Path(__file__).resolve().parents[2] / "examples_workflows"
GUIDED = json.loads((WORKFLOWS / "structure_guided_edit_api.json").read_text(encoding="utf-8"))
TEXT_EDIT = json.loads((WORKFLOWS / "text_edit_embedded_api.json").read_text(encoding="utf-8"))
RELIGHT = json.loads((WORKFLOWS / "relight_api.json").read_text(encoding="utf-8"))
BYTES = {"sd1": 2.1e9, "sd2": 2.5e9, "koala-700m": 3.3e9, "sdxl": 6.9e9}


@pytest.fixture
def server(request, comfyui_dir, tmp_path):
    """A server whose only models are those that a test writes to ``tmp_path/models``; parameter: more arguments."""
    import skimage.data

    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    arguments = ["--models-directory", str(tmp_path / "models"), *getattr(request, "param", ())]
    with ComfyServer(comfyui_dir, find_python(comfyui_dir), arguments=arguments) as running:
        for name in ("likeness_photo.png", "likeness_portrait.png"):
            save_image(from_uint8(skimage.data.astronaut()[:192, 112:368])[0], tmp_path / name)
            running.upload_image(tmp_path / name)
        yield running
        assert "ERROR" not in running.log()


@pytest.mark.slow
def test_the_guided_graph_runs_on_a_full_size_checkpoint(server, tmp_path):
    graph = json.loads(json.dumps(GUIDED))
    write_full_size("sd1", tmp_path / "models" / "checkpoints" / graph["1"]["inputs"]["ckpt_name"])
    graph["7"]["inputs"].update(steps=3, denoise=0.5)
    guided = scores(server.run(graph))
    graph["7"]["inputs"]["model"] = ["1", 0]
    graph["9"]["inputs"]["structure_weight"] = 1.0
    assert guided < 0.5 * scores(server.run(graph))


@pytest.mark.slow
@pytest.mark.parametrize("name", BYTES)
def test_every_model_node_runs_on_every_full_size_family(server, tmp_path, name):
    """One step of the text edit, plain and with structure kept, and a mask from words."""
    path = tmp_path / "models" / "checkpoints" / "full.safetensors"
    write_full_size(name, path)
    assert path.stat().st_size == pytest.approx(BYTES[name], rel=0.05)
    graph = json.loads(json.dumps(TEXT_EDIT))
    graph["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": path.name}}
    graph["8"]["inputs"]["steps"] = 1
    graph["30"] = {"class_type": "LikenessEditMask", "inputs": {
        "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "image": ["2", 0], "words": "person",
        "prompt": "a portrait of a calm person", "threshold": 0.4, "outside": False, "steps": 1}}  # fmt: skip
    graph["31"] = {"class_type": "MaskPreview", "inputs": {"mask": ["30", 0]}}
    outputs = server.run(graph, limit=1500)
    assert {"15", "16", "31"} <= set(outputs)


def write_full_size_adapter(name: str, path: Path) -> None:
    """A random file of idetail-lora for a model of the real size, in half precision."""
    model, draw = comfyui_unet(name, torch.device("meta")), torch.Generator().manual_seed(0)
    shapes = {key: tuple(value.shape) for key, value in model.diffusion_model.state_dict().items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(shapes))
    path.parent.mkdir()
    tensors = {**random_conv_in(unet, draw), **random_lora(unet, draw, torch.float16)}
    save_file(tensors, path, metadata={ORDER: ORDERS[0]})


# ComfyUI keeps every weight that a LoRA changes twice; in float32, as it runs on a CPU, SDXL's take 20 GB.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "name"), [((), "koala-700m"), (("--bf16-unet",), "sdxl")], indirect=["server"], ids=["koala", "sdxl"]
)
def test_relighting_runs_on_a_full_size_checkpoint(server, tmp_path, name):
    """One step of the shipped graph with nine channels, and another picture without the photo's first convolution."""
    graph, steps = json.loads(json.dumps(RELIGHT)), {}
    for number, node in graph.items():
        steps.setdefault(node["class_type"], number)
    write_full_size(name, tmp_path / "models" / "checkpoints" / graph["1"]["inputs"]["ckpt_name"])
    loader, sampler = graph[steps["LikenessRelightLoraLoader"]], graph[steps["KSampler"]]
    write_full_size_adapter(name, tmp_path / "models" / "loras" / loader["inputs"]["file"])
    sampler["inputs"]["steps"] = 1
    graph["30"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 256, "height": 192}}
    graph[steps["LikenessRelightConditioning"]]["inputs"]["mask"] = ["30", 0]
    for unused in ("LikenessDetectFaces", "LikenessForegroundMask", "MaskPreview"):
        del graph[steps[unused]]
    pictures = []
    for strength in (1.0, 0.0):
        loader["inputs"]["conv_in_strength"] = strength
        saved = server.run(graph, limit=1500)[steps["SaveImage"]]["images"][0]
        pictures.append(server.fetch_image(**saved))
    assert pictures[0] != pictures[1]
    assert "not loaded" not in server.log().lower()


def scores(outputs: dict) -> float:
    """SPL x100 from the table that the graph's Structure Score shows."""
    return float(outputs["11"]["text"][0].splitlines()[1].split()[1])
