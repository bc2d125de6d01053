"""A small image-prompt adapter with random weights in the layout of InstantID's ``ip-adapter.bin``."""

import torch
from likeness.pipelines.weights import published


def write_adapter(path, unet, inputs: int, change=lambda projector, attention: None):
    """Writes the file for this UNet after ``change(projector tensors, attention tensors)``; returns both."""
    draw = torch.Generator().manual_seed(5)
    shapes = published.resampler(unet.config.cross_attention_dim, layers=2, width=32, tokens=3, inputs=inputs)
    projector = {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    attention = {}
    for number, name in enumerate(unet.attn_processors):
        if ".attn2." in name:
            layer = unet.get_submodule(name.removesuffix(".processor"))
            for part in "kv":
                attention[f"{number}.to_{part}_ip.weight"] = 0.3 * torch.randn(layer.to_k.weight.shape, generator=draw)
    change(projector, attention)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"image_proj": projector, "ip_adapter": attention}, path)
    return projector, attention
