"""Mask nodes."""

from comfy_api.latest import io

from ..pipelines.masks import MaskUpsampling, operations, soften, upsample_mask
from .convert import named_errors, to_pipeline


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


class SoftenMask(io.ComfyNode):
    """Gives a mask the edges of a picture."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessSoftenMask",
            display_name="Soften Mask to Edges",
            category="Likeness/mask",
            description="Gives a mask edges as soft or sharp as those of the picture under it, such as strands of "
            "hair, by the guided filter. For masks at full size; coarse ones belong into Upsample Mask to Edges.",
            search_aliases=["guided filter", "refine mask", "matting", "hair", "feather"],
            inputs=[
                io.Mask.Input("mask", tooltip="The mask, hard or soft."),
                io.Image.Input("image", tooltip="The picture whose edges the mask takes on."),
                io.Int.Input("radius", default=4, min=0, max=128,
                             tooltip="How far edges may move and soften, in pixels; 0 leaves the mask."),
                io.Float.Input(
                    "edge_tolerance", default=0.0001, min=0.000001, max=1.0, step=0.00001, round=False, optional=True,
                    advanced=True,
                    tooltip="How strong an edge must be to hold the mask (squared brightness). Larger is smoother.",
                ),
            ],
            outputs=[io.Mask.Output(tooltip="The mask with the picture's edges.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, mask, image, radius, edge_tolerance=0.0001) -> io.NodeOutput:
        with named_errors("Soften Mask to Edges"):
            return io.NodeOutput(soften(mask, to_pipeline(image), radius, edge_tolerance)[:, 0])


class CleanMask(io.ComfyNode):
    """Fills holes, drops specks, keeps one piece."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessCleanMask",
            display_name="Clean Mask",
            category="Likeness/mask",
            description="Fills the holes of a mask, drops its specks, and keeps one of its pieces if you like.",
            search_aliases=["fill holes", "connected components", "largest region", "remove islands", "despeckle"],
            inputs=[
                io.Mask.Input("mask", tooltip="The mask; regions are told at 0.5, soft values stay."),
                io.Float.Input("fill_holes", default=100.0, min=0.0, max=100.0, step=0.1,
                               tooltip="Fill enclosed holes up to this size, in percent of the picture; 0 fills none."),
                io.Float.Input("drop_specks", default=0.1, min=0.0, max=100.0, step=0.01,
                               tooltip="Drop pieces smaller than this, in percent of the picture; 0 drops none."),
                io.Int.Input("keep_piece", default=0, min=0, max=999,
                             tooltip="0: all pieces. 1: only the largest, 2: only the second largest, and so on."),
            ],
            outputs=[io.Mask.Output(tooltip="The mask, cleaned.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, mask, fill_holes, drop_specks, keep_piece) -> io.NodeOutput:
        with named_errors("Clean Mask"):
            cleaned = operations.fill_holes(mask, fill_holes / 100)
            cleaned = operations.remove_specks(cleaned, drop_specks / 100)
            return io.NodeOutput((operations.keep_piece(cleaned, keep_piece) if keep_piece else cleaned)[:, 0])


class MaskEdgeBand(io.ComfyNode):
    """A band along the contour of a mask."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessMaskEdgeBand",
            display_name="Mask Edge Band",
            category="Likeness/mask",
            description="A band along the contour of a mask, inside and outside: for inpainting seams and for looking "
            "at edges.",
            search_aliases=["mask border", "outline", "seam", "contour", "rim"],
            inputs=[
                io.Mask.Input("mask", tooltip="The mask; its contour is where it passes 0.5."),
                io.Int.Input("inner", default=8, min=0, max=1024, tooltip="How far the band reaches in, in pixels."),
                io.Int.Input("outer", default=8, min=0, max=1024, tooltip="How far the band reaches out, in pixels."),
            ],
            outputs=[io.Mask.Output(tooltip="1 in the band, 0 elsewhere.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, mask, inner, outer) -> io.NodeOutput:
        with named_errors("Mask Edge Band"):
            return io.NodeOutput(operations.edge_band(mask, inner, outer)[:, 0])
