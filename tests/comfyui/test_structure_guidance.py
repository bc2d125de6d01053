"""Structure Guidance inside ComfyUI's real samplers, on tiny models."""

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from likeness.nodes.detail_restore import DetailRestore
from likeness.nodes.hooks.structure_guidance import StructureGuidanceHook
from likeness.nodes.spl import StructureGuidanceNode, StructureRefine
from likeness.pipelines.spl import StructureSettings, structure_loss
from tiny_models import block_vae, conditioning, tiny_flux, tiny_unet, video_vae

STEPS = 5


@pytest.fixture(scope="module")
def unet():
    return tiny_unet(), block_vae(4), (conditioning(1), conditioning(2))


@pytest.fixture(scope="module")
def flux():
    return tiny_flux(), block_vae(16), (conditioning(1, 32), conditioning(2, 32))


def photo(height: int, width: int, batch: int = 1) -> torch.Tensor:
    """IMAGE of discs and stripes ``[B, H, W, 3]``."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    pictures = []
    for index in range(batch):
        disc = ((x - 0.4 - 0.1 * index) ** 2 + (y - 0.5) ** 2 < 0.08).float()
        stripes = (torch.sin(x * 20 + 3 * index) > 0).float()
        pictures.append(torch.stack([0.2 + 0.6 * disc, 0.3 + 0.4 * stripes, 0.5 * disc + 0.25 * stripes], dim=-1))
    return torch.stack(pictures).clamp(0, 1)


def guided(model, vae, source, **options):
    defaults = {"start": 0.4, "structure_weight": 10000.0, "keep_colors": False, "iterations": 60}
    return StructureGuidanceNode.execute(model, vae, source, **{**defaults, **options}).result[0]


def sample(model, conds, latent_shape, sampler="euler", cfg=7.0, scheduler="normal", seed=3):
    noise = torch.randn(latent_shape, generator=torch.Generator().manual_seed(seed))
    return comfy.sample.sample(
        model, noise, STEPS, cfg, sampler, scheduler, *conds, torch.zeros(latent_shape), seed=seed, disable_pbar=True
    )


def lost_structure(vae, latent, source) -> float:
    reference = vae.decode(vae.encode(source))
    return structure_loss(vae.decode(latent).movedim(-1, 1), reference.movedim(-1, 1)).mean().item()


@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("sampler", ["euler", "heun", "uni_pc", "dpmpp_2m_sde", "lcm", "dpm_2", "dpmpp_sde", "ddim"])
def test_lowers_spl_with_every_kind_of_sampler(unet, sampler, cfg):
    model, vae, conds = unet
    source, shape = photo(128, 128), (1, 4, 16, 16)
    plain = sample(model, conds, shape, sampler, cfg)
    with_guidance = sample(guided(model, vae, source), conds, shape, sampler, cfg)
    assert lost_structure(vae, with_guidance, source) < 0.5 * lost_structure(vae, plain, source)
    assert torch.equal(sample(model, conds, shape, sampler, cfg), plain)


@pytest.mark.parametrize("scheduler", ["karras", "simple", "sgm_uniform", "beta", "ddim_uniform", "exponential"])
def test_lowers_spl_with_every_scheduler(unet, scheduler):
    model, vae, conds = unet
    source, shape = photo(64, 64), (1, 4, 8, 8)
    plain = sample(model, conds, shape, scheduler=scheduler)
    with_guidance = sample(guided(model, vae, source), conds, shape, scheduler=scheduler)
    assert lost_structure(vae, with_guidance, source) < 0.5 * lost_structure(vae, plain, source)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_lowers_spl_on_a_flow_matching_transformer(flux, sampler):
    model, vae, conds = flux
    source, shape = photo(96, 128), (1, 16, 12, 16)
    plain = sample(model, conds, shape, sampler, 1.0, "simple")
    with_guidance = sample(guided(model, vae, source), conds, shape, sampler, 1.0, "simple")
    assert lost_structure(vae, with_guidance, source) < 0.5 * lost_structure(vae, plain, source)


def test_batch_of_two_with_one_reference_on_a_picture_that_is_not_square(unet):
    model, vae, conds = unet
    source, shape = photo(576, 832), (2, 4, 72, 104)
    plain = sample(model, conds, shape, cfg=1.0)
    with_guidance = sample(guided(model, vae, source, iterations=20), conds, shape, cfg=1.0)
    for index in range(2):
        one = slice(index, index + 1)
        before, after = (lost_structure(vae, latent[one], source) for latent in (plain, with_guidance))
        assert after < 0.5 * before


def test_each_latent_of_a_batch_follows_its_own_reference(unet):
    model, vae, conds = unet
    sources, shape = photo(64, 64, batch=2), (2, 4, 8, 8)
    together = sample(guided(model, vae, sources), conds, shape)
    for index in range(2):
        own, other = sources[index : index + 1], sources[1 - index : 2 - index]
        latent = together[index : index + 1]
        assert lost_structure(vae, latent, own) < lost_structure(vae, latent, other)


def test_one_refinement_a_step_also_with_two_evaluations(unet):
    model, vae, conds = unet
    # The reference, then steps 2, 3 and 4 of 0..4 with start 0.4; heun evaluates twice at the final noise level.
    expected = {"euler": (STEPS, 1 + 3), "heun": (2 * STEPS - 1, 1 + 4), "dpm_2": (2 * STEPS - 1, 1 + 3)}
    for sampler, (evaluations, encodings) in expected.items():
        patched, calls = guided(model, vae, photo(64, 64)), []
        encode = vae.encode

        def count_unet(execute, *arguments, calls=calls):
            calls.append("unet")
            return execute(*arguments)

        def count_vae(pixels, calls=calls, encode=encode):
            calls.append("vae")
            return encode(pixels)

        patched.add_wrapper(WrappersMP.PREDICT_NOISE, count_unet)
        vae.encode = count_vae
        try:
            sample(patched, conds, (1, 4, 8, 8), sampler)
        finally:
            vae.encode = encode
        assert calls.count("unet") == evaluations
        assert calls.count("vae") == encodings


def test_mask_frees_the_rest_of_the_picture(unet):
    model, vae, conds = unet
    source, shape = photo(128, 128), (1, 4, 16, 16)
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    plain, masked = (sample(m, conds, shape) for m in (model, guided(model, vae, source, mask=mask)))
    changed = (vae.decode(masked) - vae.decode(plain)).abs().mean(dim=(0, 1, 3))
    assert changed[:56].mean() > 10 * changed[72:].mean()


def test_two_guidances_in_a_row_both_act(unet):
    model, vae, conds = unet
    source, shape = photo(128, 128), (1, 4, 16, 16)
    left = torch.zeros(1, 128, 128)
    left[:, :, :64] = 1
    one = guided(model, vae, source, mask=left)
    both = sample(guided(one, vae, source, mask=1 - left), conds, shape)
    assert lost_structure(vae, both, source) < 0.7 * lost_structure(vae, sample(one, conds, shape), source)


def test_works_with_a_guider_of_two_conditionings_and_one_that_calls_the_model_itself(unet):
    model, vae, conds = unet
    source, shape = photo(64, 64), (1, 4, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))

    class ThreeWay(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            names = ("negative", "positive", "third")
            outputs = comfy.samplers.calc_cond_batch(
                self.inner_model, [self.conds[name] for name in names], x, timestep, model_options
            )
            return outputs[0] + 2 * (outputs[1] - outputs[0]) + 0.5 * (outputs[2] - outputs[1])

    def run(patched):
        guider = ThreeWay(patched)
        guider.inner_set_conds({"positive": conds[0], "negative": conds[1], "third": conditioning(5)})
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", STEPS)
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros(shape), sampler, sigmas, disable_pbar=True, seed=3)

    plain, with_guidance = run(model), run(guided(model, vae, source))
    assert lost_structure(vae, with_guidance, source) < 0.5 * lost_structure(vae, plain, source)


def test_a_sampler_that_never_comes_near_the_guided_steps_is_named(unet, caplog):
    model, vae, conds = unet
    sample(guided(model, vae, photo(64, 64), start=0.9), conds, (1, 4, 8, 8), "dpm_fast")
    assert "Structure Guidance changed nothing" in caplog.text


@pytest.mark.parametrize("masks", [0, 1, 3])
@pytest.mark.parametrize(("batch", "frames", "sources"), [(2, 1, 1), (3, 1, 3), (1, 3, 3), (1, 3, 1), (2, 3, 3)])
def test_latents_of_video_models(unet, batch, frames, sources, masks):
    """Today's image editors (Qwen-Image, Wan) sample latents with a time axis."""
    if masks == 3 and 3 not in (batch, frames):
        pytest.skip("a mask for each of three pictures needs three")
    model, vae = unet[0], video_vae()
    source, shape = photo(64, 64, batch=sources), (batch, 4, frames, 8, 8)

    class Still(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            return 0.1 * x

    def run(patched):
        guider = Still(patched)
        guider.inner_set_conds({"positive": conditioning(1)})
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0])
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros(shape), sampler, sigmas, disable_pbar=True, seed=3)

    mask = torch.ones(masks, 64, 64) if masks else None
    plain, with_guidance = run(model), run(guided(model, vae, source, mask=mask))
    assert with_guidance.shape == shape
    reference = source.movedim(-1, 1)
    for index in range(batch):
        for frame in range(frames):
            wanted = reference[max(index, frame) % sources][None]
            before, after = (
                structure_loss(vae.decode(latent[index : index + 1])[0, frame].movedim(-1, 0)[None], wanted).item()
                for latent in (plain, with_guidance)
            )
            assert after < 0.7 * before


def test_inpainting_keeps_its_mask(unet):
    model, vae, conds = unet
    source, shape = photo(128, 128), (1, 4, 16, 16)
    noise_mask = torch.zeros(1, 1, 16, 16)
    noise_mask[..., :8] = 1
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    start = vae.encode(source)

    def run(patched):
        options = {"noise_mask": noise_mask, "seed": 3, "disable_pbar": True}
        return comfy.sample.sample(patched, noise, STEPS, 1.0, "euler", "normal", *conds, start, **options)

    plain, with_guidance = run(model), run(guided(model, vae, source))
    assert torch.allclose(with_guidance[..., 8:], start[..., 8:], atol=1e-4)
    assert lost_structure(vae, with_guidance, source) < 0.5 * lost_structure(vae, plain, source)


def test_running_twice_and_in_inference_mode_gives_the_same(unet):
    model, vae, conds = unet
    patched = guided(model, vae, photo(64, 64))
    with torch.inference_mode():
        first = sample(patched, conds, (1, 4, 8, 8))
    assert torch.equal(first, sample(patched, conds, (1, 4, 8, 8)))


def test_interrupt_ends_the_inner_loop_and_leaves_the_model_usable(unet):
    model, vae, conds = unet
    plain = sample(model, conds, (1, 4, 8, 8))
    patched, decode = guided(model, vae, photo(64, 64)), vae.decode
    decoded = []

    def decode_and_cancel(latent):
        decoded.append(latent)
        if len(decoded) == 2:  # the first decodes the reference
            comfy.model_management.interrupt_current_processing()
        return decode(latent)

    vae.decode = decode_and_cancel
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(patched, conds, (1, 4, 8, 8))
    finally:
        vae.decode = decode
        comfy.model_management.interrupt_current_processing(False)
    assert len(decoded) == 2
    assert torch.equal(sample(model, conds, (1, 4, 8, 8)), plain)


def test_no_state_is_left_in_the_options_of_a_run(unet):
    model, vae, conds = unet
    patched, seen = guided(model, vae, photo(64, 64)), []

    def watch(execute, *arguments, **keywords):
        seen.append(execute.class_obj.model_options["transformer_options"])
        return execute(*arguments, **keywords)

    def watch_step(execute, *arguments):
        seen.append(sorted(key for key in arguments[2]["transformer_options"] if key.startswith("likeness")))
        return execute(*arguments)

    patched.add_wrapper(WrappersMP.OUTER_SAMPLE, watch)
    patched.add_wrapper(WrappersMP.PREDICT_NOISE, watch_step)
    sample(patched, conds, (1, 4, 8, 8))
    options, *steps = seen
    assert all(len(keys) == 1 for keys in steps)
    assert not [key for key in options if key.startswith("likeness")]


def test_dilation_moves_the_border_of_the_region_out(unet):
    model, vae, conds = unet
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    changed = {}
    for dilation in (0, 32):
        patched = guided(model, vae, photo(128, 128), start=0.9, mask=mask, mask_dilation=dilation)
        latents = [sample(m, conds, (1, 4, 16, 16)) for m in (model, patched)]
        changed[dilation] = (latents[1] - latents[0]).abs().mean(dim=(0, 1, 2))
    assert changed[0][:8].min() > 0
    assert changed[0][8:].max() == 0
    assert changed[32][:12].min() > 0
    assert changed[32][12:].max() == 0


def test_rising_noise_levels_are_left_alone(unet, caplog):
    model, vae, conds = unet

    def unsample(patched):
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(*conds)
        sigmas = torch.tensor([0.03, 1.0, 5.0, 10.0])
        start = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(torch.zeros_like(start), start, sampler, sigmas, disable_pbar=True, seed=3)

    assert torch.equal(unsample(guided(model, vae, photo(64, 64), start=0.0)), unsample(model))
    assert "Structure Guidance did nothing" in caplog.text


def test_a_vae_that_returns_nan_is_an_error(unet):
    model, vae, conds = unet
    patched, encode = guided(model, vae, photo(64, 64)), vae.encode
    calls = []

    def broken(pixels):
        calls.append(1)
        return encode(pixels) if len(calls) == 1 else encode(pixels) * torch.nan

    vae.encode = broken
    try:
        with pytest.raises(ValueError, match="Structure Guidance: the VAE returned NaN .* while encoding.*float32"):
            sample(patched, conds, (1, 4, 8, 8))
    finally:
        vae.encode = encode


def test_a_source_at_another_scale_is_sent_through_the_vae_at_the_sampled_size(unet):
    model, vae, _ = unet
    hook = StructureGuidanceHook(vae, photo(256, 256), None, StructureSettings(), 0.8)
    reference = hook.begin(torch.zeros(1, 4, 16, 16), torch.tensor([1.0, 0.5, 0.0])).reference
    assert reference.shape == (1, 3, 128, 128)
    again = vae.decode(vae.encode(reference.movedim(1, -1))).movedim(-1, 1)
    # Clamping to 0..1 between the two is all that differs.
    assert (again - reference).abs().max() < 2e-3


@pytest.mark.parametrize(
    ("source", "options", "channels", "message"),
    [
        (photo(64, 96), {}, 4, "source image is 96x64, the picture being sampled is 64x64"),
        (photo(64, 64, batch=3), {}, 4, "source image is a batch of 3, which does not fit a batch of 2"),
        (photo(64, 64), {}, 16, "VAE makes latents of 16 channels, the model samples 4"),
        (photo(64, 64), {"mask": torch.ones(1, 64, 128)}, 4, "mask is 128x64, image is 64x64"),
        (photo(64, 64), {"mask": torch.ones(3, 64, 64)}, 4, "mask is a batch of 3, which does not fit a batch of 2"),
        (photo(256, 256), {"radius": 64}, 4, "picture being sampled is 64x64, smaller than the window of 129"),
    ],
)
def test_what_cannot_work_fails_before_the_first_step(unet, source, options, channels, message):
    model, _, conds = unet
    patched = guided(model, block_vae(channels), source, **options)
    called = []
    patched.add_wrapper(WrappersMP.PREDICT_NOISE, lambda execute, *a: called.append(1) or execute(*a))
    with pytest.raises(ValueError, match=f"Structure Guidance: .*{message}"):
        sample(patched, conds, (2, 4, 8, 8))
    assert not called


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (torch.rand(1, 8, 64, 3), {}, "source image is 64x8 pixels, smaller than the window of 11"),
        (torch.rand(1, 64, 64, 4), {}, "source image has 4 channels"),
        (photo(64, 64), {"structure_weight": 0.0}, "nothing is left to do"),
        (photo(64, 64), {"iterations": 0}, "iterations is 0"),
    ],
)
def test_bad_input_is_refused_by_the_node(unet, source, options, message):
    model, vae, _ = unet
    with pytest.raises(ValueError, match=message):
        guided(model, vae, source, **options)


def test_a_source_at_another_scale_and_with_odd_sides_is_matched(unet):
    model, vae, conds = unet
    source = photo(131, 133)
    with_guidance = sample(guided(model, vae, source, mask=torch.ones(1, 131, 133)), conds, (1, 4, 8, 8))
    plain = sample(model, conds, (1, 4, 8, 8))
    small = photo(64, 64)
    assert lost_structure(vae, with_guidance, small) < 0.7 * lost_structure(vae, plain, small)


def test_a_mask_of_any_number_of_dimensions(unet):
    model, vae, conds = unet
    source, mask = photo(67, 64), torch.zeros(1, 67, 64)
    mask[..., :32] = 1
    whole = sample(guided(model, vae, source, mask=mask), conds, (1, 4, 8, 8))
    for same in (mask[0], mask[:, None]):
        assert torch.equal(sample(guided(model, vae, source, mask=same), conds, (1, 4, 8, 8)), whole)


def test_a_mask_that_leaves_nothing_to_do_is_told(unet, caplog):
    """Load Image gives a black mask for every picture without transparency."""
    model, vae, _ = unet
    source, black, white = photo(64, 64), torch.zeros(1, 64, 64), torch.ones(1, 64, 64)
    nodes = {
        "Structure Guidance": lambda mask: guided(model, vae, source, mask=mask),
        "Structure Refine": lambda mask: StructureRefine.execute(source, source, 10000.0, False, 1, mask=mask),
        "Detail Restore": lambda mask: DetailRestore.execute(source, source, "wavelet", 1.0, 2.0, mask),
    }
    for name, run in nodes.items():
        caplog.clear()
        for mask in (None, white):
            run(mask)
        assert not caplog.records
        run(black)
        assert f"{name}: the mask is black, so nothing is done" in caplog.text


@pytest.mark.parametrize("factory", [None, (block_vae, ())])
def test_a_vae_that_cannot_be_loaded_anew_is_kept_from_copies_for_several_gpus(factory):
    model, vae = tiny_unet(), block_vae(4)
    vae.patcher.cached_patcher_init = factory
    patched = guided(model, vae, photo(64, 64))
    assert (vae.patcher in patched.get_nested_additional_models()) == (factory is not None)


class OtherScale(comfy.latent_formats.SD15):
    """A scale of the latent that another node gives the model."""

    def __init__(self):
        super().__init__(0.31)


class VaeInTheWay:
    """A VAE that needs the room of all other models."""

    def __init__(self, vae):
        self.vae = vae

    def __getattr__(self, name):
        return getattr(self.vae, name)

    def encode(self, images):
        comfy.model_management.unload_all_models()
        return self.vae.encode(images)


def test_what_other_nodes_patched_is_back_before_the_latent_is_scaled(unet):
    source, latents = photo(64, 64), []
    for vae in (block_vae(4), VaeInTheWay(block_vae(4))):
        model = tiny_unet()
        model.add_object_patch("latent_format", OtherScale())
        latents.append(sample(guided(model, vae, source, iterations=5), unet[2], (1, 4, 8, 8)))
    torch.testing.assert_close(*latents, rtol=0, atol=1e-4)
