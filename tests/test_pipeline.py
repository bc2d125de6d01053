"""The diffusers pipeline from photo and prompt to picture, on tiny models, and its bad input."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from likeness.pipelines.spl import StructureSettings, structure_loss
from likeness.pipelines.spl.guidance import StructureGuidance
from likeness.pipelines.spl.pipeline import StructureGuidedImg2ImgPipeline

FAST = StructureSettings(iterations=20, color_weight=0)


class Words:
    """Stands in for a tokenizer: a token is the length of a word."""

    model_max_length = 8

    def __call__(self, texts, **options):
        rows = [([len(word) for word in text.split()] + [0] * 8)[:8] for text in texts]
        return SimpleNamespace(input_ids=torch.tensor(rows))


class Embedding(torch.nn.Module):
    """Stands in for a text encoder."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(32, 16)

    def forward(self, tokens):
        return (self.table(tokens),)


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=8, cross_attention_dim=16,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return StructureGuidedImg2ImgPipeline(vae, Embedding(), Words(), unet, EulerDiscreteScheduler())


def edit(pipeline, photo, **options):
    defaults = {"prompt": "golden light", "steps": 4, "settings": FAST, "generator": torch.Generator().manual_seed(1)}
    return pipeline(photo, **{**defaults, **options})


def photo(height=64, width=64, batch=1):
    x = torch.linspace(0, 12, width).sin().expand(batch, 3, height, width)
    return (0.5 + 0.4 * x * torch.linspace(0.2, 1, height)[:, None]).clone()


def test_guidance_and_refinement_keep_structure(pipeline):
    plain = edit(pipeline, photo(), settings=None)
    guided = edit(pipeline, photo(), refine=False)
    refined = edit(pipeline, photo())
    assert not torch.equal(plain, guided)
    assert structure_loss(refined, photo()) < 0.6 * structure_loss(plain, photo())
    assert torch.equal(refined, edit(pipeline, photo()))


def test_image_and_mask_are_cropped_alike_around_the_centre(pipeline):
    mask = torch.zeros(1, 71, 79)
    mask[:, :35] = 1
    source = photo(71, 79)
    cropped = edit(pipeline, source[..., 3:67, 3:75], mask=mask[:, 3:67, 3:75])
    assert cropped.shape == (1, 3, 64, 72)
    assert torch.equal(edit(pipeline, source, mask=mask), cropped)


def test_batches_prompts_and_progress(pipeline):
    seen = []
    result = edit(pipeline, photo(batch=2), prompt=["one", "two words"], on_step=lambda *step: seen.append(step))
    assert result.shape == (2, 3, 64, 64)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength is 0.0: use a fraction"),
        ({"steps": 0}, "steps is 0: use at least 1"),
        ({"start": 1.5}, "start is 1.5"),
        ({"prompt": ["a", "b", "c"]}, "3 prompts for 1 images"),
        ({"mask": torch.ones(1, 64, 99)}, "mask is 99x64, image is 64x64"),
        ({"settings": StructureSettings(radius=40)}, "cropped image is 64x64 pixels, smaller than the window of 81"),
    ],
)
def test_bad_input_is_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        edit(pipeline, photo(), **options)


def test_an_image_below_one_latent_cell_is_refused(pipeline):
    with pytest.raises(ValueError, match="image is 7x7 pixels, smaller than"):
        edit(pipeline, photo(7, 7))


def test_another_scheduler_is_refused(pipeline):
    with pytest.raises(TypeError, match="DDIMScheduler: use EulerDiscreteScheduler"):
        StructureGuidedImg2ImgPipeline(pipeline.vae, None, None, pipeline.unet, DDIMScheduler())


def test_where_a_mask_looks_black_no_correction_is_made():
    """Guided filters leave tails of a thousandth all over the picture, which must not send it through the VAE."""
    mask = torch.full((1, 1, 32, 48), 0.004)
    mask[..., :24] = 0.7
    guidance = StructureGuidance(
        torch.rand(1, 3, 32, 48), [2.0, 1.0, 0.0], StructureSettings(iterations=5, radius=2), 0.0, mask
    )
    x0 = torch.rand(1, 3, 4, 6)
    refined = guidance.refine(
        x0, 1.0, lambda latent: latent.repeat_interleave(8, 2).repeat_interleave(8, 3),
        lambda image: torch.nn.functional.avg_pool2d(image, 8) + 0.1,
    )  # fmt: skip
    assert torch.equal(refined[..., 3:], x0[..., 3:]) and (refined[..., :3] - x0[..., :3]).abs().min() > 0.01
