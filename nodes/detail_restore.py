"""Detail Restore: the fine detail of a photo for its relit copy."""

from comfy_api.latest import io

from ..pipelines.idetail.restoration import METHODS, RestorationSettings, restore_detail
from .convert import compute_device, named_errors, to_comfy, to_pipeline


class DetailRestore(io.ComfyNode):
    """Gives an edited portrait the fine detail of its original back."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessDetailRestore",
            display_name="Detail Restore",
            category="Likeness/IDetail",
            description="Gives a relit or redrawn portrait the pores, wrinkles and hairs of its original back. Its new "
            "light and colours stay, the original's light is not carried over. Needs no model.",
            search_aliases=["IDetail", "detail transfer", "restore skin", "sharpen", "guided filter", "wavelet"],
            inputs=[
                io.Image.Input("image", tooltip="The edited picture."),
                io.Image.Input(
                    "original", tooltip="The photo that it was made from: the same view, of the same shape."
                ),
                io.Combo.Input(
                    "method", options=list(METHODS),
                    tooltip="What counts as detail. guided filter: what a soft blur takes away. wavelet: the finest "
                    "bands of a wavelet; restores a little less.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.05,
                    tooltip="How much of the missing detail comes back: 0 none, 1 all of it, more exaggerates it.",
                ),
                io.Float.Input(
                    "detail_size", default=2.0, min=0.5, max=64.0, step=0.5,
                    tooltip="Size of the largest detail in pixels: about how far the edit is blurred.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Where to restore (white), best with soft edges: a Face Mask or Foreground Mask. Without "
                    "one everywhere, new backgrounds included.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The edited picture with the original's detail.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, original, method, strength, detail_size, mask=None) -> io.NodeOutput:
        device = compute_device()
        with named_errors("Detail Restore"):
            restored = restore_detail(
                to_pipeline(image).to(device), to_pipeline(original).to(device), mask,
                RestorationSettings(method, strength, detail_size),
            )  # fmt: skip
        return io.NodeOutput(to_comfy(restored))
