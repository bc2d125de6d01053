"""Text edits inside ComfyUI's real sampling: parity with the diffusers pipeline, batches, families, other nodes."""

from dataclasses import replace

import comfy.model_base
import comfy.model_management
import comfy.samplers
import comfy.sd1_clip
import pytest
import test_parity
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from diffusers import DDIMScheduler
from likeness.nodes.hooks.attention_patches import _CrossControl
from likeness.nodes.hooks.edit_guider import EditGuider
from likeness.nodes.hooks.prompt_tokens import read_clip_prompt
from likeness.nodes.spl import StructureGuidanceNode
from likeness.nodes.text_edit import DdimInversionSampler, EditGuiderNode, VirtualInversionSampler
from likeness.pipelines.spl import StructureSettings
from likeness.pipelines.spl.attention_control import AttentionControl, AttentionSettings
from likeness.pipelines.spl.edit_pipeline import EditSettings, TextEditPipeline
from likeness.pipelines.spl.guidance import StructureGuidance
from likeness.pipelines.spl.inversion import lcm_timesteps
from test_structure_guidance import photo
from tiny_models import CONTEXT, StandInClip, block_vae, tiny_flux, tiny_sdxl, tiny_unet, tiny_velocity_unet

TEXTS = ("a photo of a cat on grass", "a photo of a small dog on grass")
SEED = 5
pipeline, in_comfyui = test_parity.pipeline, test_parity.in_comfyui


def guider_of(model, clip, texts=TEXTS, **options):
    defaults = {"negative_text": "", "source_guidance": 1.0, "target_guidance": 2.0, "cross_fraction": 0.8,
                "self_fraction": 0.8, "attention": "unified"}  # fmt: skip
    return EditGuiderNode.execute(model, clip, *texts, **{**defaults, **options}).result[0]


def sigmas_of(model, steps=5, scheduler="sgm_uniform"):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def run(guider, latent, sampler=None, sigmas=None, **options):
    sampler = sampler or VirtualInversionSampler.execute().result[0]
    sigmas = sigmas_of(guider.model_patcher) if sigmas is None else sigmas
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(SEED))
    return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=SEED, **options)


def latents(*shape):
    return 4 * torch.randn(shape, generator=torch.Generator().manual_seed(8))


# ---- Parity


def schedule_of(patcher, settings: EditSettings):
    """Timesteps of the training below the top, where ComfyUI adds slightly more noise on purpose, and their sigmas."""
    timesteps = lcm_timesteps(12)[-6:] if settings.backbone == "virtual inversion" else [400, 300, 200, 100, 50, 20]
    sampling = patcher.get_model_object("model_sampling")
    return timesteps, torch.cat([sampling.sigmas[timesteps], sampling.sigmas.new_zeros(1)])


def edited_in_comfyui(in_comfyui, settings: EditSettings, guided: bool = False, batch: int = 1, size=(128, 128)):
    patcher, vae = in_comfyui
    source, attention = photo(*size, batch=batch), settings.attention
    model = patcher
    if guided:
        model = StructureGuidanceNode.execute(patcher, vae, source, 0.5, 10000.0, True, 25).result[0]
    guider = guider_of(
        model, StandInClip(CONTEXT), source_guidance=settings.source_guidance,
        target_guidance=settings.target_guidance, attention=attention.method, layout_branch=attention.layout_branch,
        cross_fraction=attention.cross_fraction, self_fraction=attention.self_fraction,
        word_weights=", ".join(f"{word}={weight}" for word, weight in attention.word_weights.items()),
    )  # fmt: skip
    if settings.backbone == "virtual inversion":
        sampler = VirtualInversionSampler.execute(settings.eta).result[0]
    else:
        sampler = DdimInversionSampler.execute(settings.inversion_iterations).result[0]
    return run(guider, vae.encode(source), sampler, schedule_of(patcher, settings)[1])


@torch.no_grad()
def edited_by_diffusers(pipeline, in_comfyui, settings: EditSettings, guided: bool, batch: int = 1, size=(128, 128)):
    ours = TextEditPipeline(pipeline.vae, None, None, pipeline.unet, DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False))  # fmt: skip
    clip, (timesteps, sigmas) = StandInClip(CONTEXT), schedule_of(in_comfyui[0], settings)
    clean = ours.encode(photo(*size, batch=batch).movedim(-1, 1))
    embedded = torch.cat([clip.embedded(text) for text in ("", *TEXTS)])
    prompts = [read_clip_prompt(clip, text) for text in TEXTS]
    plan = ours.plan(settings, {"prompt": embedded}, *prompts, tuple(clean.shape[-2:]), timesteps)
    guidance = None
    if guided:
        guidance = StructureGuidance(ours.decode(clean), sigmas.tolist(), StructureSettings(iterations=25), 0.5)
    start = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))
    # ComfyUI draws the noise of later steps from the seed after.
    generator = torch.Generator().manual_seed(SEED + 1)
    noise = torch.stack([start] + [torch.randn(clean.shape, generator=generator) for _ in timesteps[1:]])
    return ours.edit(clean, plan, settings, guidance, noise=noise)


def assert_hosts_agree(pipeline, in_comfyui, *arguments):
    ours = edited_in_comfyui(in_comfyui, *arguments) * pipeline.vae.config.scaling_factor
    theirs = edited_by_diffusers(pipeline, in_comfyui, *arguments)
    assert ours.shape == theirs.shape
    assert ours.std() > 0.01
    assert (ours - theirs).abs().max() <= 1e-4 * max(1.0, theirs.abs().max().item())


PLAIN = AttentionSettings(cross_fraction=0, self_fraction=0)
DDIM = {"backbone": "ddim inversion", "inversion_iterations": 2}


@pytest.mark.parametrize(
    ("settings", "guided"),
    [
        (EditSettings(attention=PLAIN), False),
        (EditSettings(attention=PLAIN), True),
        (EditSettings(), False),
        (EditSettings(), True),
        (EditSettings(source_guidance=1.5, target_guidance=4.0, eta=0.5, attention=AttentionSettings(
            layout_branch=True, cross_fraction=0.6, self_fraction=0.4)), False),
        (EditSettings(target_guidance=1.0, attention=AttentionSettings(self_fraction=0.5)), False),
        (EditSettings(**DDIM, attention=AttentionSettings("refine", word_weights={"dog": 2.0})), True),
    ],
    ids=["plain", "plain guided", "unified", "unified guided", "layout", "no guidance", "prompt to prompt guided"],
)  # fmt: skip
def test_latents_agree_with_the_diffusers_pipeline(pipeline, in_comfyui, settings, guided):
    assert_hosts_agree(pipeline, in_comfyui, settings, guided)


def test_latents_agree_for_a_batch_that_is_not_square(pipeline, in_comfyui):
    assert_hosts_agree(pipeline, in_comfyui, EditSettings(), True, 2, (64, 96))


def test_every_setting_of_the_parity_test_acts(in_comfyui):
    early_only = AttentionSettings(self_fraction=0.4)
    results = [edited_in_comfyui(in_comfyui, EditSettings(attention=attention), guided, size=(64, 64))
               for attention, guided in ((PLAIN, False), (early_only, False), (AttentionSettings(), True),
                                         (replace(early_only, layout_branch=True), False))]  # fmt: skip
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            assert (one - other).abs().max() > 1e-3


# ---- Families


FAMILIES = {
    "sd1": lambda: (tiny_unet(), StandInClip(CONTEXT)),
    "sd2": lambda: (tiny_velocity_unet(), StandInClip(CONTEXT, "sd2")),
    "sdxl": lambda: (tiny_sdxl(), StandInClip(CONTEXT, "sdxl")),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def unet():
    return FAMILIES["sd1"]()


@pytest.mark.parametrize("scheduler", ["sgm_uniform", "karras", "beta"])
def test_the_same_text_gives_the_photo_back_on_any_schedule(family, scheduler):
    model, clip = family
    latent = latents(2, 4, 10, 14)
    sigmas = sigmas_of(model, 5, scheduler)
    same = run(guider_of(model, clip, (TEXTS[0],) * 2, source_guidance=2.0), latent, sigmas=sigmas)
    other = run(guider_of(model, clip), latent, sigmas=sigmas)
    torch.testing.assert_close(same, latent, rtol=1e-4, atol=1e-4)
    assert (other - latent).abs().max() > 1e-2


def test_ddim_inversion_with_every_family(family):
    model, clip = family
    sampler = DdimInversionSampler.execute(20).result[0]
    sigmas = torch.tensor([0.15, 0.1, 0.05, 0.0])
    latent, options = latents(1, 4, 8, 8), {"target_guidance": 1.0, "attention": "refine"}
    results = [
        run(guider_of(model, clip, texts, **options), latent, sampler, sigmas)
        for texts in ((TEXTS[0], TEXTS[0]), TEXTS)
    ]
    torch.testing.assert_close(results[0], latent, rtol=0, atol=0.05)
    assert (results[1] - results[0]).abs().max() > 1e-3


def test_long_prompts_of_unequal_length(family):
    model, clip = family
    long = TEXTS[0] + ", very detailed" * 40
    latent = latents(1, 4, 8, 8)
    assert len(clip.tokenize(long)[next(iter(clip.tokenize(long)))]) > 1
    same = run(guider_of(model, clip, (long, long), source_guidance=2.0), latent)
    torch.testing.assert_close(same, latent, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(run(guider_of(model, clip, (TEXTS[0], long)), latent)).all()


def test_flux_edits_without_attention_control_only():
    model, clip = tiny_flux(), StandInClip(CONTEXT, pooled=32)
    latent = latents(1, 16, 8, 12)
    free = {"cross_fraction": 0.0, "self_fraction": 0.0, "source_guidance": 2.0}
    same = run(guider_of(model, clip, (TEXTS[0],) * 2, **free), latent, sigmas=sigmas_of(model, 4, "simple"))
    torch.testing.assert_close(same, latent, rtol=1e-3, atol=1e-3)
    other = run(guider_of(model, clip, **free), latent, sigmas=sigmas_of(model, 4, "simple"))
    assert (other - latent).abs().max() > 1e-3
    with pytest.raises(ValueError, match="Edit Guider: the model is a Flux, .* set cross_fraction and self_fraction"):
        run(guider_of(model, clip), latent)


# ---- A good guest


def test_wrappers_see_the_target_alone_and_its_corrected_estimate(unet):
    model, clip = unet
    seen = []
    watched = model.clone()
    watched.add_wrapper(
        WrappersMP.PREDICT_NOISE,
        lambda executor, x, *args: seen.append((x.shape, result := executor(x, *args))) or result,
    )
    latent = latents(2, 4, 8, 8)
    run(guider_of(watched, clip, (TEXTS[0],) * 2, source_guidance=2.0), latent)
    assert [shape for shape, _ in seen] == [latent.shape] * 5
    clean = model.model.process_latent_in(latent)
    for _, result in seen:
        torch.testing.assert_close(result, clean, rtol=1e-4, atol=1e-4)


def test_one_model_call_a_step_with_all_branches_and_two_known_conditionings(unet):
    model, clip = unet
    calls = []
    watched = model.clone()

    def count(executor, x, t, *args, **kwargs):
        options = kwargs.get("transformer_options") or args[-1]
        calls.append((len(x), sorted(options["cond_or_uncond"])))
        return executor(x, t, *args, **kwargs)

    watched.add_wrapper(WrappersMP.APPLY_MODEL, count)
    run(guider_of(watched, clip), latents(2, 4, 8, 8))
    assert calls == [(8, [0, 1])] * 5
    calls.clear()
    run(guider_of(watched, clip, layout_branch=True, target_guidance=1.0), latents(2, 4, 8, 8))
    assert calls == [(6, [0])] * 5


def test_other_nodes_patches_are_kept_and_chained(unet):
    model, clip = unet
    latent, seen = latents(1, 4, 8, 8), []
    plain = run(guider_of(model, clip), latent)

    def silent_replace(q, k, v, extra_options):
        seen.append("replace")
        return optimized_attention(q, k, v, extra_options["n_heads"])

    def silent_patch(n, context, value, extra_options):
        seen.append("patch")
        return n, context, value

    patched = model.clone()
    patched.set_model_attn2_replace(silent_replace, "input", 3)
    patched.set_model_attn2_replace(silent_replace, "middle", 0, 0)
    patched.set_model_attn1_patch(silent_patch)
    torch.testing.assert_close(run(guider_of(patched, clip), latent), plain, rtol=1e-4, atol=1e-4)
    assert seen.count("patch") >= 5
    assert seen.count("replace") == 2 * 5

    def loud_replace(q, k, v, extra_options):
        return silent_replace(q, k, v, extra_options) + 0.5

    loud = model.clone()
    loud.set_model_attn2_replace(loud_replace, "middle", 0, 0)
    assert (run(guider_of(loud, clip), latent) - plain).abs().max() > 1e-3


def test_what_another_node_adds_to_cross_attention_stays_in_every_row():
    prompts = [read_clip_prompt(StandInClip(CONTEXT), text) for text in TEXTS]
    control, draw = AttentionControl(AttentionSettings(), *prompts), torch.Generator().manual_seed(0)
    q = torch.randn((8, 12, 16), generator=draw)  # two halves of source and target, two pictures each
    k, v = torch.randn((2, 8, prompts[0].length, 16), generator=draw)
    extra = {"n_heads": 2, "attn_precision": None, "cond_or_uncond": [0, 1]}

    def added(q, k, v, extra_options):
        attended = optimized_attention(q, k, v, extra_options["n_heads"])
        return attended + torch.arange(8.0)[:, None, None]

    alone, both = (_CrossControl(control, previous)(q, k, v, extra) for previous in (None, added))
    torch.testing.assert_close(both, alone + torch.arange(8.0)[:, None, None], rtol=1e-4, atol=1e-5)
    untouched = optimized_attention(q, k, v, 2)
    changed = (alone - untouched).abs().amax((1, 2)) > 1e-3
    assert changed.tolist() == [False, False, True, True, False, False, False, False]


@pytest.mark.parametrize("layout", [False, True])
def test_predictions_of_earlier_steps_are_refused_where_every_step_has_its_own_noise(unet, layout):
    """With LazyCache the picture was noise, and with a layout branch the error one of Python's."""
    model, clip = unet
    lazy = LazyCacheNode.execute(model, 100.0, 0.0, 1.0, False).result[0]
    with pytest.raises(ValueError, match=r"Virtual Inversion Sampler: .*LazyCache.* earlier step.*: connect the model"):
        run(guider_of(lazy, clip, layout_branch=layout), latents(1, 4, 16, 16), sigmas=sigmas_of(model, 8))


def test_easycache_works_with_virtual_inversion_and_is_refused_by_ddim_inversion(unet):
    model, clip = unet
    latent, sigmas = latents(1, 4, 16, 16), sigmas_of(model, 8)
    eager, lazy = (node.execute(model, 100.0, 0.0, 1.0, False).result[0] for node in (EasyCacheNode, LazyCacheNode))
    ddim = DdimInversionSampler.execute(1).result[0]
    assert torch.isfinite(run(guider_of(eager, clip), latent, sigmas=sigmas)).all()
    assert torch.isfinite(run(guider_of(lazy, clip), latent, ddim, sigmas)).all()
    with pytest.raises(ValueError, match="DDIM Inversion Sampler: EasyCache .*: connect the model from before EasyC"):
        run(guider_of(eager, clip), latent, ddim, sigmas)


def unpatched_output(model):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    return model.model.apply_model(x, torch.ones(1), c_crossattn=torch.ones(1, 77, CONTEXT))


def test_the_model_is_bit_identical_afterwards_and_an_interrupt_leaves_nothing(unet):
    model, clip = unet
    before, options = unpatched_output(model), repr(model.model_options)
    guider = guider_of(model, clip)
    first = run(guider, latents(1, 4, 8, 8))

    def stop(step, *rest):
        comfy.model_management.interrupt_current_processing(step == 1)

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(guider, latents(1, 4, 8, 8), callback=stop)
    comfy.model_management.interrupt_current_processing(False)
    assert repr(model.model_options) == options
    assert torch.equal(unpatched_output(model), before)
    assert torch.equal(run(guider, latents(1, 4, 8, 8)), first)


def test_interrupt_during_inversion(unet):
    model, clip = unet
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(guider_of(model, clip), latents(1, 4, 8, 8), DdimInversionSampler.execute(1).result[0])


def test_a_mask_confines_the_edit(unet):
    model, clip = unet
    latent, mask = latents(1, 4, 8, 8), torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    edited = run(guider_of(model, clip), latent, denoise_mask=mask)
    torch.testing.assert_close(edited[..., 4:], latent[..., 4:], rtol=1e-4, atol=1e-4)
    assert (edited[..., :4] - latent[..., :4]).abs().max() > 1e-2


@pytest.mark.parametrize("sampler", ["virtual inversion", "layout branch", "ddim inversion"])
def test_with_a_mask_too_the_same_prompt_gives_the_photo_back(unet, sampler):
    """The source is protected with the noise of its own branch, or the network would see an edit where none is."""
    model, clip = unet
    latent, mask = latents(1, 4, 8, 8), torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    guider = guider_of(
        model, clip, (TEXTS[0], TEXTS[0]), target_guidance=1.0, layout_branch=sampler == "layout branch"
    )  # fmt: skip
    ddim = sampler == "ddim inversion"
    given = DdimInversionSampler.execute(5).result[0] if ddim else None
    edited = run(guider, latent, given, sigmas_of(model, 20 if ddim else 8), denoise_mask=mask)
    torch.testing.assert_close(edited, latent, rtol=0, atol=0.02)


def test_structure_guidance_lowers_the_lost_structure(unet):
    from test_structure_guidance import lost_structure

    (model, clip), vae, source = unet, block_vae(4), photo(96, 128)
    latent = vae.encode(source)
    guided = StructureGuidanceNode.execute(model, vae, source, 0.4, 10000.0, False, 60).result[0]
    for sampler in (None, DdimInversionSampler.execute(1).result[0]):
        plain, kept = (run(guider_of(m, clip, target_guidance=6.0), latent, sampler) for m in (model, guided))
        assert lost_structure(vae, kept, source) < 0.5 * lost_structure(vae, plain, source)


@pytest.mark.parametrize("layout", [False, True])
def test_a_model_that_is_loaded_again_after_a_refinement_gets_room_for_all_branches(unet, layout, monkeypatch):
    model, clip = unet
    guided = StructureGuidanceNode.execute(model, block_vae(4), photo(64, 64), 0.4, 1000.0, False, 2).result[0]
    network, rows = type(model.model), []

    def memory_required(self, shape, *rest, real=network.memory_required, **more):
        rows.append(shape[0])
        return real(self, shape, *rest, **more)

    monkeypatch.setattr(network, "memory_required", memory_required)
    run(guider_of(guided, clip, layout_branch=layout), latents(2, 4, 8, 8))
    assert rows[-1] == 2 * 2 * (3 if layout else 2) == max(rows)


def test_the_stock_sampler_node_runs_it_with_previews(unet):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    model, clip = unet
    latent, sampler = {"samples": latents(2, 4, 8, 8)}, VirtualInversionSampler.execute().result[0]
    result = SamplerCustomAdvanced.execute(
        Noise_RandomNoise(SEED), guider_of(model, clip), sampler, sigmas_of(model), latent
    )  # fmt: skip
    samples, denoised = (each["samples"] for each in result.result)
    assert samples.shape == (2, 4, 8, 8)
    torch.testing.assert_close(samples, denoised, rtol=1e-4, atol=1e-4)


def test_conditionings_that_cannot_share_a_call_are_refused(unet):
    from comfy.conds import CONDConstant
    from likeness.nodes.hooks.edit_guider import merged

    entries = [{"model_conds": {"frames": CONDConstant(number)}} for number in (1, 2)]
    with pytest.raises(ValueError, match="source and target conditioning differ in 'frames'"):
        merged(*entries, batch=1)
    assert merged(entries[0], entries[0], batch=2)["model_conds"]["frames"].cond == 1


def test_conditionings_can_take_the_texts_places(unet):
    model, clip = unet
    latent, encoded = latents(1, 4, 8, 8), [[clip.embedded(TEXTS[1]), {}]]
    by_text = run(guider_of(model, clip), latent)
    assert torch.equal(run(guider_of(model, clip, target=encoded), latent), by_text)
    other = [[encoded[0][0] + 0.3, {}]]
    assert not torch.equal(run(guider_of(model, clip, target=other), latent), by_text)


def test_samplers_of_other_guiders_and_guiders_of_other_samplers_are_refused(unet):
    model, clip = unet
    plain = comfy.samplers.CFGGuider(model)
    plain.set_conds([[clip.embedded("a"), {}]], [[clip.embedded("b"), {}]])
    for node, name in ((VirtualInversionSampler.execute(), "Virtual"), (DdimInversionSampler.execute(1), "DDIM")):
        with pytest.raises(ValueError, match=f"{name} Inversion Sampler: the guider is a CFGGuider: connect Edit"):
            run(plain, latents(1, 4, 8, 8), node.result[0])
    with pytest.raises(ValueError, match="Edit Guider: this sampler has no source branch: connect Virtual"):
        run(guider_of(model, clip), latents(1, 4, 8, 8), comfy.samplers.sampler_object("euler"))


@pytest.mark.parametrize(
    ("options", "latent", "sigmas", "message"),
    [
        ({}, torch.zeros(1, 4, 8, 8), None, "Virtual Inversion Sampler: the latent_image is empty: connect the photo"),
        ({}, torch.ones(1, 4, 8, 8), torch.tensor([5.0, 1.0]), "noise levels go from 5 to 1: .* that end at 0"),
        ({"cross_fraction": 1.5}, None, None, "Edit Guider: cross_fraction is 1.5"),
        ({"attention": "replace"}, None, None, "Edit Guider: the source prompt has 7 words and the target prompt 8"),
        ({"word_weights": "bird=2"}, None, None, "Edit Guider: the word 'bird' is not in the prompt. Its words are: a"),
        ({"word_weights": "dog:2"}, None, None, "word_weights has the entry 'dog:2': write word=number"),
        ({"word_weights": "dog=2", "cross_fraction": 0.0}, None, None,
         "word_weights act in the steps of cross_fraction, which is 0"),
        ({"texts": (TEXTS[0], " "), "target": [[torch.ones(1, 77, CONTEXT), {}]]}, None, None,
         "Edit Guider: target is connected and target_text is empty: write the same text there"),
        ({"target": [[torch.ones(1, 50, CONTEXT), {}]]}, torch.ones(1, 4, 8, 8), None,
         "Edit Guider: the target conditioning has 50 tokens, target_text has 77: encode the same text"),
        ({"target": [[torch.ones(1, 77, CONTEXT), {"area": (8, 4, 0, 0)}]]}, torch.ones(1, 4, 8, 8), None,
         "Edit Guider: the target conditioning is combined of 1 or bound to an area or mask"),
        ({"source": [[torch.ones(1, 77, CONTEXT), {"start_percent": 0.5}]]}, torch.ones(1, 4, 8, 8), None,
         "Edit Guider: the source conditioning is bound to a range of timesteps"),
        ({"target": [[torch.ones(1, 77, CONTEXT), {"end_percent": 0.5}]]}, torch.ones(1, 4, 8, 8), None,
         "Edit Guider: the target conditioning is bound to a range of timesteps"),
        ({"source": [[torch.ones(1, 77, CONTEXT), {}]] * 2}, torch.ones(1, 4, 8, 8), None,
         "Edit Guider: the source conditioning is combined of 2"),
        ({"source": [[torch.ones(1, 77, CONTEXT), {"gligen": ("position", None, [])}]]}, torch.ones(1, 4, 8, 8), None,
         "Edit Guider: the source conditioning has a gligen of its own"),
    ],
)  # fmt: skip
def test_bad_input_is_a_message_that_names_the_node(unet, options, latent, sigmas, message):
    with pytest.raises(ValueError, match=message):
        run(guider_of(*unet, **options), latent, sigmas=sigmas)


def test_clip_that_is_missing(unet):
    with pytest.raises(ValueError, match="Edit Guider: the clip input is empty"):
        guider_of(unet[0], None)


# ---- Tokens


def test_words_of_comfyuis_prompts():
    clip = StandInClip(CONTEXT)
    read = read_clip_prompt(clip, "a (photograph:1.3) of an antidisestablishmentarianist, in \\(brackets\\)")
    tokens = [token for token, _ in clip.tokenize(read_text(read))["l"][0]]
    assert [name for name, _ in read.words][:2] == ["a", "photograph"]
    assert len(read.positions("antidisestablishmentarianist")) > 1
    assert [read.ids[place] for place in read.positions("brackets")] == [tokens[place] for place in [
        tokens.index(clip.tokenize("brackets")["l"][0][1][0])]]  # fmt: skip
    assert read.length == 77
    long = read_clip_prompt(clip, "word " * 100 + "last")
    assert long.length == 154
    assert len(long.positions("word")) == 100
    assert long.positions("last")[0] > 77
    alone = AttentionControl(AttentionSettings(), read, read).cross
    assert alone.own.max() == 0


def read_text(read):
    return " ".join(name for name, _ in read.words)


def test_guider_is_a_cfg_guider_of_three(unet):
    guider = guider_of(*unet)
    assert isinstance(guider, EditGuider)
    assert set(guider.original_conds) == {"positive", "negative", "source"}
