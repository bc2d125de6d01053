"""The embedded portrait model as ComfyUI's own objects: the same numbers as diffusers', and stock nodes at work."""

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import pytest
import torch
from likeness.nodes.models import load_embedded
from likeness.pipelines.embedded import SHIPPED
from likeness.pipelines.embedded.family import load_family
from likeness.pipelines.portraits import render, sample_person

import nodes as comfyui_nodes

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT, NEGATIVE = "a portrait of a laughing person in red and blue light", ""
CFG, STEPS = 4.0, 6


@pytest.fixture(scope="module")
def loaded():
    """(MODEL, CLIP, VAE, CLIP_VISION) as the node gives them."""
    return load_embedded(SHIPPED)


@pytest.fixture(scope="module")
def family():
    return load_family()


@pytest.fixture(scope="module")
def portrait():
    """A picture [1, 3, 128, 128] in 0..1, quantised as a file would be."""
    return (render(sample_person(4, 0)).image * 255).round() / 255


@pytest.fixture(scope="module")
def texts(loaded):
    return [loaded[1].encode_from_tokens_scheduled(loaded[1].tokenize(text)) for text in (PROMPT, NEGATIVE)]


def near(one, other, tolerance=1e-4):
    assert one.shape == other.shape and (one - other).abs().max() <= tolerance


@torch.no_grad()
def test_texts_and_pictures_are_encoded_as_diffusers_and_transformers_do_it(loaded, family, texts, portrait):
    model, clip, vae, vision = loaded
    near(texts[0][0][0], family.base.encode_prompts([PROMPT])["prompt"])
    latent = vae.encode(portrait.movedim(1, -1))
    near(latent, family.base.vae.encode(portrait * 2 - 1).latent_dist.mode())
    near(vae.decode(latent).movedim(-1, 1), (family.base.vae.decode(latent).sample / 2 + 0.5).clamp(0, 1))
    seen = vision.encode_image(portrait.movedim(1, -1))["image_embeds"]
    near(seen, family.image_encoder(portrait * 2 - 1).image_embeds)


@torch.no_grad()
def test_sampling_gives_diffusers_latents(loaded, family, texts):
    """Euler from one noise. Both start below the top of the schedule, where ComfyUI adds slightly more noise."""
    model, base = loaded[0], family.base
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", STEPS + 1)[1:]
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    found = comfy.sample.sample_custom(
        model, noise, CFG, comfy.samplers.sampler_object("euler"), sigmas, texts[0], texts[1], torch.zeros_like(noise),
        seed=0, disable_pbar=True,
    )  # fmt: skip
    positive, negative = (base.encode_prompts([text])["prompt"].expand(2, -1, -1) for text in (PROMPT, NEGATIVE))
    levels = ((1 - base.scheduler.alphas_cumprod) / base.scheduler.alphas_cumprod).sqrt()
    x = noise * sigmas[0]
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        timestep = (levels.log() - sigma.log()).abs().argmin()
        scaled = x / (sigma**2 + 1).sqrt()
        both = [base.unet(scaled, timestep, encoder_hidden_states=text).sample for text in (negative, positive)]
        x = x + (both[0] + CFG * (both[1] - both[0])) * (following - sigma)
    near(found, x, 1e-4 * max(1.0, x.abs().max().item()))


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_draws_with_it(loaded, texts, sampler):
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    done = comfyui_nodes.common_ksampler(loaded[0], 0, 4, 3.0, sampler, "normal", *texts, latent)[0]["samples"]
    picture = loaded[2].decode(done)
    assert picture.shape == (1, 128, 128, 3) and torch.isfinite(picture).all() and picture.std() > 0.01


def test_the_stock_lora_loader_changes_unet_and_text_encoder(loaded, texts, tmp_path, caplog):
    model, clip = loaded[:2]
    draw = torch.Generator().manual_seed(0)

    def pair(name, out, width):
        return {f"{name}.lora_up.weight": torch.randn(out, 4, generator=draw) * 0.3,
                f"{name}.lora_down.weight": torch.randn(4, width, generator=draw) * 0.3}  # fmt: skip

    lora = pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 64, 128)
    lora |= pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 128, 128)
    changed = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    assert "not loaded" not in caplog.text
    other = changed[1].encode_from_tokens_scheduled(changed[1].tokenize(PROMPT))
    assert (other[0][0] - texts[0][0][0]).abs().max() > 1e-3
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    pictures = [
        comfyui_nodes.common_ksampler(each, 0, 3, 3.0, "euler", "normal", *texts, latent)[0]["samples"]
        for each in (model, changed[0], model)
    ]
    assert torch.equal(pictures[0], pictures[2]) and (pictures[0] - pictures[1]).abs().max() > 1e-3


def patchers(loaded):
    return [loaded[0], loaded[1].patcher, loaded[2].patcher]


def groups_of(patcher):
    return [each.num_groups for each in patcher.model.modules() if isinstance(each, torch.nn.GroupNorm)]


@torch.no_grad()
def test_torch_compile_hooks_and_other_gpus_get_models_of_their_own(texts, portrait, monkeypatch):
    """Under dynamic VRAM, the default with NVIDIA's GPUs: ComfyUI then clones without it, or loads anew."""

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

    loaded = load_embedded(SHIPPED)
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    dynamic = load_embedded(SHIPPED)
    plain = [patcher.clone(disable_dynamic=True) for patcher in patchers(dynamic)]
    elsewhere = [patcher.deepclone_multigpu() for patcher in patchers(dynamic)]
    for kind, clones, likes in (
        (comfy.model_patcher.ModelPatcher, plain, patchers(loaded)), (Dynamic, elsewhere, patchers(dynamic)),
    ):  # fmt: skip
        for found, like, own in zip(clones, likes, patchers(dynamic), strict=True):
            assert type(found) is kind and found.model is not own.model
            state, groups = like.model.state_dict(), groups_of(like)
            assert groups_of(found) == groups and found.model.state_dict().keys() == state.keys()
            for name, value in found.model.state_dict().items():
                assert value.dtype == state[name].dtype and torch.equal(value, state[name])
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    pictures = [
        comfyui_nodes.common_ksampler(each, 0, 2, 3.0, "euler", "normal", *texts, latent)[0]["samples"]
        for each in (loaded[0], plain[0])
    ]
    assert torch.equal(*pictures)
    near(plain[2].model.encode(portrait * 2 - 1), loaded[2].first_stage_model.encode(portrait * 2 - 1), 1e-6)


def test_missing_weights_are_named(tmp_path):
    import shutil

    shutil.copytree(SHIPPED, tmp_path / "weights")
    for file in (tmp_path / "weights" / "unet").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match="Load Embedded Portrait Model: .*unet has no weights: install the pack again"):
        load_embedded(tmp_path / "weights")
