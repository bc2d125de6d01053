"""IDetail's mathematics against slow independent versions: losses, channels, file format, pairs, prompts."""

import math

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel
from likeness.pipelines.idetail.adapter import (
    apply_adapter,
    conv_in_change,
    conv_in_tensors,
    read_adapter,
    split_adapter,
    train_conv_in,
)
from likeness.pipelines.idetail.conditioning import (
    ORDERS,
    STAGE_ONE_INPUTS,
    latent_mask,
    relight_input,
    slots,
    stage_one_input,
)
from likeness.pipelines.idetail.losses import (
    LossWeights,
    background_loss,
    estimate_clean,
    foreground_loss,
    identity_loss,
    noise_loss,
    noise_of,
    relight_losses,
)
from likeness.pipelines.idetail.pipeline import RelightPipeline
from likeness.pipelines.idetail.prompts import (
    EFFECTS,
    INPUT_PROMPTS,
    TARGET_PROMPTS,
    UNSEEN_PROMPTS,
    relight_prompt,
)
from likeness.pipelines.idetail.takes import INPUT, ORIGINAL, TARGET, Take, pairs_of
from likeness.pipelines.training.lora import add_lora, kohya_tensors, save_lora, target_layers
from tiny_base import PARTS, make_pipeline
from tiny_base import unet as unet_of

SHAPE = (3, 4, 5, 6)


@pytest.fixture
def latents():
    draw = torch.Generator().manual_seed(0)
    clean, source, target, noise, estimate = (torch.randn(SHAPE, generator=draw) * 1.5 for _ in range(5))
    return clean, source, target, noise, estimate, torch.rand((3, 1, 5, 6), generator=draw)


def cells(shape=SHAPE):
    return [(c, y, x) for c in range(shape[1]) for y in range(shape[2]) for x in range(shape[3])]


# ---- losses, element by element in Python's own numbers


def test_the_identity_loss_is_the_cosine_with_the_input_of_each_sample(latents):
    clean, source, _, _, _, mask = latents
    expected = []
    for b in range(3):
        one = [float(mask[b, 0, y, x]) * float(clean[b, c, y, x]) for c, y, x in cells()]
        other = [float(mask[b, 0, y, x]) * float(source[b, c, y, x]) for c, y, x in cells()]
        dot = sum(p * q for p, q in zip(one, other, strict=True))
        expected.append(1 - dot / math.sqrt(sum(p * p for p in one)) / math.sqrt(sum(q * q for q in other)))
    assert identity_loss(clean, source, mask).item() == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert identity_loss(3 * clean, source, mask).item() == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_a_picture_without_foreground_costs_no_identity_and_gives_no_nan(latents):
    clean, source, _, _, _, mask = latents
    clean.requires_grad_(True)
    mask[1] = 0
    loss = identity_loss(clean, source, mask)
    loss.backward()
    rest = [identity_loss(clean[[b]], source[[b]], mask[[b]]).item() for b in (0, 2)]
    assert loss.item() == pytest.approx(sum(rest) / 3, abs=1e-6)
    assert torch.isfinite(clean.grad).all() and not clean.grad[1].any()


def test_foreground_and_background_losses_element_by_element(latents):
    clean, _, target, _, _, mask = latents
    front, back = 0.0, 0.0
    for b in range(3):
        for c, y, x in cells():
            weight = float(mask[b, 0, y, x])
            error = abs(weight * float(clean[b, c, y, x]) - weight * float(target[b, c, y, x]))
            front += error**2 / 2 if error < 1 else error - 0.5
            back += abs((1 - weight) * (float(clean[b, c, y, x]) - float(target[b, c, y, x])))
    count = clean.numel()
    assert foreground_loss(clean, target, mask).item() == pytest.approx(front / count, abs=1e-5)
    assert background_loss(clean, target, mask).item() == pytest.approx(back / count, abs=1e-5)


def test_the_sum_has_the_papers_weights_and_a_weight_of_zero_leaves_its_loss_out(latents):
    clean, source, target, noise, estimate, mask = latents
    losses = relight_losses(estimate, noise, clean, source, target, mask, LossWeights())
    expected = (identity_loss(clean, source, mask) + 10 * foreground_loss(clean, target, mask)
                + 0.2 * background_loss(clean, target, mask) + 0.5 * noise_loss(estimate, noise))  # fmt: skip
    torch.testing.assert_close(sum(losses.values()), expected)
    less = relight_losses(estimate, noise, clean, source, target, mask, LossWeights(foreground=0))
    assert set(losses) - set(less) == {"foreground"}


def test_weighing_by_signal_is_a_factor_of_each_sample(latents):
    clean, source, target, noise, estimate, mask = latents
    weigh = torch.tensor([0.5, 0.0, 2.0])
    whole = relight_losses(estimate, noise, clean, source, target, mask, LossWeights(), weigh)
    for name in ("identity", "foreground", "background"):
        each = [relight_losses(*(x[[b]] for x in (estimate, noise, clean, source, target, mask)), LossWeights())[name]
                for b in range(3)]  # fmt: skip
        assert whole[name].item() == pytest.approx((0.5 * each[0] + 2 * each[2]).item() / 3, abs=1e-5)


def test_the_clean_estimate_inverts_the_noising(latents):
    clean, _, _, noise, _, _ = latents
    signal = torch.tensor([0.99, 0.5, 0.0047])
    noisy = signal.reshape(3, 1, 1, 1).sqrt() * clean + (1 - signal).reshape(3, 1, 1, 1).sqrt() * noise
    torch.testing.assert_close(estimate_clean(noisy, noise, signal), clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_noise_that_an_output_means(kind, latents):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    clean, _, _, noise, _, _ = latents
    steps = torch.tensor([10, 500, 990])
    noisy = scheduler.add_noise(clean, noise, steps)
    output = noise if kind == "epsilon" else scheduler.get_velocity(clean, noise, steps)
    torch.testing.assert_close(noise_of(output, noisy, steps, scheduler), noise, rtol=1e-4, atol=1e-4)


# ---- channels


def test_channels_lie_where_the_order_says(latents):
    noisy, source, _, _, _, mask = latents
    given = relight_input(noisy, mask, source)
    assert torch.equal(given[:, :4], noisy) and torch.equal(given[:, 4:5], mask) and torch.equal(given[:, 5:], source)
    other = relight_input(noisy, mask, source, ORDERS[1])
    for order, made in zip(ORDERS, (given, other), strict=True):
        for part, wanted in (("noisy", noisy), ("mask", mask), ("source", source)):
            assert torch.equal(made[:, slots(order)[part]], wanted)
    with pytest.raises(ValueError, match="channel order is 'mask,noisy'"):
        relight_input(noisy, mask, source, "mask,noisy")


def test_stage_one_shows_the_clean_latent_or_literally_only_the_noisy_one(latents):
    noisy, source, *_ = latents
    given = stage_one_input(noisy, source, ORDERS[0], STAGE_ONE_INPUTS[0])
    assert torch.equal(given, relight_input(noisy, torch.zeros(3, 1, 5, 6), source))
    literal = stage_one_input(noisy, source, ORDERS[1], "literal")
    assert torch.equal(literal[:, :4], noisy) and not literal[:, 4:].any()


def test_a_mask_shrinks_to_the_mean_of_its_cells():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:16] = 1
    small = latent_mask(mask, (4, 4))
    assert small.shape == (1, 1, 4, 4)
    assert small.mean().item() == pytest.approx(mask.mean().item(), abs=0.02)
    assert small[0, 0, 1, 1] > 0.6 > small[0, 0, 0, 0]
    thin = torch.zeros(1, 1, 32, 64)
    thin[..., 3::8] = thin[..., 4::8] = 1  # strands of hair in the middle of each cell, a quarter of it
    torch.testing.assert_close(latent_mask(thin, (4, 8))[..., 1:-1], torch.full((1, 1, 4, 6), 0.25))


# ---- the file


@pytest.fixture(params=["sd1", "sdxl"])
def unet(request):
    torch.manual_seed(1)
    added = {} if request.param == "sd1" else {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True,
        "projection_class_embeddings_input_dim": 72, "transformer_layers_per_block": (1, 2),
    }  # fmt: skip
    return UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **added,
    ).eval()  # fmt: skip


def predict(unet, x):
    added = None
    if unet.config.addition_embed_type:
        added = {"text_embeds": torch.ones(len(x), 24), "time_ids": torch.ones(len(x), 6)}
    context = torch.randn((len(x), 7, 16), generator=torch.Generator().manual_seed(5))
    return unet(x, torch.tensor(300), context, added_cond_kwargs=added).sample


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_a_widened_network_starts_as_the_base_model_and_blind_to_the_photo(unet, order, latents):
    noisy, source = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    before = predict(unet, noisy)
    train_conv_in(unet, order)
    given = relight_input(noisy, torch.rand(2, 1, 8, 8), source, order)
    torch.testing.assert_close(predict(unet, given), before, rtol=1e-5, atol=1e-5)
    assert unet.config.in_channels == 9


def trained(unet, tmp_path, order=ORDERS[0]):
    """A random adapter for ``unet``: its file, and what the network with live adapters predicts for ``x``."""
    train_conv_in(unet, order)
    add_lora(unet, "idetail", 4, 4.0, seed=0)
    draw = torch.Generator().manual_seed(3)
    weights = {}
    for name, value in unet.named_parameters():
        if ".lora." in name or "change" in name:
            value.data = value.data + 0.1 * torch.randn(value.shape, generator=draw)
            weights[name] = value.detach()
    lora = {name: value for name, value in weights.items() if ".lora." in name}
    first = conv_in_tensors(weights["conv_in.change"], weights["conv_in.bias_change"])
    path = tmp_path / "relight.safetensors"
    save_lora(path, {**first, **kohya_tensors(lora, 4.0, torch.float32)}, {"likeness_idetail_channels": order})
    return path


@torch.no_grad()
def test_the_file_merged_into_the_base_is_the_network_that_was_trained(unet, tmp_path):
    base = UNet2DConditionModel.from_config(unet.config)
    base.load_state_dict(unet.state_dict())
    path = trained(unet, tmp_path)
    x = torch.randn(2, 9, 8, 8, generator=torch.Generator().manual_seed(4))
    assert apply_adapter(base.eval(), path) == ORDERS[0]
    torch.testing.assert_close(predict(base, x), predict(unet, x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_first_convolution_comes_back_exactly(unet, tmp_path):
    base = unet.conv_in
    draw = torch.Generator().manual_seed(3)
    change, bias = torch.randn((32, 9, 3, 3), generator=draw), torch.randn(32, generator=draw)
    again, bias_again = conv_in_change(conv_in_tensors(change, bias), base)
    assert torch.equal(again, change) and torch.equal(bias_again, bias)
    with pytest.raises(ValueError, match=r"\(32, 9, 3, 3\), this model's would be \(16, 9, 3, 3\)"):
        conv_in_change(conv_in_tensors(change, bias), torch.nn.Conv2d(4, 16, 3))


def test_a_split_file_is_the_whole_file(unet, tmp_path):
    tensors, order = read_adapter(trained(unet, tmp_path))
    first, rest = split_adapter(tensors)
    assert order == ORDERS[0] and {**first, **rest} == tensors and first and rest
    assert all(name.startswith("lora_unet_conv_in.") for name in first)


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    save_lora(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="does not say the order of its channels"):
        read_adapter(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        read_adapter(path)


# ---- the paper's numbers


def test_parameter_counts_are_the_papers():
    """KOALA-1B at ranks 16, 32, 64, 128: 21.7, 43.4, 86.9, 173.7 million (section 5, table 3)."""
    with torch.device("meta"):
        koala = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280), layers_per_block=1, cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 6), use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
        names = target_layers(koala, "idetail")
        add_lora(koala, "idetail", 32, 32.0, seed=0)
    count = sum(value.numel() for name, value in koala.named_parameters() if ".lora." in name)
    assert len(names) == len(set(names)) and count == 32 * 1357120
    assert [round(rank * count / 32 / 1e6, 1) for rank in (16, 32, 64, 128)] == [21.7, 43.4, 86.9, 173.7]


def take(place, person, role):
    return Take(place, f"take {place}", person, role, "", (128, 128))


def test_pairs_are_every_input_with_every_target_of_one_person():
    """Section 3: 60 x 7 = 420 ordered pairs a person; 1024 people have 430,080."""
    takes = [take(0, "a", ORIGINAL), *(take(1 + n, "a", INPUT) for n in range(60)),
             *(take(61 + n, "a", TARGET) for n in range(7))]  # fmt: skip
    pairs = pairs_of(takes, "outputs")
    assert len(set(pairs)) == 420 and 420 * 1024 == 430080
    assert {(given.role, wanted.role) for given, wanted in pairs} == {(INPUT, TARGET)}
    direct = pairs_of(takes, "direct")
    assert [(given.place, wanted.role) for given, wanted in direct] == [(0, TARGET)] * 7
    with pytest.raises(ValueError, match="pairing is 'both'"):
        pairs_of(takes, "both")


def test_prompts():
    assert (len(TARGET_PROMPTS), len(UNSEEN_PROMPTS), len(INPUT_PROMPTS)) == (7, 8, 60)
    names = [prompt.name for prompt in (*EFFECTS.values(), *INPUT_PROMPTS)]
    assert len(set(names)) == 75
    assert all("<c>" in prompt.caption() and "{}" not in prompt.caption() for prompt in INPUT_PROMPTS)
    assert relight_prompt("window grill") == "a photo of a <c> with dramatic window grill shadow on the face"
    assert relight_prompt("", 2, "at dawn ") == "a <c> and a <c>, at dawn"
    with pytest.raises(ValueError, match="effect is 'disco'"):
        relight_prompt("disco")
    with pytest.raises(ValueError, match="number of people is 0"):
        relight_prompt("", 0)


# ---- sampling, against diffusers' own inpainting pipeline


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_relighting_samples_as_diffusers_own_nine_channel_pipeline(family, tmp_path):
    """The two share the channels' order; a mask without edges is the same at both ways of shrinking it."""
    stock = make_pipeline(family, tmp_path)
    context, linear = stock.unet.config.cross_attention_dim, stock.unet.config.use_linear_projection
    torch.manual_seed(1)
    parts = {name: part for name, part in stock.components.items() if name in PARTS}
    parts["unet"] = unet_of(context, use_linear_projection=linear, in_channels=9).eval()
    ours = RelightPipeline(**parts, scheduler=stock.scheduler)
    draw = torch.Generator().manual_seed(0)
    picture, mask = torch.rand((2, 3, 16, 24), generator=draw), torch.ones(2, 16, 24)
    noise = torch.randn((2, 4, 8, 12), generator=draw)
    texts = {"prompt": ["a b c", "d"], "guidance_scale": 4.0}
    relit = ours(picture, mask=mask, negative_prompt="n o", steps=4, noise=noise, **texts)

    theirs = StableDiffusionInpaintPipeline(
        **parts, scheduler=stock.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        image=picture, mask_image=mask[:, None], masked_image_latents=ours.encode(picture), height=16, width=24,
        negative_prompt=["n o"] * 2, num_inference_steps=4, latents=noise, output_type="pt", **texts,
    ).images  # fmt: skip
    assert expected.std() > 0.02
    torch.testing.assert_close(relit, expected, atol=1e-4, rtol=0)
