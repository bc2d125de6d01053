"""The photo generator: what its ControlNets see, its sampling against diffusers' own parts, its files, its errors."""

import math
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from likeness.pipelines.faces import BackendSettings, load_backend
from likeness.pipelines.idetail.controls import canny_edges, draw_points, fitted
from likeness.pipelines.idetail.instantid import Control, InstantId, InstantIdSettings, subject_of
from likeness.pipelines.idetail.instantid_models import load_face_backend, load_instantid, needed_files
from likeness.pipelines.image_prompt import ImageAttention, ImagePromptAdapter, Resampler, image_prompt
from likeness.pipelines.images import to_uint8
from likeness.pipelines.weights.manifest import named
from tiny_instantid import write_models

FAST = InstantIdSettings(steps=2, max_side=64)
POINTS = torch.tensor([[40.3, 50.7], [88.0, 47.2], [66.6, 74.1], [46.9, 96.5], [84.2, 94.0]])


@pytest.fixture(scope="module")
def models(tmp_path_factory, one_thread):
    """(the models folder, the base model's own)."""
    folder = tmp_path_factory.mktemp("models")
    return folder, write_models(folder)


@pytest.fixture(scope="module")
def backend(models):
    return load_face_backend(models[0])


@pytest.fixture(scope="module")
def generator(models):
    return load_instantid(models[0], FAST, "cpu", models[1])


def photo(height=96, width=96, seed=0):
    draw = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 6, 6, generator=draw)
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)


# --- what the ControlNets see


def test_face_points_are_drawn_as_identitynet_learnt_them():
    """InstantID fills polygons with OpenCV; ours may differ where a pixel is half inside."""
    points, colors = POINTS.numpy(), [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    drawn = np.zeros((128, 144, 3), np.uint8)
    for number in (0, 1, 3, 4):
        (x, y), (dx, dy) = (points[number] + points[2]) / 2, points[number] - points[2]
        axes, angle = (int(math.hypot(dx, dy) / 2), 4), int(math.degrees(math.atan2(dy, dx)))
        color = tuple(level * 0.6 for level in colors[number])
        cv2.ellipse(drawn, (int(x), int(y)), axes, angle, 0, 360, color, -1)
    for (x, y), color in zip(points, colors, strict=True):
        cv2.circle(drawn, (int(x), int(y)), 10, color, -1)
    ours = to_uint8(draw_points(POINTS, (128, 144)))
    covered = (drawn.any(-1) | ours.any(-1)).sum()
    assert (np.abs(ours.astype(int) - drawn).max(-1) > 2).sum() < 0.06 * covered
    assert covered > 2000


def test_edges_are_opencvs_of_the_picture():
    picture = photo(70, 90)[0]
    expected = cv2.Canny(np.ascontiguousarray(to_uint8(picture)), 20, 50)
    edges = canny_edges(picture, 20, 50)
    assert edges.shape == picture.shape
    assert (to_uint8(edges) == expected[..., None]).all()
    assert 0.01 < edges.mean() < 0.5
    assert canny_edges(picture, 100, 250).sum() < edges.sum()


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [((1024, 1024), 1280, (1280, 1280)), ((3000, 2000), 1280, (1280, 832)), ((100, 640), 1280, (192, 1280)),
     ((30, 2000), 1280, (64, 1280)), ((64, 64), 64, (64, 64)), ((513, 511), 512, (512, 448))],
)  # fmt: skip
def test_pictures_get_sides_of_multiples_of_64(size, longest, expected):
    """The longer side is the longest, the other keeps the shape as near as multiples of 64 allow; cut, not squeezed."""
    assert fitted(torch.rand(1, 3, *size), longest).shape == (1, 3, *expected)
    rows = torch.linspace(0, 1, size[0])[:, None].expand(1, 3, *size)
    middle = fitted(rows, longest).mean()
    assert abs(float(middle) - 0.5) < 0.01


def test_a_picture_of_the_right_size_stays_as_it_is():
    picture = photo(64, 128)
    assert torch.equal(fitted(picture, 128), picture)


# --- sampling


def test_with_edges_alone_it_is_diffusers_own_pipeline(generator, backend, models):
    settings = replace(FAST, identity_scale=0, adapter_scale=0)
    base = generator.base
    made = InstantId(base, generator.adapter, None, generator.canny_net, settings)
    subject = subject_of(photo(), backend, settings)
    stock = StableDiffusionXLControlNetPipeline(
        base.vae, *base.text_encoders, *base.tokenizers, base.unet, generator.canny_net,
        EulerDiscreteScheduler.from_config(base.scheduler.config),
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        "a person", negative_prompt=settings.negative_prompt, image=canny_edges(subject.photo[0], 100, 200)[None],
        num_inference_steps=2, guidance_scale=5.0, controlnet_conditioning_scale=0.3, height=64, width=64,
        generator=torch.Generator().manual_seed(4), output_type="pt",
    ).images  # fmt: skip
    ours = made.draw(subject, "a person", torch.Generator().manual_seed(4))
    assert (ours - expected).abs().max() < 1e-4


@torch.no_grad()
def by_diffusers_parts(generator, subject, prompt, seed):
    """The whole of it with diffusers' own image-prompt attention, rows one after the other."""
    settings, base = generator.settings, generator.base
    unet = base.unet
    text = base.encode_prompts([settings.negative_prompt, prompt])
    vector = subject.face.embedding * subject.face.length
    tokens = [generator.adapter.projector(x[None]) for x in (torch.zeros_like(vector), vector)]
    height, width = subject.photo.shape[-2:]
    points = draw_points(subject.face.landmarks, (height, width))[None]
    edges = canny_edges(subject.photo[0], settings.canny_low, settings.canny_high)[None]
    scheduler = EulerDiscreteScheduler.from_config(base.scheduler.config)
    scheduler.set_timesteps(settings.steps)
    x = torch.randn(1, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(seed))
    x = x * scheduler.init_noise_sigma
    before, layers = unet.attn_processors, generator.adapter.attention
    processors = dict(before)
    for layer, keys, values in zip(layers.layers, layers.keys, layers.values, strict=True):
        width_out, context = keys.weight.shape
        theirs = IPAdapterAttnProcessor2_0(width_out, context, num_tokens=(3,), scale=settings.adapter_scale)
        theirs.to_k_ip[0].weight.data, theirs.to_v_ip[0].weight.data = keys.weight, values.weight
        processors[layer] = theirs
    for timestep in scheduler.timesteps:
        answers = []
        for row in (0, 1):
            scaled, words = scheduler.scale_model_input(x, timestep), text["prompt"][row : row + 1]
            added = {"text_embeds": text["pooled"][row : row + 1],
                     "time_ids": torch.tensor([[height, width, 0, 0, height, width]]).float()}  # fmt: skip
            downs, mid = generator.identity_net(
                scaled, timestep, tokens[row], points, added_cond_kwargs=added, return_dict=False
            )
            more_downs, more_mid = generator.canny_net(
                scaled, timestep, words, edges, added_cond_kwargs=added, return_dict=False
            )
            weights = settings.identity_scale, settings.canny_scale
            residuals = [weights[0] * a + weights[1] * b for a, b in zip(downs, more_downs, strict=True)]
            unet.set_attn_processor(dict(processors))
            answers.append(unet(
                scaled, timestep, (words, [tokens[row]]), added_cond_kwargs=added,
                down_block_additional_residuals=residuals,
                mid_block_additional_residual=weights[0] * mid + weights[1] * more_mid,
            ).sample)  # fmt: skip
            unet.set_attn_processor(dict(before))
        guided = answers[0] + settings.guidance * (answers[1] - answers[0])
        x = scheduler.step(guided, timestep, x).prev_sample
    return (base.vae.decode(x / base.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def test_sampling_is_that_of_diffusers_parts(generator, backend):
    """The embedding has its own length; IdentityNet reads its tokens, the other ControlNet and the UNet the text."""
    subject, done = subject_of(photo(64, 128), backend, replace(FAST, max_side=128)), []
    assert subject.face.length > 1.01 or subject.face.length < 0.99
    ours = generator.draw(subject, "a person in red light", torch.Generator().manual_seed(3),
                          lambda step, total: done.append((step, total)))  # fmt: skip
    expected = by_diffusers_parts(generator, subject, "a person in red light", 3)
    assert ours.shape == (1, 3, 64, 128)
    assert (ours - expected).abs().max() < 1e-4
    assert ours.std() > 0.01
    assert done == [(1, 2), (2, 2)]


def test_every_part_counts(generator, backend):
    subject = subject_of(photo(), backend, FAST)
    whole = generator.draw(subject, "a person", torch.Generator().manual_seed(1))
    for change in ({"identity_scale": 0.0}, {"adapter_scale": 0.0}, {"canny_scale": 0.0}, {"guidance": 1.0}):
        other = InstantId(generator.base, generator.adapter, generator.identity_net, generator.canny_net,
                          replace(FAST, **change))  # fmt: skip
        picture = other.draw(subject, "a person", torch.Generator().manual_seed(1))
        assert (picture - whole).abs().max() > 1e-3, change
    assert torch.equal(generator.draw(subject, "a person", torch.Generator().manual_seed(1)), whole)


def test_at_full_size_everything_fits_and_is_as_long_as_the_published_files():
    """SDXL, both ControlNets and the adapter without memory, one call at 1280x960."""
    attention = {"cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10), "layers_per_block": 2,
                 "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "addition_embed_type": "text_time",
                 "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                 "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
                 "block_out_channels": (320, 640, 1280)}  # fmt: skip
    up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel(up_block_types=up, sample_size=128, **attention)
        network = ControlNetModel(**attention)
        adapter = ImagePromptAdapter(Resampler(2048), ImageAttention(unet))
        maker = InstantId.__new__(InstantId)
        maker.base, maker.settings = SimpleNamespace(unet=unet), InstantIdSettings()
        maker.scheduler = SimpleNamespace(scale_model_input=lambda x, timestep: x)
        tokens = adapter.tokens(torch.empty(1, 512))
        text = {"encoder_hidden_states": torch.empty(2, 77, 2048),
                "added_cond_kwargs": {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}}  # fmt: skip
        picture = torch.empty(1, 3, 960, 1280)
        controls = [Control(network, picture, tokens, 0.8), Control(network, picture, None, 0.3)]
        with image_prompt(unet, adapter.attention, tokens, 0.8):
            noise = maker._noise(torch.empty(1, 4, 120, 160), torch.tensor(1), text, controls)
    assert tokens.shape == (2, 16, 2048)
    assert noise.shape == (1, 4, 120, 160)
    numbers = sum(parameter.numel() for parameter in network.parameters())
    for entry, size in (("instantid/controlnet", 2), ("controlnet-canny-sdxl/controlnet", 4)):
        assert 0 < named(entry).size - size * numbers < 200_000


def test_half_precision_is_near_to_full(generator, backend, models):
    """What a GPU gets: all but the VAE in half precision; bfloat16 is the one that a CPU is quick in."""
    half = load_instantid(models[0], FAST, "cpu", models[1])
    for network in (half.base.unet, *half.base.text_encoders, half.adapter, half.identity_net, half.canny_net):
        network.to(torch.bfloat16)
    subject = subject_of(photo(), backend, FAST)
    full, other = (one.draw(subject, "a person", torch.Generator().manual_seed(2)) for one in (generator, half))
    assert 0 < (full - other).abs().mean() < 0.02


# --- faces


def test_the_largest_face_counts_and_none_is_none(backend):
    subject = subject_of(photo(), backend, FAST)
    assert subject.faces > 1
    assert subject.face.embedding.shape == (48,)
    assert subject.embedding.norm() == pytest.approx(subject.face.length, rel=1e-5)
    assert subject_of(torch.zeros(1, 3, 64, 64), backend, FAST) is None


def test_embeddings_of_other_spaces_are_refused(models):
    other = load_backend("embedded", BackendSettings(models[0], device="cpu"))
    with pytest.raises(ValueError, match="embeds as 'embedded face .*InstantID reads 'insightface antelopev2'"):
        subject_of(photo(), other, FAST)


# --- files and settings


@pytest.mark.parametrize(
    ("entry", "message"),
    [("controlnet/instantid/diffusion_pytorch_model.safetensors", "download instantid --models"),
     ("controlnet/instantid/config.json", "download instantid --models"),
     ("controlnet/controlnet-canny-sdxl-1.0/diffusion_pytorch_model.safetensors",
      "download controlnet-canny-sdxl --models"),
     ("instantid/ip-adapter.bin", "download instantid --models"),
     ("insightface/models/antelopev2/glintr100.onnx", "download antelopev2 --models")],
)  # fmt: skip
def test_a_missing_file_is_named_with_the_command_that_gets_it(models, entry, message):
    folder, base = models
    file, away = folder / entry, folder / "away"
    file.rename(away)
    try:
        with pytest.raises(ValueError, match=f"{file.name}.*weights_cli.py {message}"):
            needed_files(folder, base, FAST)
    finally:
        away.rename(file)
    assert file in needed_files(folder, base, FAST)


def test_the_base_model_is_sdxls_unless_another_is_named(models):
    folder, base = models
    with pytest.raises(ValueError, match="checkpoints/sd_xl_base_1.0.safetensors is missing.*download sdxl --models"):
        needed_files(folder, None, FAST)
    with pytest.raises(ValueError, match="nothing.safetensors: no such file or folder"):
        needed_files(folder, folder / "nothing.safetensors", FAST)
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match="safetensors holds no tokenizer: give --tokenizer a folder"):
        needed_files(folder, file, FAST)
    assert file in needed_files(folder, file, FAST, base / "tokenizer")
    plain = needed_files(folder, base, replace(FAST, canny_scale=0))
    assert not any("canny" in str(path) for path in plain)
    assert file in plain


def test_networks_that_do_not_go_together_are_refused(generator):
    class Sd1:
        family, name = "sd1", "v1-5"

    with pytest.raises(ValueError, match="v1-5 is of the family sd1: InstantID needs an SDXL checkpoint"):
        InstantId(Sd1(), generator.adapter, None, None)
    with pytest.raises(ValueError, match="scale above 0 is not loaded"):
        InstantId(generator.base, generator.adapter, None, generator.canny_net, FAST)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"canny_scale": -1.0}, "scales are"), ({"steps": 0}, "steps 0"), ({"max_side": 32}, "max_side is 32"),
     ({"canny_low": 300.0}, "canny thresholds are 300 and 200")],
)  # fmt: skip
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(FAST, **change)
