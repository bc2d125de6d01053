"""The text edit pipeline on tiny models: against an editor written with explicit maps, and its promises."""

import math
from copy import deepcopy

import pytest
import torch
from likeness.pipelines.spl import StructureSettings, edit_pipeline, structure_loss
from likeness.pipelines.spl.attention_control import AttentionControl, AttentionSettings
from likeness.pipelines.spl.edit_pipeline import EditSettings
from likeness.pipelines.spl.prompts import alignment
from likeness.pipelines.spl.unet_control import _map_size
from likeness.pipelines.spl.word_masks import edge_mask, words_mask
from test_pipeline import photo
from tiny_base import make_edit_pipeline

PROMPTS = ("a b c d", "a x b d")
FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    return {family: make_edit_pipeline(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def edit(pipeline, image, prompts=PROMPTS, **options):
    fast = {name: options.pop(name) for name in list(options) if name in EditSettings.__dataclass_fields__}
    settings = EditSettings(**{"steps": 4, **fast})
    return pipeline(image, *prompts, settings=settings, generator=seeded(), **options)


class SlowAttention:
    """All three branches of InfEdit with materialised maps, row by row (notes 2.9), as the authors lay them out."""

    def __init__(self, control, step, steps, mapper, from_layout, maps=None):
        self.c, self.p = control.settings, (step + 1) / steps
        self.mapper, self.from_layout, self.maps = mapper, from_layout, maps

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **unused):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (to(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                   for to, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context)))  # fmt: skip
        batch = len(q) // 6
        rows = {(half, branch, i): (half * 3 + branch) * batch + i
                for half in range(2) for branch in range(3) for i in range(batch)}  # fmt: skip
        out = torch.empty_like(q)
        for (half, branch, i), row in rows.items():
            source, target, layout = (rows[half, b, i] for b in range(3))
            if encoder_hidden_states is None:
                if self.c.self_fraction > self.p:
                    weights = softmax(q[source], k[source])
                else:
                    queries, keys = {source: (source, source), target: (target, target), layout: (target, source)}[row]
                    weights = softmax(q[queries], k[keys])
                values = v[target if row == target else source]
            else:
                weights, values = softmax(q[row], k[row]).clone(), v[row]
                if self.maps is not None and half == 1 and branch < 2 and row != layout:
                    self.maps.setdefault((branch, i), []).append(weights.mean(dim=0))
                if half == 1 and row == target and self.c.cross_fraction >= self.p:
                    giver = layout if self.from_layout else source
                    theirs = softmax(q[giver], k[giver])
                    for j, place in enumerate(self.mapper):
                        if place >= 0:
                            weights[..., j] = theirs[..., place]
            out[row] = weights @ values
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def softmax(q, k):
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)


def planned(pipeline, settings, latent=(12, 16)):
    image = torch.zeros(1, 4, *latent)
    return pipeline.plan_of_texts(settings, *PROMPTS, "e", image)


def slow_denoise(pipeline, plan, step, latents, guidance, processor):
    """Guided clean predictions of three branches with all six rows an image, whatever is needed of them."""
    unet, level = pipeline.unet, plan.levels[step]
    before = unet.attn_processors
    unet.set_attn_processor(processor)
    rows = [0, 0, 0, 1, 2, 1]
    batch = len(latents[0])
    prompts = {name: each[rows].repeat_interleave(batch, 0) for name, each in plan.model.prompts.items()}
    more = {}
    if "pooled" in prompts:
        height, width = (side * pipeline.vae_cell for side in latents[0].shape[-2:])
        ids = torch.tensor([[height, width, 0, 0, height, width]]).float().repeat(6 * batch, 1)
        more = {"added_cond_kwargs": {"text_embeds": prompts["pooled"], "time_ids": ids}}
    x = torch.cat(latents * 2)
    output = unet(x, plan.model.timesteps[step], encoder_hidden_states=prompts["prompt"], **more).sample
    unet.set_attn_processor(before)
    if pipeline.scheduler.config.prediction_type == "v_prediction":
        eps = level.signal * output + level.noise * x
    else:
        eps = output
    blank, text = eps.chunk(2)
    eps = [b + w * (t - b) for b, t, w in zip(blank.chunk(3), text.chunk(3), guidance, strict=True)]
    return [(x - level.noise * e) / level.signal for x, e in zip(latents, eps, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("layout", [False, True])
@torch.no_grad()
def test_control_equals_three_branches_with_explicit_maps(pipelines, family, step, layout):
    """Also: leaving the layout branch out changes nothing where the maps come from the source."""
    pipeline = pipelines[family]
    attention = AttentionSettings(layout_branch=layout, self_fraction=0.6)
    plan = planned(pipeline, EditSettings(steps=4, attention=attention))
    latents = [torch.randn(2, 4, 12, 16, generator=seeded(seed)) for seed in range(3)]
    processor = SlowAttention(plan.model.run.control, step, 4, alignment(plan.source, plan.target), layout)
    slow = slow_denoise(pipeline, plan, step, latents, (1.0, 2.0, 1.0), processor)
    ours = plan.model.denoise(step, latents[: attention.branches])
    uncontrolled = AttentionSettings(cross_fraction=0, self_fraction=0)
    plain = planned(pipeline, EditSettings(steps=4, attention=uncontrolled)).model.denoise(step, latents[:2])
    for mine, theirs in zip(ours, slow, strict=False):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert step == 3 or (ours[1] - plain[1]).abs().max() > 1e-2
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", [AttentionSettings(), AttentionSettings(layout_branch=True),
                                       AttentionSettings(method="replace")])  # fmt: skip
def test_the_same_prompt_gives_the_picture_back(pipelines, family, attention):
    """In float64: random weights blow rounding up, and by how much depends on the processor."""
    pipeline, image = deepcopy(pipelines[family]).to(torch.float64), photo(32, 48).double()
    options = {"source_guidance": 2.0, "attention": attention}
    same = edit(pipeline, image, ("a b c", "a b c"), **options)
    other = edit(pipeline, image, ("a b c", "a x y"), **options)
    expected = pipeline.decode(pipeline.encode(image)).detach()
    torch.testing.assert_close(same, expected, rtol=0, atol=1e-4)
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "method"), [("sd1", "refine"), ("sd2", "replace")])
@torch.no_grad()
def test_ddim_inversion_gives_the_latent_back_and_edits(pipelines, family, method):
    pipeline, latent = pipelines[family], torch.randn(1, 4, 16, 16, generator=seeded())
    # Random weights are no smooth field of noise: only small steps can be inverted.
    settings = EditSettings(
        backbone="ddim inversion", steps=3, strength=0.02, target_guidance=1.0, inversion_iterations=12,
        attention=AttentionSettings(method=method),
    )  # fmt: skip
    same, other = (
        pipeline.edit(latent, pipeline.plan_of_texts(settings, *prompts, "e", latent), settings)
        for prompts in (("a b c", "a b c"), ("a b c", "a x c"))
    )
    torch.testing.assert_close(same, latent, rtol=0, atol=2e-4)
    assert (other - latent).abs().max() > 2e-3


def test_a_batch_is_its_pictures_one_by_one(pipelines):
    pipeline = pipelines["sd1"]
    images = torch.cat([photo(32, 48), photo(32, 48).flip(-1)])
    settings = EditSettings(steps=3)
    clean = pipeline.encode(images).detach()
    noise = torch.randn(3, *clean.shape, generator=seeded())
    with torch.no_grad():
        together = pipeline.edit(clean, planned(pipeline, settings, (16, 24)), settings, noise=noise)
        for i in range(2):
            one = slice(i, i + 1)
            alone = pipeline.edit(clean[one], planned(pipeline, settings, (16, 24)), settings, noise=noise[:, one])
            torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-4)


def test_structure_is_kept_inside_the_mask(pipelines):
    pipeline, image = pipelines["sd1"], photo(64, 64)
    structure = StructureSettings(iterations=30, color_weight=0)
    plain = edit(pipeline, image)
    guided = edit(pipeline, image, structure=structure, refine=False, start=0.5)
    refined = edit(pipeline, image, structure=structure)
    assert structure_loss(guided, image) < structure_loss(plain, image)
    assert structure_loss(refined, image) < 0.6 * structure_loss(plain, image)
    nowhere = torch.zeros(1, 64, 64)
    torch.testing.assert_close(edit(pipeline, image, structure=structure, mask=nowhere), plain)
    left = nowhere.clone()
    left[..., :32] = 1
    masked = edit(pipeline, image, structure=structure, mask=left)
    lost = [structure_loss(x[..., :32], image[..., :32]) for x in (masked, plain)]
    assert lost[0] < 0.6 * lost[1]


class Stop(Exception):
    pass


def test_a_run_that_is_stopped_leaves_the_model_as_it_was(pipelines):
    pipeline = pipelines["sd1"]
    before = pipeline.unet.attn_processors
    seen = []

    def stop_at_two(done, total):
        seen.append((done, total))
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        edit(pipeline, photo(32, 32), on_step=stop_at_two)
    assert seen == [(1, 4), (2, 4)]
    after = pipeline.unet.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


@torch.no_grad()
@pytest.mark.parametrize("latent", [(16, 24), (9, 7), (13, 8), (65, 101)], ids=str)
def test_maps_have_the_size_that_convolutions_leave_of_a_latent(latent):
    x, halve = torch.zeros(1, 1, *latent), torch.nn.Conv2d(1, 1, 3, stride=2, padding=1)
    for _ in range(4):
        assert _map_size(x[0, 0].numel(), latent) == tuple(x.shape[-2:])
        x = halve(x)


def test_word_mask_comes_from_the_branches_maps(pipelines, monkeypatch):
    pipeline, image = pipelines["sd1"], photo(32, 48)
    settings = EditSettings(steps=1, attention=AttentionSettings(cross_fraction=0))
    noise = torch.randn(1, 4, 16, 24, generator=seeded())
    plan = planned(pipeline, settings, (16, 24))
    clean, maps = pipeline.encode(image), {}
    start = plan.levels[0].signal * clean + plan.levels[0].noise * noise
    slow = SlowAttention(plan.model.run.control, 0, 1, [], False, maps)
    slow_denoise(pipeline, plan, 0, [start] * 3, (1, 2, 1), slow)
    # The tiny UNet attends at 8x12 cells only.
    average = torch.stack([torch.stack(maps[branch, 0]).mean(dim=0) for branch in range(2)])
    average = average.transpose(1, 2).unflatten(-1, (8, 12))
    seen = []
    monkeypatch.setattr(edit_pipeline, "edge_mask", lambda sides, upsampling: seen.append(sides) or edge_mask(sides))
    words = {"source_words": ["c"], "target_words": ["x", "d"], "threshold": 0.9}
    options = {**words, "negative_prompt": "e", "settings": settings}
    mask = pipeline.word_mask(image, *PROMPTS, **options, generator=seeded())
    (source, first_guide), (target, second_guide) = seen[0]
    assert torch.equal(source, words_mask(average[:1], plan.source, ["c"], 0.9))
    assert torch.equal(target, words_mask(average[1:], plan.target, ["x", "d"], 0.9))
    assert torch.equal(first_guide, image)
    assert not torch.equal(second_guide, image)
    assert mask.shape == (1, 32, 48)
    outside = pipeline.word_mask(image, *PROMPTS, **options, outside=True, generator=seeded())
    assert torch.equal(outside, 1 - mask)


def test_tokens_of_real_tokenizers(pipelines):
    read = pipelines["sdxl"].read_prompt("ab c, d")
    assert read.positions("c") == [3]
    assert read.positions("ab") == [1, 2]
    assert (len(read.ids), read.length) == (7, 77)
    assert AttentionControl(AttentionSettings(), read, read).cross.own.max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "magic"}, "backbone is 'magic'"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 51}, "steps is 51 at strength 1.0, a schedule of 51: virtual inversion has 50"),
        ({"steps": 15, "strength": 0.29}, "steps is 15 at strength 0.29, a schedule of 51"),
        ({"strength": 0.0}, "strength 0.0"),
        ({"eta": 2.0}, "eta is 2.0"),
        ({"prompts": (["a"], "b")}, "source prompt is .'a'.: give one text"),
        ({"prompts": ("a b", "a b c"), "attention": AttentionSettings(method="replace")}, "has 2 words and .* 3"),
        ({"attention": AttentionSettings(word_weights={"z": 2})}, "'z' is not in the prompt. Its words are: a, x, b"),
        ({"backbone": "ddim inversion", "attention": AttentionSettings(layout_branch=True)}, "layout_branch belongs"),
        ({"mask": torch.ones(1, 64, 99)}, "mask is 99x64, image is 32x32"),
    ],
)
def test_bad_input_is_refused(pipelines, options, message):
    with pytest.raises(ValueError, match=message):
        edit(pipelines["sd1"], photo(32, 32), **options)


def test_words_that_are_missing_are_named(pipelines):
    arguments = (photo(32, 32), *PROMPTS)
    with pytest.raises(ValueError, match="'q' is not in the prompt. Its words are: a, b, c, d"):
        pipelines["sd1"].word_mask(*arguments, ["q"])
    with pytest.raises(ValueError, match="no words are given"):
        pipelines["sd1"].word_mask(*arguments)


def test_foreign_attention_processors_are_refused(pipelines):
    pipeline = pipelines["sd1"]
    before = pipeline.unet.attn_processors
    try:
        pipeline.unet.set_attn_processor(SlowAttention(AttentionControl(AttentionSettings(), *[pipeline.read_prompt(
            "a")] * 2), 0, 1, [], False))  # fmt: skip
        with pytest.raises(ValueError, match="processors of the kind SlowAttention"):
            edit(pipeline, photo(32, 32))
    finally:
        pipeline.unet.set_attn_processor(before)
