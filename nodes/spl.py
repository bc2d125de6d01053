"""SPL nodes: keep the structure of a source photo while sampling, or after."""

from dataclasses import replace

import comfy.model_management
import torch
from comfy_api.latest import io

from ..pipelines.images import check_image, match_pair
from ..pipelines.spl import StructureSettings, preserve_structure
from ..pipelines.spl.optimise import prepare_mask
from .convert import (
    compute_device,
    cut_as_encoded,
    make_room,
    node_progress,
    to_comfy,
    to_pipeline,
    warn_of_black,
)
from .hooks.structure_guidance import StructureGuidanceHook

_CATEGORY = "Likeness/SPL"
PLANES = 40  # of float32 that a picture needs while it is refined, colours and all


def _strength_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "structure_weight", default=10000.0, min=0.0, max=100000.0, step=100.0,
            tooltip="How hard the picture is pulled towards the edges of the source. 10000 is the method's own value; "
            "0 switches the structure part off.",
        ),
        io.Boolean.Input(
            "keep_colors", default=False,
            tooltip="Also pull the colours towards the source. Leave off when the edit is to change colours or light.",
        ),
        io.Int.Input(
            "iterations", default=100, min=1, max=1000,
            tooltip="Descent steps each time the picture is refined. More steps follow the source more closely.",
        ),
        io.Mask.Input(
            "mask", optional=True,
            tooltip="Where to keep structure (white). Black areas are left to the edit. Any size of the same shape.",
        ),
        io.Float.Input(
            "color_weight", default=1000.0, min=0.0, max=100000.0, step=100.0, optional=True, advanced=True,
            tooltip="How hard colours are pulled towards the source when keep_colors is on.",
        ),
        io.Int.Input(
            "radius", default=5, min=1, max=64, optional=True, advanced=True,
            tooltip="Radius in pixels of the windows in which the picture must look like the source: 5 means 11x11.",
        ),
        io.Int.Input(
            "mask_dilation", default=0, min=0, max=256, optional=True, advanced=True,
            tooltip="Grow the mask by this many pixels, so that the border of the mask adds no edge inside the region.",
        ),
    ]  # fmt: skip


def _settings(structure_weight, keep_colors, iterations, color_weight, radius, mask_dilation) -> StructureSettings:
    if structure_weight == 0 and not keep_colors:
        raise ValueError(
            "structure_weight is 0 and keep_colors is off, so nothing is left to do: raise structure_weight, switch "
            "keep_colors on, or bypass this node (Ctrl+B)."
        )
    return StructureSettings(
        structure_weight=structure_weight,
        color_weight=color_weight if keep_colors else 0.0,
        iterations=iterations,
        radius=radius,
        mask_dilation=mask_dilation,
    )


class StructureGuidanceNode(io.ComfyNode):
    """Patches a MODEL so that sampling keeps the structure of a source image."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessStructureGuidance",
            display_name="Structure Guidance",
            category=_CATEGORY,
            description="Keeps every edge of a source photo while an edit is sampled. In the last steps the predicted "
            "picture is decoded, pulled towards the structure of the source and encoded again. Works with any "
            "sampler, scheduler and guider, and any model whose VAE you connect.",
            search_aliases=["SPL", "structure preservation", "keep edges", "keep structure"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to this model."),
                io.Image.Input(
                    "source", tooltip="The photo whose structure is kept; same shape as the picture being sampled."
                ),
                io.Float.Input(
                    "start", default=0.8, min=0.0, max=1.0, step=0.01,
                    tooltip="Fraction of the steps after which the guidance begins: 0.8 guides the last fifth. The "
                    "last step is always guided. Lower values follow the source more closely and take longer.",
                ),
                *_strength_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with structure guidance.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, source, start, structure_weight, keep_colors, iterations, mask=None,
                color_weight=1000.0, radius=5, mask_dilation=0) -> io.NodeOutput:  # fmt: skip
        if vae is None:
            raise ValueError("Structure Guidance: the vae input is empty: connect the VAE that belongs to this model.")
        settings = _settings(structure_weight, keep_colors, iterations, color_weight, radius, mask_dilation)
        warn_of_black(mask, "Structure Guidance")
        source = check_image(to_pipeline(source), "source image", settings.window).movedim(1, -1)
        return io.NodeOutput(StructureGuidanceHook(vae, source, mask, settings, start).attach(model))


class StructureRefine(io.ComfyNode):
    """Pulls a finished edit towards the structure of its source."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessStructureRefine",
            display_name="Structure Refine",
            category=_CATEGORY,
            description="Gives an edited picture back the edges of its source photo: blur, warps and noise of the edit "
            "go, its colours and light stay. Needs no model.",
            search_aliases=["SPL", "structure preservation", "restore edges", "detail"],
            inputs=[
                io.Image.Input("image", tooltip="The edited picture."),
                io.Image.Input("source", tooltip="The photo it was made from, at the same size."),
                *_strength_inputs(),
            ],
            outputs=[io.Image.Output(tooltip="The edited picture with the structure of the source.")],
        )

    @classmethod
    def execute(cls, image, source, structure_weight, keep_colors, iterations, mask=None,
                color_weight=1000.0, radius=5, mask_dilation=0) -> io.NodeOutput:  # fmt: skip
        settings = _settings(structure_weight, keep_colors, iterations, color_weight, radius, mask_dilation)
        warn_of_black(mask, "Structure Refine")
        picture = to_pipeline(image)
        source, mask = cut_as_encoded(to_pipeline(source), picture, mask)
        return io.NodeOutput(to_comfy(refined_one_by_one(picture, source, mask, settings)))


def refined_one_by_one(picture, source, mask, settings: StructureSettings) -> torch.Tensor:
    """``preserve_structure`` of a batch, of which only one picture at a time is on the device it is computed on."""
    picture, source = match_pair(picture, source, settings.window, ("edited image", "source image"))
    size, count = tuple(picture.shape[-2:]), len(picture)
    if mask is not None:
        mask = prepare_mask(mask, size, count, settings.mask_dilation)
        settings = replace(settings, mask_dilation=0)
    device, report = compute_device(), node_progress()
    make_room(device, size, PLANES)
    made = []
    for number in range(count):
        one, own, region = (None if batch is None else batch[number, None].to(device)
                            for batch in (picture, source, mask))  # fmt: skip
        begun, total = number * settings.iterations, count * settings.iterations
        refined = preserve_structure(
            one, own, region, settings, lambda done, _, begun=begun, total=total: report(begun + done, total)
        )
        made.append(refined.to(comfy.model_management.intermediate_device()))
        report(begun + settings.iterations, total)
    return torch.cat(made)
