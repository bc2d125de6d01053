"""A full-size SD1.5 checkpoint with random weights through ComfyUI's stock loader and the shipped guided graph."""

import json
from pathlib import Path

import comfy.ldm.models.autoencoder
import comfy.sd1_clip
import comfy.supported_models
import pytest
import torch
from comfyui_server import ComfyServer, find_python
from likeness.pipelines.images import from_uint8, save_image
from safetensors.torch import save_file

GRAPH = Path(__file__).resolve().parents[2] / "examples_workflows" / "structure_guided_edit_api.json"
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8, "use_spatial_transformer": True,
    "legacy": False, "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip
VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
       "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip


def random_weights(module: torch.nn.Module, prefix: str, generator) -> dict:
    """fp16 weights of a module's shapes: unit gain for matrices, ones for norms' scales, zeros for biases."""
    weights = {}
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        if value.ndim > 1:
            weight = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        else:
            weight = torch.ones(value.shape) if name.endswith("weight") else torch.zeros(value.shape)
        weights[prefix + name] = weight.half().contiguous()
    return weights


def write_checkpoint(path: Path) -> None:
    """SD1.5 in the layout of the published single-file checkpoints."""
    generator = torch.Generator().manual_seed(0)
    config = comfy.supported_models.SD15(UNET)
    config.set_inference_dtype(torch.float16, None)
    unet = config.get_model({}, device=torch.device("cpu"))
    weights = random_weights(unet.diffusion_model, "model.diffusion_model.", generator)
    vae = comfy.ldm.models.autoencoder.AutoencoderKL(embed_dim=4, ddconfig=VAE)
    weights |= random_weights(vae, "first_stage_model.", generator)
    clip = comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float16)
    weights |= random_weights(clip.transformer, "cond_stage_model.transformer.", generator)
    save_file(weights, path)


@pytest.mark.slow
def test_the_guided_graph_runs_on_a_full_size_checkpoint(comfyui_dir, tmp_path):
    import skimage.data

    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    graph = json.loads(GRAPH.read_text(encoding="utf-8"))
    write_checkpoint(folder / graph["1"]["inputs"]["ckpt_name"])
    assert (folder / graph["1"]["inputs"]["ckpt_name"]).stat().st_size > 2e9
    save_image(from_uint8(skimage.data.astronaut()[:256, 80:400])[0], tmp_path / "likeness_photo.png")
    graph["7"]["inputs"].update(steps=3, denoise=0.5)

    arguments = ["--models-directory", str(tmp_path / "models")]
    with ComfyServer(comfyui_dir, find_python(comfyui_dir), arguments=arguments) as server:
        server.upload_image(tmp_path / "likeness_photo.png")
        guided = scores(server.run(graph))
        graph["7"]["inputs"]["model"] = ["1", 0]
        graph["9"]["inputs"]["structure_weight"] = 1.0
        plain = scores(server.run(graph))
        assert "ERROR" not in server.log()
    assert guided < 0.5 * plain


def scores(outputs: dict) -> float:
    """SPL x100 from the table that the graph's Structure Score shows."""
    return float(outputs["11"]["text"][0].splitlines()[1].split()[1])
