"""Detail Restore: the fine detail of a photo for its relit copy."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..pipelines.idetail.restoration import METHODS, RestorationSettings, restore_detail
from ..pipelines.images import check_image, match_batch
from .convert import (
    compute_device,
    cut_as_encoded,
    make_room,
    named_errors,
    node_progress,
    to_comfy,
    to_pipeline,
    warn_of_black,
)

PLANES = 40  # of float32 that a picture needs while its detail is restored, colours and all


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
        warn_of_black(mask, "Detail Restore")
        with named_errors("Detail Restore"):
            picture = check_image(to_pipeline(image), "edited image")
            original, mask = cut_as_encoded(check_image(to_pipeline(original), "original image"), picture, mask)
            settings = RestorationSettings(method, strength, detail_size)
            return io.NodeOutput(to_comfy(restored_one_by_one(picture, original, mask, settings)))


def restored_one_by_one(picture, original, mask, settings: RestorationSettings) -> torch.Tensor:
    """``restore_detail`` of a batch, of which only one picture at a time is on the device it is computed on."""
    count = max(len(picture), len(original))
    batches = [match_batch(picture, count, "edited image"), match_batch(original, count, "original image")]
    if mask is not None:
        batches.append(match_batch(mask.reshape(-1, *mask.shape[-2:]), count, "mask"))
    device, report = compute_device(), node_progress()
    make_room(device, tuple(picture.shape[-2:]), PLANES)
    made = []
    for number in range(count):
        report(number, count)
        restored = restore_detail(*(batch[number, None].to(device) for batch in batches), settings=settings)
        made.append(restored.to(comfy.model_management.intermediate_device()))
    report(count, count)
    return torch.cat(made)
