"""IDetail in ComfyUI: latents of our diffusers pipeline, with stock loaders and samplers, and messages for mistakes."""

import logging

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from likeness.nodes import idetail
from likeness.nodes.idetail import ALL, NONE, TRAINED, RelightConditioning, RelightPrompt
from likeness.nodes.models import load_embedded
from likeness.nodes.spl import StructureGuidanceNode
from likeness.nodes.text_edit import EditMaskFromWords
from likeness.pipelines.embedded import SHIPPED
from likeness.pipelines.idetail.conditioning import latent_mask
from likeness.pipelines.idetail.prompts import EFFECTS, TARGET_PROMPTS
from likeness.pipelines.spl import structure_loss
from relight_hosts import NEGATIVE, PROMPTS, STEPS, embedded, sdxl
from test_structure_guidance import photo
from tiny_models import block_vae, tiny_flux, video_vae

import nodes as comfyui_nodes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, comfyui_dir):
    folder = tmp_path_factory.mktemp("idetail")
    return {"embedded": embedded(folder), "sdxl": sdxl(folder, comfyui_dir)}


@pytest.fixture
def host(hosts):
    return hosts["embedded"]


def masks_for(height: int, width: int, count: int = 1) -> torch.Tensor:
    """Soft ellipses, each elsewhere."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([
        (1.5 - 4 * ((x - 0.35 - 0.2 * index) ** 2 + (y - 0.5) ** 2).sqrt()).clamp(0, 1) for index in range(count)
    ])  # fmt: skip


def near(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape and ours.std() > 0.01
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())


def test_a_file_that_was_trained_on_under_its_name_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(idetail, "adapter_path", lambda file: tmp_path / file)
    (tmp_path / "a").write_bytes(b"1")
    before = idetail.RelightLoraLoader.fingerprint_inputs("a", model=None, strength=1.0)
    assert before == idetail.RelightLoraLoader.fingerprint_inputs("a", model=None, strength=1.0)
    (tmp_path / "a").write_bytes(b"12")
    assert before != idetail.RelightLoraLoader.fingerprint_inputs("a", model=None, strength=1.0)


@pytest.mark.parametrize("loader", ["stock", "ours"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("name", ["embedded", "sdxl"])
def test_latents_are_those_of_the_pipeline(hosts, name, cfg, loader, caplog):
    """Two photos and two prompts at once, not square, and not of whole latent cells."""
    host = hosts[name]
    pictures, masks = photo(131, 92, batch=2), masks_for(131, 92, 2)
    with caplog.at_level(logging.WARNING):
        model = host.by_stock_loader() if loader == "stock" else host.by_our_loader()
        conditioned = host.conditioned(model, pictures, masks)
        ours, sigmas, noise = host.sample(model, *conditioned, cfg)
    assert not [record.message for record in caplog.records], "ComfyUI left something out"
    assert ours.shape == (2, 4, 16, 11)
    pipeline = host.pipeline().on(sigmas, model.get_model_object("model_sampling"))
    shown = pipeline(pictures.movedim(-1, 1), PROMPTS, masks, NEGATIVE, STEPS, cfg, noise=noise)
    near(ours, pipeline.latents)
    decoded = host.vae.decode(model.get_model_object("latent_format").process_out(ours)).movedim(-1, 1)
    near(decoded, shown, 2e-4)


def test_photo_mask_and_each_strength_count(host):
    pictures, masks = photo(64, 64), masks_for(64, 64)
    model = host.by_our_loader()
    plain = host.relit(model, pictures, masks)
    for other in (
        host.relit(model, 1 - pictures, masks), host.relit(model, pictures, 1 - masks),
        host.relit(host.by_our_loader(strength=0.5), pictures, masks),
        host.relit(host.by_our_loader(conv_in_strength=0.5), pictures, masks),
    ):  # fmt: skip
        assert (other - plain).abs().max() > 0.01
    for load in (host.by_our_loader, host.by_stock_loader):
        near(host.relit(load("_lora", model=load("_conv_in")), pictures, masks), plain, 1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_the_strength_of_the_lora_leaves_the_first_convolution_whole(host, strength):
    pictures, masks = photo(64, 64), masks_for(64, 64)
    model = host.by_our_loader(strength=strength)
    ours, sigmas, noise = host.sample(model, *host.conditioned(model, pictures, masks, PROMPTS[:1]), 5.0)
    pipeline = host.pipeline(strength).on(sigmas, model.get_model_object("model_sampling"))
    pipeline(pictures.movedim(-1, 1), PROMPTS[0], masks, NEGATIVE, STEPS, 5.0, noise=noise)
    near(ours, pipeline.latents)


def test_another_lora_beside_it(host):
    pictures, masks = photo(64, 64), masks_for(64, 64)
    after = host.by_stock_loader("_other", model=host.by_our_loader())
    before = host.by_our_loader(model=host.by_stock_loader("_other"))
    ours, sigmas, noise = host.sample(after, *host.conditioned(after, pictures, masks, PROMPTS[:1]), 5.0)
    pipeline = host.pipeline(other=True).on(sigmas, after.get_model_object("model_sampling"))
    pipeline(pictures.movedim(-1, 1), PROMPTS[0], masks, NEGATIVE, STEPS, 5.0, noise=noise)
    near(ours, pipeline.latents)
    near(host.sample(before, *host.conditioned(before, pictures, masks, PROMPTS[:1]), 5.0)[0], ours, 1e-5)


@pytest.mark.parametrize("unload", [True, False])
@pytest.mark.parametrize("name", ["embedded", "sdxl"])
def test_the_base_model_is_bit_for_bit_as_before(hosts, name, unload):
    host = hosts[name]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    texts = host.encode(PROMPTS[:1]), host.encode([NEGATIVE])
    before = host.sample(host.model, *texts, latent, 5.0)[0]
    host.relit(host.by_our_loader(), photo(64, 64), masks_for(64, 64))
    if unload:
        comfy.model_management.unload_all_models()
        assert host.model.model.diffusion_model.input_blocks[0][0].weight.shape[1] == 4
    assert torch.equal(host.sample(host.model, *texts, latent, 5.0)[0], before)


@pytest.mark.parametrize("prepared", ["before", "after"])
def test_an_area_sees_its_part_of_the_photo(host, prepared):
    model, seen = host.by_our_loader(), []
    pictures, masks = photo(96, 128), masks_for(96, 128)

    def watch(execute, x, t, c_concat=None, *rest, **options):
        seen.append(c_concat)
        return execute(x, t, c_concat, *rest, **options)

    area = comfyui_nodes.ConditioningSetArea().append
    texts, positive = host.encode(PROMPTS[:1]), host.encode(PROMPTS[1:])
    negative = host.encode([NEGATIVE])
    if prepared == "before":
        both = texts + area(positive, 64, 48, 40, 24, 1.0)[0]
        both, negative, latent = RelightConditioning.execute(
            model, both, negative, host.vae, pictures, masks
        ).result
    else:
        whole, negative, latent = host.conditioned(model, pictures, masks, PROMPTS[:1])
        part = host.conditioned(model, pictures, masks, PROMPTS[1:])[0]
        both = whole + area(part, 64, 48, 40, 24, 1.0)[0]
    model = model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, watch)
    found = host.sample(model, both, negative, latent)[0]
    concat = both[0][1]["noise_concat"]
    parts = [tensor for tensor in seen if tensor.shape[-2:] == (6, 8)]
    assert len(parts) == STEPS and len(seen) == 2 * STEPS
    assert all(torch.equal(part, concat[..., 3:9, 5:13]) for part in parts)
    alone = host.relit(model, pictures, masks, PROMPTS[:1])
    changed = (found - alone).abs().amax((0, 1))
    assert changed[3:9, 5:13].min() > 1e-3


def test_a_batch_of_prompts_is_the_prompts_one_by_one(host):
    model, pictures, masks = host.by_our_loader(), photo(64, 64), masks_for(64, 64)
    prompts = [*PROMPTS, "a <c> in soft daylight"]
    together, *_, noise = host.sample(model, *host.conditioned(model, pictures, masks, prompts), 5.0)
    for index, prompt in enumerate(prompts):
        positive, negative, latent = host.conditioned(model, pictures, masks, [prompt])
        assert latent["samples"].shape == (1, 4, 8, 8)
        one = comfy.sample.sample_custom(
            model, noise[index : index + 1], 5.0, comfy.samplers.sampler_object("euler"),
            comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", STEPS), positive,
            negative, latent["samples"], seed=0, disable_pbar=True,
        )  # fmt: skip
        near(model.get_model_object("latent_format").process_in(one), together[index : index + 1])


@pytest.mark.parametrize(
    ("pictures", "masks", "prompts", "batch"),
    [(1, 1, 1, 1), (2, 1, 1, 2), (2, 2, 1, 2), (1, 3, 1, 3), (1, 1, 3, 3), (3, 3, 3, 3), (4, 2, 2, 4)],
)
def test_batches_of_photos_masks_and_prompts(host, pictures, masks, prompts, batch):
    model = host.by_our_loader()
    shown, where = photo(64, 48, batch=pictures), masks_for(64, 48, masks)
    texts = host.encode([f"a <c> {number}" for number in range(prompts)])
    positive, negative, latent = RelightConditioning.execute(
        model, texts, host.encode([NEGATIVE]), host.vae, shown, where
    ).result
    concat = positive[0][1]["noise_concat"]
    assert latent["samples"].shape == (batch, 4, 8, 6) and not latent["samples"].any()
    assert concat.shape == (batch, 5, 8, 6) and torch.equal(negative[0][1]["noise_concat"], concat)
    scale = model.get_model_object("latent_format").scale_factor
    for index in range(batch):
        own = host.vae.encode(shown[index % pictures][None]) * scale
        assert torch.allclose(concat[index : index + 1, 1:], own, atol=1e-5)
        assert not masks > 1 or (concat[index, 0] == concat[0, 0]).all() == (index % masks == 0)
    assert "noise_concat" not in texts[0][1], "the conditioning that went in is left as it was"


def test_latents_of_another_number_than_photos_are_refused(host):
    """ComfyUI gives the first photo to the second latent of a batch once that is sampled alone."""
    model = host.by_our_loader()
    positive, negative, latent = host.conditioned(model, photo(64, 64, batch=2), masks_for(64, 64, 2), PROMPTS[:1])
    once = host.sample(model, positive, negative, latent)[0]
    twice = host.sample(model, positive, negative, {"samples": torch.zeros(4, 4, 8, 8)})[0]
    near(twice[:2], once)
    for count in (1, 3):
        message = f"Relight LoRA Loader: .* batch of 2 photos, .* not fit a batch of {count} latents: sample 2 latents"
        with pytest.raises(ValueError, match=message):
            host.sample(model, positive, negative, {"samples": torch.zeros(count, 4, 8, 8)})


def test_a_latent_of_another_size_sees_the_photo_at_its_size(host):
    """As for hires fix: the same conditioning, on the latent enlarged; sizes of whole cells may be one off."""
    model, seen = host.by_our_loader(), []
    positive, negative, latent = host.conditioned(model, photo(128, 88), masks_for(128, 88), PROMPTS[:1])
    beside = positive[0][1]["noise_concat"]
    watched = model.clone()

    def watch(execute, x, t, c_concat=None, *rest, **options):
        seen.append(c_concat)
        return execute(x, t, c_concat, *rest, **options)

    watched.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, watch)
    for width in (16, 17):
        found = host.sample(watched, positive, negative, {"samples": torch.zeros(1, 4, 24, width)}, 5.0)[0]
        assert found.shape == (1, 4, 24, width) and torch.isfinite(found).all()
        own = host.conditioned(model, photo(192, 8 * width), masks_for(192, 8 * width))[0][0][1]["noise_concat"]
        assert seen[-1].shape[-2:] == (24, width) and (seen[-1][:1, 0] - own[:, 0]).abs().max() < 0.15
    assert positive[0][1]["noise_concat"] is beside and beside.shape == (1, 5, 16, 11)
    plain = host.sample(host.by_stock_loader(), positive, negative, latent, 5.0)[0]
    assert torch.equal(host.sample(model, positive, negative, latent, 5.0)[0], plain)
    with pytest.raises(ValueError, match="Relight LoRA Loader: .* latent of 11x16, .* is 24x16, .*: run Relight Cond"):
        host.sample(model, positive, negative, {"samples": torch.zeros(1, 4, 16, 24)})


def test_a_prompt_without_the_photo_is_refused_where_it_counts(host):
    model, bare = host.by_our_loader(), host.encode([NEGATIVE])
    positive, negative, latent = host.conditioned(model, photo(64, 64), masks_for(64, 64), PROMPTS[:1])
    message = "Relight LoRA Loader: a prompt .* with 0 channels .* needs 5: send all prompts, positive and negative"
    for prompts in ((positive, bare), (host.encode(PROMPTS[:1]), negative), (positive + bare, negative)):
        with pytest.raises(ValueError, match=message):
            host.sample(model, *prompts, latent, 5.0)
    whole = host.sample(model, positive, negative, latent)[0]
    assert torch.equal(host.sample(model, positive, bare, latent)[0], whole), "a cfg of 1 asks for no negative prompt"
    for unwidened in (host.model, host.by_our_loader("_lora")):
        found = host.sample(unwidened, host.encode(PROMPTS[:1]), bare, latent, 5.0)[0]
        assert torch.isfinite(found).all() and found.std() > 0.01


def test_a_node_that_takes_text_alone_is_told_which_model_to_take(host):
    clip = load_embedded(SHIPPED)[1]
    inputs = {"clip": clip, "vae": host.vae, "image": photo(64, 64), "prompt": "a person", "words": "person",
              "threshold": 0.4, "outside": False, "steps": 1}  # fmt: skip
    assert EditMaskFromWords.execute(host.model, **inputs).result[0].shape == (1, 64, 64)
    with pytest.raises(ValueError, match=r"Edit Mask .* takes the MODEL from before the loader"):
        EditMaskFromWords.execute(host.by_our_loader(), **inputs)


def test_the_stock_ksampler_takes_its_outputs(host):
    model = host.by_our_loader()
    positive, negative, latent = host.conditioned(model, photo(64, 64), masks_for(64, 64), PROMPTS[:1])
    done = comfyui_nodes.common_ksampler(model, 0, 3, 4.0, "dpmpp_2m", "karras", positive, negative, latent)[0]
    assert torch.isfinite(done["samples"]).all() and done["samples"].std() > 0.01


def test_a_mask_of_another_size_is_resized_and_cut_with_the_photo(host):
    model, pictures = host.by_our_loader(), photo(131, 92)
    small, large = masks_for(131, 92), masks_for(262, 184)
    found = [host.conditioned(model, pictures, mask)[0][0][1]["noise_concat"][0, 0] for mask in (small, large)]
    assert (found[0] - found[1]).abs().max() < 0.02
    # Of 131 x 92 pixels VAE Encode takes the 128 x 88 from row 1 and column 2 on.
    assert torch.equal(found[0], latent_mask(small[:, None, 1:129, 2:90], (16, 11))[0, 0])


def test_structure_guidance_after_it(host):
    source, masks = photo(128, 128), masks_for(128, 128)
    model = host.by_our_loader()
    guided = StructureGuidanceNode.execute(model, host.vae, source, 0.4, 10000.0, False, 60).result[0]
    reference = host.vae.decode(host.vae.encode(source)).movedim(-1, 1)
    out = model.get_model_object("latent_format").process_out
    plain, kept = (host.relit(each, source, masks, PROMPTS[:1], 5.0) for each in (model, guided))
    plain, kept = (host.vae.decode(out(latent)).movedim(-1, 1) for latent in (plain, kept))
    assert structure_loss(kept, reference).mean() < 0.5 * structure_loss(plain, reference).mean()


def test_one_black_mask_of_several_is_told(host, caplog):
    model, masks = host.by_our_loader(), masks_for(64, 64, 2)
    masks[1] = 0
    host.conditioned(model, photo(64, 64, batch=2), masks)
    assert "Relight Conditioning: mask 2 is black" in caplog.text


def test_two_first_convolutions_are_told(host, caplog):
    host.by_our_loader(model=host.by_our_loader("_conv_in"))
    assert "first convolution of this MODEL is changed already" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": None}, "the vae input is empty"),
        ({"model": ""}, "the MODEL takes 4 channels, relighting needs 9: put Relight LoRA Loader before it"),
        ({"model": "_lora"}, "the MODEL takes 4 channels"),
        ({"mask": torch.zeros(1, 64, 64)}, "the mask is black, so nobody would be kept"),
        ({"mask": torch.ones(1, 64, 128)}, "mask is 128x64, image is 64x64"),
        ({"mask": 2 * torch.ones(1, 64, 64)}, "mask has values from 2 to 2"),
        ({"mask": torch.ones(3, 64, 64), "image": photo(64, 64, batch=2)}, "batch of 2, .* fit a batch of 3"),
        ({"image": torch.rand(1, 64, 64, 4)}, "image has 4 channels"),
        ({"image": torch.rand(1, 4, 64, 3)}, "image is 64x4 pixels, smaller"),
        ({"prompts": PROMPTS, "image": photo(64, 64, batch=3)}, "2 prompts do not fit a batch of 3"),
    ],
)
def test_what_does_not_fit_is_refused(host, changes, message):
    inputs = {"vae": host.vae, "mask": torch.ones(1, 64, 64), "image": photo(64, 64), "prompts": PROMPTS[:1]} | changes
    model = host.by_our_loader()
    if "model" in changes:
        model = host.by_our_loader("_lora") if changes["model"] else host.model
    with pytest.raises(ValueError, match=f"Relight Conditioning: .*{message}"):
        texts = host.encode(inputs["prompts"]), host.encode([NEGATIVE])
        RelightConditioning.execute(model, *texts, inputs["vae"], inputs["image"], inputs["mask"])


def test_a_vae_of_another_family_is_refused(host):
    model = host.by_our_loader()
    for vae in (block_vae(16), video_vae()):
        with pytest.raises(ValueError, match="Relight Conditioning: the VAE makes latents of the shape"):
            RelightConditioning.execute(
                model, host.encode(PROMPTS), host.encode([NEGATIVE]), vae, photo(64, 64), masks_for(64, 64)
            )


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("_other", "does not say the order of its channels: it is no file of IDetail"),
        ("_turned", "with the channels 'source,mask,noisy', ComfyUI's are 'noisy,mask,source'"),
        ("_broken", "cannot be read .*: give a file of idetail-lora"),
    ],
)
def test_a_wrong_file_is_refused(host, suffix, message):
    (host.folder / host.file("_broken")).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"Relight LoRA Loader: .*{message}"):
        host.by_our_loader(suffix)


def test_a_file_of_another_base_is_refused(hosts):
    one, other = hosts.values()
    for model, host in ((one.model, other), (other.model, one), (tiny_flux(), one)):
        for suffix in ("", "_conv_in", "_lora"):
            with pytest.raises(ValueError, match=f"{host.name}{suffix}.safetensors was trained on another base model"):
                host.by_our_loader(suffix, model=model)


def test_a_model_that_is_widened_at_the_moment_can_be_given_another_file(host):
    comfy.model_management.load_models_gpu([host.by_our_loader()])
    assert host.model.model.diffusion_model.input_blocks[0][0].weight.shape[1] == 9
    host.conditioned(host.by_our_loader(), photo(64, 64), masks_for(64, 64))
    with pytest.raises(ValueError, match="the MODEL takes 4 channels"):
        host.conditioned(host.model, photo(64, 64), masks_for(64, 64))


def prompts_of(*arguments) -> list[str]:
    return RelightPrompt.execute(*arguments).result[0]


def test_prompts():
    assert prompts_of("pantone", 1, "") == ["a colorful portrait of a <c> in red and blue light, dramatic lighting"]
    assert prompts_of(NONE, 2, " on a ship ") == ["a <c> and a <c>, on a ship"]
    assert prompts_of("dark shadow", 1, "", "anna ")[0].startswith("a dark portrait of a anna,")
    assert prompts_of(TRAINED, 1, "") == [prompt.caption() for prompt in TARGET_PROMPTS]
    assert len(prompts_of(ALL, 1, "")) == len(EFFECTS) == 15
    with pytest.raises(ValueError, match="Relight Prompt: the placeholder is empty"):
        prompts_of(NONE, 1, "", " ")
    with pytest.raises(ValueError, match="Relight Prompt: effect is 'disco': choose one of"):
        prompts_of("disco", 1, "")
