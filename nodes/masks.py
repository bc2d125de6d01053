"""Mask nodes."""

from comfy_api.latest import io

from ..pipelines.masks import MaskUpsampling, upsample_mask
from .convert import to_pipeline


class UpsampleMaskToEdges(io.ComfyNode):
    """Brings a coarse mask to the size and the edges of a picture."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessUpsampleMaskToEdges",
            display_name="Upsample Mask to Edges",
            category="Likeness/mask",
            description="Brings a coarse soft mask, such as a 16x16, 32x32 or 64x64 attention map, to the full size of "
            "a picture, doubling by doubling, and snaps it to the picture's edges.",
            search_aliases=["guided filter", "mask upscale", "refine mask", "attention map"],
            inputs=[
                io.Mask.Input("mask", tooltip="The coarse mask; it must show the same view as the image."),
                io.Image.Input("image", tooltip="The picture whose size and edges the mask takes on."),
                io.Boolean.Input(
                    "suppress_background", default=True,
                    tooltip="Press down the weak, diffuse part of the mask, so that the background becomes clean.",
                ),
                io.Int.Input(
                    "radius", default=1, min=1, max=32, optional=True, advanced=True,
                    tooltip="Radius of the guided filter at the first doubling, in pixels; grows by one each doubling.",
                ),
                io.Float.Input(
                    "edge_tolerance", default=0.01, min=0.0001, max=1.0, step=0.0001, round=False, optional=True,
                    advanced=True,
                    tooltip="How strong an edge must be to stop the mask (squared brightness). Larger is smoother.",
                ),
            ],
            outputs=[io.Mask.Output(tooltip="The mask at the size of the image.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, mask, image, suppress_background, radius=1, edge_tolerance=0.01) -> io.NodeOutput:
        settings = MaskUpsampling(radius=radius, epsilon=edge_tolerance, suppress_background=suppress_background)
        return io.NodeOutput(upsample_mask(mask, to_pipeline(image), settings)[:, 0])
