"""CLIP text encoders of any layout, renamed to what transformers calls the weights (without ``text_model.``)."""

import torch

OPEN_CLIP_NAMES = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
    "text_projection.weight": "text_projection.weight",
}
OPEN_CLIP_LAYER_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_ldm(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's CLIP as SD1.x and SDXL files hold it, in the layouts of before and after transformers 4.0."""
    kept = {key: value for key, value in weights.items() if not key.endswith(("position_ids", "logit_scale"))}
    return {key.removeprefix("text_model."): value for key, value in kept.items()}


def from_open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's text tower as SD2.x and SDXL files hold it: query, key and value of a layer are one matrix there."""
    converted = {}
    for key, value in weights.items():
        if key in OPEN_CLIP_NAMES:
            converted[OPEN_CLIP_NAMES[key]] = value
        elif key == "text_projection":  # multiplied from the right there
            converted["text_projection.weight"] = value.T.contiguous()
        elif key.startswith("transformer.resblocks."):
            _, _, number, name = key.split(".", 3)
            converted |= _open_clip_layer(f"encoder.layers.{number}.", name, value)
    return converted


def _open_clip_layer(prefix: str, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    kind = name.rpartition("in_proj_")[2]
    if kind != name:
        parts = zip(("q", "k", "v"), value.chunk(3), strict=True)
        return {f"{prefix}self_attn.{letter}_proj.{kind}": part.clone() for letter, part in parts}
    module, _, kind = name.rpartition(".")
    return {f"{prefix}{OPEN_CLIP_LAYER_NAMES.get(module, module)}.{kind}": value}


def text_encoder(encoder_class, config: dict, weights: dict[str, torch.Tensor]) -> tuple[torch.nn.Module, list[str]]:
    """A transformers CLIP text model with ``weights``, named without ``text_model.``, and the names it still lacks.

    The class renames them itself: transformers 5.6 took that level out of ``CLIPTextModel``, and writes files that
    transformers 4 would read as empty.
    """
    named = {key if key.startswith("text_projection") else f"text_model.{key}": weights[key] for key in weights}
    if "WithProjection" not in encoder_class.__name__:
        named.pop("text_projection.weight", None)  # the file also serves those who compare texts with pictures
    # Without the type that it names, to which transformers 5 would round the weights.
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    config = encoder_class.config_class.from_dict(config)
    encoder, report = encoder_class.from_pretrained(None, config=config, state_dict=named, output_loading_info=True)
    return encoder, sorted(report["missing_keys"])
