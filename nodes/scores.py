"""Score nodes: numbers that say how much of a source picture an edit kept."""

from comfy_api.latest import io, ui

from ..pipelines.spl.score import score_structure
from .convert import cut_as_encoded, to_comfy, to_pipeline


class StructureScore(io.ComfyNode):
    """Compares an edited picture with its source."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessStructureScore",
            display_name="Structure Score",
            category="Likeness/score",
            description="How much of the source's structure an edited picture kept: SPL (x100, 0 is perfect), SSIM and "
            "FSIM (1 is perfect), GMSD (0 is perfect), and a picture of where structure was lost.",
            search_aliases=["SPL", "SSIM", "GMSD", "FSIM", "compare images", "metric"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The edited picture."),
                io.Image.Input("source", tooltip="The photo it was made from, at the same size."),
            ],
            outputs=[
                io.Float.Output(display_name="SPL x100", tooltip="Structure preservation loss; lower is better."),
                io.Float.Output(display_name="SSIM", tooltip="Structural similarity; higher is better."),
                io.Float.Output(display_name="GMSD", tooltip="Gradient magnitude deviation; lower is better."),
                io.Float.Output(display_name="FSIM", tooltip="Feature similarity; higher is better."),
                io.Image.Output(display_name="difference", tooltip="Where structure was lost; brighter is more."),
                io.String.Output(display_name="table", tooltip="The scores of every picture of the batch, as text."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, source) -> io.NodeOutput:
        picture = to_pipeline(image)
        scores = score_structure(picture, cut_as_encoded(to_pipeline(source), picture)[0])
        means = [float(values.mean()) for values in (scores.spl, scores.ssim, scores.gmsd, scores.fsim)]
        table = scores.table()
        return io.NodeOutput(*means, to_comfy(scores.difference), table, ui=ui.PreviewText(table))
