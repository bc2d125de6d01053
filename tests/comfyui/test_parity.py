"""The same weights, seed and noise give the same latents in ComfyUI and in our diffusers pipeline, guided or not."""

import comfy.model_management
import comfy.samplers
import comfy.sd
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from likeness.nodes.scores import StructureScore
from likeness.nodes.spl import StructureGuidanceNode, StructureRefine
from likeness.pipelines.spl import StructureSettings, preserve_structure
from likeness.pipelines.spl.guidance import StructureGuidance
from likeness.pipelines.spl.pipeline import StructureGuidedImg2ImgPipeline
from test_structure_guidance import photo
from tiny_models import TinySD15, fill

STEPS, CONTEXT = 6, 64


@pytest.fixture(scope="module")
def pipeline():
    """SD1.5's architecture in diffusers' classes, 32 channels wide, seeded weights."""
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128), layers_per_block=2, attention_head_dim=8, cross_attention_dim=CONTEXT,
        sample_size=16, norm_num_groups=32,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64), layers_per_block=2, latent_channels=4, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215,
    )  # fmt: skip
    for seed, model in enumerate((unet, vae)):
        fill(model, seed)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    return StructureGuidedImg2ImgPipeline(vae, None, None, unet.eval(), scheduler)


@pytest.fixture(scope="module")
def in_comfyui(pipeline):
    """The same weights as MODEL and VAE, through ComfyUI's own conversion from diffusers' names."""
    import comfy.model_patcher
    import comfy.utils

    config = TinySD15({
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
        "use_linear_in_transformer": False, "context_dim": CONTEXT, "use_spatial_transformer": True, "legacy": False,
        "adm_in_channels": None, "use_temporal_attention": False,
    })  # fmt: skip
    config.unet_config["num_heads"] = 8
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    weights = pipeline.unet.state_dict()
    model.diffusion_model.load_state_dict({new: weights[old] for old, new in names.items() if old in weights})
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)
    config = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
              "ch_mult": [1, 1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    from comfy import diffusers_convert

    vae_weights = diffusers_convert.convert_vae_state_dict(dict(pipeline.vae.state_dict()))
    vae = comfy.sd.VAE(sd=vae_weights, config={"params": {"embed_dim": 4, "ddconfig": config}}, dtype=torch.float32)
    return patcher, vae


def both_hosts(pipeline, in_comfyui, cfg, guided):
    """Final latents of six Euler steps from one noise, in both hosts, in the model's latent scale."""
    patcher, vae = in_comfyui
    generator = torch.Generator().manual_seed(7)
    embeddings = [torch.randn(1, 77, CONTEXT, generator=generator) for _ in range(2)]
    source, settings = photo(128, 128), StructureSettings(iterations=25)
    noise = torch.randn(1, 4, 16, 16, generator=generator)

    # Image-to-image, denoise 0.6; at the very top of the schedule ComfyUI adds slightly more noise on purpose.
    schedule = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "karras", 10)
    sigmas = schedule[-STEPS - 1 :]
    model = patcher
    if guided:
        model = StructureGuidanceNode.execute(patcher, vae, source, 0.5, 10000.0, True, 25).result[0]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[embeddings[1], {}]], [[embeddings[0], {}]])
    guider.set_cfg(cfg)
    clean = vae.encode(source)
    sampler = comfy.samplers.ksampler("euler")
    ours = guider.sample(noise, clean, sampler, sigmas, disable_pbar=True, seed=0)

    picture = source.movedim(-1, 1)
    start = pipeline.encode(picture) + noise * sigmas[0]
    sampling = patcher.get_model_object("model_sampling")
    timesteps = [sampling.timestep(sigma).float() for sigma in sigmas[:-1]]
    guidance = None
    if guided:
        reference = pipeline.decode(pipeline.encode(picture))
        guidance = StructureGuidance(reference, sigmas.tolist(), settings, 0.5)
    with torch.no_grad():
        theirs = pipeline.sample(start, sigmas, timesteps, embeddings, cfg, guidance)
    return ours * pipeline.vae.config.scaling_factor, theirs


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("guided", [False, True])
def test_latents_agree(pipeline, in_comfyui, cfg, guided):
    ours, theirs = both_hosts(pipeline, in_comfyui, cfg, guided)
    assert ours.std() > 0.01
    assert (ours - theirs).abs().max() <= 1e-4 * max(1.0, theirs.abs().max().item())


def test_guidance_changes_the_latents(pipeline, in_comfyui):
    (plain, _), (guided, _) = (both_hosts(pipeline, in_comfyui, 1.0, value) for value in (False, True))
    assert (plain - guided).abs().max() > 0.1


def test_refine_node_equals_the_pipeline_function():
    source = photo(90, 120, batch=2)
    edited = (source * 0.5 + 0.4 * torch.rand(source.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    mask = torch.zeros(1, 90, 120)
    mask[:, 20:70, 30:90] = 1
    options = {"mask": mask, "color_weight": 800.0, "mask_dilation": 3}
    node = StructureRefine.execute(edited, source, 5000.0, True, 30, **options).result[0]
    settings = StructureSettings(structure_weight=5000.0, color_weight=800.0, iterations=30, mask_dilation=3)
    ours = preserve_structure(edited.movedim(-1, 1), source.movedim(-1, 1), mask, settings).movedim(1, -1)
    assert node.shape == edited.shape
    assert torch.equal(node, ours)


@pytest.mark.parametrize("size", [(90, 67), (75, 64), (64, 120)])
def test_the_source_is_cut_as_vae_encode_cut_it(in_comfyui, size):
    vae, source = in_comfyui[1], photo(*size)
    cut = vae.vae_encode_crop_pixels(source)
    edited, mask = cut.flip(-1), torch.zeros(1, *size)
    mask[:, :40] = 1
    cut_mask = vae.vae_encode_crop_pixels(mask[..., None].expand(-1, -1, -1, 3))[..., 0]
    made, wanted = (
        StructureRefine.execute(edited, one, 5000.0, True, 10, mask=region).result[0]
        for one, region in ((source, mask), (cut, cut_mask))
    )
    assert torch.equal(made, wanted)
    assert StructureScore.execute(edited, source).result[0] == StructureScore.execute(edited, cut).result[0]
    other = photo(size[0] + 1, 8 * size[1])
    with pytest.raises(ValueError, match="they are compared pixel by pixel"):
        StructureRefine.execute(edited, other, 5000.0, True, 10)


def test_one_source_refines_a_batch_picture_by_picture():
    source, edited = photo(40, 56), torch.rand(3, 40, 56, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(1))
    batch = StructureRefine.execute(edited, source, 5000.0, True, 10, mask=mask).result[0]
    for number in range(3):
        alone = StructureRefine.execute(edited[number, None], source, 5000.0, True, 10, mask=mask[number, None])
        assert torch.equal(batch[number, None], alone.result[0])
