"""A models folder as ``weights_manifest.json`` lays it out, with small random networks like SDXL and InstantID."""

from pathlib import Path

import face_models
import torch
from diffusers import ControlNetModel
from likeness.pipelines.weights.manifest import destination, named
from tiny_adapter import write_adapter
from tiny_base import make_pipeline

EMBEDDING = 48  # numbers that the tiny ArcFace gives


def write_models(models: Path, sees: str = "light") -> Path:
    """Fills the folder; returns the base model's own. ``sees``: as in ``face_models.scrfd``."""
    pipeline = make_pipeline("sdxl", models / "letters")
    base = models / "checkpoints" / "tiny_sdxl"
    pipeline.save_pretrained(base)
    for seed, name in enumerate(("instantid/controlnet", "controlnet-canny-sdxl/controlnet")):
        tiny_controlnet(pipeline.unet, seed).save_pretrained(destination(named(name), models))
    write_adapter(destination(named("instantid/adapter"), models) / "ip-adapter.bin", pipeline.unet, EMBEDDING)
    pack = destination(named("antelopev2/pack"), models)
    face_models.scrfd(pack / "scrfd_10g_bnkps.onnx", sees)
    face_models.embedder(pack / "glintr100.onnx")
    return base


def tiny_controlnet(unet, seed: int) -> ControlNetModel:
    """One whose answers are not zero, for pictures twice as large as the latents."""
    torch.manual_seed(seed)
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    for layer in [*network.controlnet_down_blocks, network.controlnet_mid_block,
                  network.controlnet_cond_embedding.conv_out]:  # fmt: skip
        torch.nn.init.normal_(layer.weight, std=0.1)
    return network.eval()
