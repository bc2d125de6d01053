"""What structure preservation costs on top of a text edit, in one run, at 512x512 with an SD1.5-sized random model.

    python tests/benchmarks/text_edit.py [--device cpu] [--steps 15] [--precision bf16] [--readme]

On a GPU whole edits are timed, with and without. On a CPU one edit takes minutes, so its parts are timed instead (a
sampling step, a refinement inside the loop, the round trip of the source, the final refinement) and added up.
"""

import argparse
import statistics
import time

import torch
from report import load_pack, write_into_readme

SIZE = 512
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def random_pipeline(device: str, dtype: torch.dtype):
    """A ``TextEditPipeline`` of SD1.5's sizes with random weights, without text encoder."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from likeness.pipelines.spl.edit_pipeline import TextEditPipeline

    with torch.device(device):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, scaling_factor=0.18215,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return TextEditPipeline(vae.to(dtype).eval(), None, None, unet.to(dtype).eval(), scheduler)


class Edit:
    """One edit of one picture, ready to run in parts or as a whole."""

    def __init__(self, pipeline, steps: int, device: str, dtype: torch.dtype):
        from likeness.pipelines.spl import StructureSettings
        from likeness.pipelines.spl.edit_pipeline import EditSettings
        from likeness.pipelines.spl.prompts import read_prompt

        self.pipeline, self.settings = pipeline, EditSettings(steps=steps)
        self.structure = StructureSettings(color_weight=0)
        known = ["a", "portrait", "of", "person", "golden", "in", "light"]
        words = {word: 100 + place for place, word in enumerate(known)}
        prompts = []
        for text in ("a portrait of a person in light", "a portrait of a person in golden light"):
            ids = [1, *[words[word] for word in text.split()], 2]
            prompts.append(read_prompt(text, ids + [2] * (77 - len(ids)), len(ids) - 1, lambda word: [words[word]]))
        embedded = {"prompt": torch.randn(3, 77, 768, device=device, dtype=dtype)}
        self.source = torch.rand(1, 3, SIZE, SIZE, device=device)
        self.clean = pipeline.encode(self.source)
        self.plan = pipeline.plan(self.settings, embedded, *prompts, tuple(self.clean.shape[-2:]))

    def guidance(self):
        from likeness.pipelines.spl.guidance import StructureGuidance

        return StructureGuidance(self.pipeline.decode(self.clean), self.plan.sigmas, self.structure)

    @torch.no_grad()
    def run(self, preserved: bool):
        """A whole edit."""
        from likeness.pipelines.spl import preserve_structure

        guidance = self.guidance() if preserved else None
        noise = torch.randn(self.settings.steps, *self.clean.shape, device=self.clean.device)
        picture = self.pipeline.decode(self.pipeline.edit(self.clean, self.plan, self.settings, guidance, noise=noise))
        return preserve_structure(picture, self.source, None, self.structure) if preserved else picture


def seconds(action, device: str, repeats: int) -> float:
    """Median time of ``action``, after one run that does not count."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        action()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


@torch.no_grad()
def in_parts(edit: Edit) -> tuple[float, float]:
    """(plain edit, edit with structure preserved) in seconds, from the time of each part on the CPU."""
    from likeness.pipelines.spl import preserve_structure
    from likeness.pipelines.spl.guidance import first_refined_step

    steps, pipeline = edit.settings.steps, edit.pipeline
    guidance = edit.guidance()
    noisy = [torch.randn_like(edit.clean)] * 2
    step = seconds(lambda: edit.plan.model.denoise(0, noisy), "cpu", 1)
    # The last step refines anew at every evaluation.
    refinement = seconds(
        lambda: guidance.refine(edit.clean, edit.plan.sigmas[-2], pipeline.decode, pipeline.encode), "cpu", 1
    )
    decoding = seconds(lambda: pipeline.decode(edit.clean), "cpu", 1)
    final = seconds(lambda: preserve_structure(edit.source.flip(-1), edit.source, None, edit.structure), "cpu", 1)
    plain = steps * step + decoding
    refined_steps = steps - first_refined_step(steps, 0.8)
    print(f"step {step:.2f} s, refinement {refinement:.2f} s, decoding {decoding:.2f} s, final {final:.2f} s")
    return plain, plain + refined_steps * refinement + decoding + final


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--readme", action="store_true", help="write the result into README.md")
    options = parser.parse_args()
    load_pack()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[options.precision]
    edit = Edit(random_pipeline(options.device, dtype), options.steps, options.device, dtype)
    if options.device == "cpu":
        plain, preserved, how = *in_parts(edit), "sum of the parts' times"
    else:
        plain, preserved = (seconds(lambda kept=kept: edit.run(kept), options.device, 3) for kept in (False, True))
        how = "whole edits, median of 3"
    report = (
        f"{options.device}, {options.precision}, {SIZE}x{SIZE}, {options.steps} steps, random weights of SD1.5's size "
        f"({how}): plain edit {plain:.1f} s, with structure preservation {preserved:.1f} s: "
        f"{preserved / plain - 1:.2f}x of the plain edit's time on top (the paper's: 1.0x)."
    )
    print(report)
    if options.readme:
        write_into_readme("text-edit", report)


if __name__ == "__main__":
    main()
