"""Masks from words inside ComfyUI: against attention maps that are made slowly, on UNets and on Flux."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.ldm.flux.math import apply_rope
from comfy.ldm.modules.attention import optimized_attention
from likeness.nodes.hooks.prompt_tokens import read_clip_prompt
from likeness.nodes.hooks.word_maps import attention_to_prompt
from likeness.nodes.text_edit import EditMaskFromWords
from likeness.pipelines.masks import upsample_mask
from likeness.pipelines.spl.word_masks import words_mask
from test_structure_guidance import photo
from tiny_models import (
    CONTEXT,
    StandInClip,
    block_vae,
    tiny_flux,
    tiny_sdxl,
    tiny_unet,
    tiny_velocity_unet,
)

PROMPT = "a disc, and (stripes:1.2) behind it"
UNETS = {
    "sd1": lambda: (tiny_unet(), StandInClip(CONTEXT)),
    "sd2": lambda: (tiny_velocity_unet(), StandInClip(CONTEXT, "sd2")),
    "sdxl": lambda: (tiny_sdxl(), StandInClip(CONTEXT, "sdxl")),
}


@pytest.fixture(scope="module", params=UNETS)
def unet(request):
    return UNETS[request.param]()


@pytest.fixture(scope="module")
def flux():
    return tiny_flux(), StandInClip(CONTEXT, "flux", pooled=32)


def mask_of(model, clip, vae, image, words="disc", threshold=0.8, outside=False, **options):
    return EditMaskFromWords.execute(
        model, clip, vae, image, PROMPT, words, threshold, outside, **{"steps": 3, **options}
    ).result[0]


def latents(*shape):
    return 4 * torch.randn(shape, generator=torch.Generator().manual_seed(8))


def slow_cross_maps(model, clip, latent, steps, seed):
    """Every cross-attention map of the same looks at the picture, summed by loops over rows and heads."""
    found = {}

    def replace(q, k, v, extra_options):
        size, heads = tuple(extra_options["activations_shape"][-2:]), extra_options["n_heads"]
        width = q.shape[-1] // heads
        maps = torch.zeros(len(q), q.shape[1], k.shape[1])
        for row in range(len(q)):
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = torch.einsum("ic,jc->ij", q[row, :, part], k[row, :, part]) / width**0.5
                weights = (scores - scores.amax(dim=1, keepdim=True)).exp()
                maps[row] += weights / weights.sum(dim=1, keepdim=True) / heads
        found.setdefault(size, []).append(maps)
        return optimized_attention(q, k, v, heads)

    watched = model.clone()
    for block in ("input", "middle", "output"):
        for number in range(6):
            watched.set_model_attn2_replace(replace, block, number)
    maps = attention_to_prompt(watched, clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT)), latent, steps, seed)
    return maps, found


@pytest.mark.parametrize(("shape", "taken"), [((2, 4, 16, 24), (8, 12)), ((1, 4, 9, 7), (5, 4))])
def test_recorded_maps_are_the_mean_of_all_layers_of_the_size(unet, shape, taken):
    """The tiny UNets attend at half the latent's side only; the recording passes other nodes' replacements on."""
    model, clip = unet
    maps, found = slow_cross_maps(model, clip, latents(*shape), 3, 5)
    assert set(found) == {taken}
    assert len(found[taken]) >= 3 * 3
    expected = torch.stack(found[taken]).mean(dim=0).transpose(1, 2).unflatten(-1, taken)
    torch.testing.assert_close(maps.cpu(), expected, rtol=1e-3, atol=1e-6)
    alone = attention_to_prompt(
        model, clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT)), latents(*shape), 3, 5
    )  # fmt: skip
    torch.testing.assert_close(alone, maps)


def test_every_look_has_fresh_noise_of_the_seed_at_its_own_level(unet):
    model, clip = unet
    latent, seen = latents(1, 4, 16, 24), []
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "sgm_uniform", 4)

    def watch(apply_model, given):
        seen.append((given["input"].clone(), float(given["timestep"].flatten()[0])))
        return apply_model(given["input"], given["timestep"], **given["c"])

    watched = model.clone()
    watched.set_model_unet_function_wrapper(watch)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    noises = []
    for seed in (5, 5, 50):
        seen.clear()
        attention_to_prompt(watched, conditioning, latent, 4, seed)
        assert [sigma for _, sigma in seen] == pytest.approx(sigmas[:-1].tolist())
        clean = model.model.process_latent_in(latent)
        # Above the last level of the training ComfyUI starts with slightly more noise.
        noises.append(torch.stack([(x - clean) / sigma for x, sigma in seen]).flatten(1))
    assert torch.equal(noises[0], noises[1])
    assert (noises[0][1:].std(1) - 1).abs().max() < 0.1
    together = torch.corrcoef(torch.cat([noises[0], noises[2]]))
    assert (together - torch.eye(8)).abs().max() < 0.15


@pytest.mark.parametrize("double_blocks", [1, 5])
def test_flux_maps_are_what_picture_tokens_pay_to_text(double_blocks):
    """In the part of the blocks that are the paper's 12 to 18 of 19: with 5 of them the last two."""
    model, clip = tiny_flux(double_blocks=double_blocks), StandInClip(CONTEXT, "flux", pooled=32)
    found, latent, first = [], latents(2, 16, 12, 10), {1: 0, 5: 3}[double_blocks]

    def patch(q, k, v, pe=None, attn_mask=None, extra_options=None):
        if extra_options["block_type"] == "double" and extra_options["block_index"] >= first:
            text = extra_options["img_slice"][0]
            q, k = apply_rope(q, k, pe)
            scores = torch.einsum("bhic,bhjc->bhij", q, k) / q.shape[-1] ** 0.5
            found.append(scores.softmax(dim=-1).mean(dim=1)[:, text:, :text])
        return {}

    watched = model.clone()
    watched.set_model_attn1_patch(patch)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    maps = attention_to_prompt(watched, conditioning, latent, 2, 5)
    assert len(found) == 2 * (double_blocks - first)
    assert maps.shape == (2, 256, 6, 5)
    expected = torch.stack(found).mean(dim=0).transpose(1, 2).unflatten(-1, (6, 5))
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size", [(96, 144), (100, 131)])
def test_mask_is_made_of_the_words_maps_at_the_images_edges(unet, size):
    (model, clip), vae, image = unet, block_vae(4), photo(*size, batch=2)
    words, read = ["disc", "stripes"], read_clip_prompt(clip, PROMPT)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    maps = attention_to_prompt(model, conditioning, vae.encode(image), 3, 7)
    # Random weights attend nearly evenly: only a threshold in the middle of the values tells places apart.
    threshold = words_mask(maps, read, words, 0, soft=True).median().item()
    height, width = (side - side % 8 for side in size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    guide = image[:, top : top + height, left : left + width].movedim(-1, 1)
    for soft in (False, True):
        expected = upsample_mask(words_mask(maps, read, words, threshold, soft), guide)[:, 0]
        mask = mask_of(model, clip, vae, image, "disc, stripes", threshold, soft=soft, seed=7)
        assert mask.shape == (2, *size)
        assert 0 <= mask.min() < mask.max() <= 1
        torch.testing.assert_close(mask[:, top : top + height, left : left + width], expected)
        outside = mask_of(model, clip, vae, image, "disc, stripes", threshold, True, soft=soft, seed=7)
        torch.testing.assert_close(outside, 1 - mask)


def test_mask_on_flux(flux):
    (model, clip), vae = flux, block_vae(16)
    one = mask_of(model, clip, vae, photo(64, 96), "disc", soft=True)
    other = mask_of(model, clip, vae, photo(64, 96), "stripes", soft=True)
    assert one.shape == (1, 64, 96)
    assert not torch.equal(one, other)


def test_the_model_is_left_alone_and_an_interrupt_ends_it(unet):
    (model, clip), vae, image = unet, block_vae(4), photo(64, 64)
    options = repr(model.model_options)
    first = mask_of(model, clip, vae, image)
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        mask_of(model, clip, vae, image)
    assert repr(model.model_options) == options
    assert torch.equal(mask_of(model, clip, vae, image), first)


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ("cat", {}, "'cat' is not in the prompt. Its words are: a, disc, and, stripes, behind, it"),
        (" , ", {}, "words is empty"),
        ("disc", {"vae": None}, "the vae input is empty"),
        ("disc", {"vae": block_vae(16)}, r"the VAE makes latents of the shape \(1, 16, 8, 8\), the model takes 4"),
        ("disc", {"clip": None}, "the clip input is empty"),
        ("disc", {"image": torch.full((1, 64, 64, 3), 3.0)}, "image has values from 3 to 3"),
    ],
)
def test_bad_input_is_a_message_that_names_the_node(words, options, message):
    model, clip = UNETS["sd1"]()
    inputs = {"clip": clip, "vae": block_vae(4), "image": photo(64, 64), **options}
    with pytest.raises(ValueError, match=f"Edit Mask from Prompt Words: .*{message}"):
        mask_of(model, words=words, **inputs)
