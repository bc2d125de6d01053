"""Checkpoints that ComfyUI's own classes make and save, loaded by us: the same model must come out."""

import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_detection
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.text_encoders.sd2_clip
import comfy.utils
import pytest
import torch
from diffusers import UNet2DConditionModel
from likeness.pipelines.weights import load_base_model, model_hash
from likeness.pipelines.weights.architectures import unet_config
from likeness.pipelines.weights.word_vectors import apart, read_word, save_word, spelled_vectors, word_read_as
from safetensors.torch import load_file, save_file
from tiny_models import CPU, FULL_VAE, fill, random_weights

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = "a portrait, golden light"
SD = {
    "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "adm_in_channels": None,
}  # fmt: skip
XL = {"channel_mult": [1, 2, 4], "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential",
      "use_linear_in_transformer": True}  # fmt: skip
KOALA = {**XL, "num_res_blocks": [1] * 3}
# ComfyUI's class, its configuration, family and architecture as we call them, million parameters as published.
ARCHITECTURES = {
    "sd1": (comfy.supported_models.SD15, {**SD, "context_dim": 768, "use_linear_in_transformer": False}, "sd1",
            "stable-diffusion-v1", 859.520964),
    "sd2": (comfy.supported_models.SD20, {**SD, "context_dim": 1024, "use_linear_in_transformer": True}, "sd2",
            "stable-diffusion-v2-512", 865.910724),
    "sdxl": (comfy.supported_models.SDXL,
             {**XL, "num_res_blocks": [2] * 3, "transformer_depth": [0, 0, 2, 2, 10, 10],
              "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10}, "sdxl",
             "stable-diffusion-xl-v1-base", 2567.463684),
    "koala-700m": (comfy.supported_models.KOALA_700M,
                   {**KOALA, "transformer_depth": [0, 2, 5], "transformer_depth_output": [0, 0, 2, 2, 5, 5],
                    "transformer_depth_middle": -2}, "sdxl", "koala-700m-v1", 782.8),
    "koala-1b": (comfy.supported_models.KOALA_1B,
                 {**KOALA, "transformer_depth": [0, 2, 6], "transformer_depth_output": [0, 0, 2, 2, 6, 6],
                  "transformer_depth_middle": 6}, "sdxl", "koala-1b-v1", 1161.0),
}  # fmt: skip
COMMON = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
          "use_temporal_attention": False}  # fmt: skip
TINY_CLIP = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 128, "num_hidden_layers": 3}
CLIPS = {
    "sd1": (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer),
    "sd2": (comfy.text_encoders.sd2_clip.SD2ClipModel, comfy.text_encoders.sd2_clip.SD2Tokenizer),
    "sdxl": (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer),
}


def comfyui_unet(name: str, device, model_type=None, **sizes):
    """ComfyUI's model of an architecture; ``sizes`` replace those of the real one."""
    base, config, *_ = ARCHITECTURES[name]
    config = {**COMMON, "model_channels": 320, **config, **sizes}
    # Also as class attributes, which ComfyUI matches a checkpoint with.
    heads = {"unet_extra_config": base.unet_extra_config}
    model_config = type(base.__name__, (base,), heads)(config)
    model_config.set_inference_dtype(torch.float32, None)
    if model_type is not None:
        model_config.model_type = lambda *args: model_type
    return model_config.get_model({}, device=device)


class Checkpoint:
    """A small model of an architecture from ComfyUI's classes, and the file that ComfyUI's saving code makes of it."""

    def __init__(self, name: str, path, model_type=None):
        self.name, self.path, self.family = name, path, ARCHITECTURES[name][2]
        context, extra = (128, {"adm_in_channels": 1536 + 64}) if self.family == "sdxl" else (64, {})
        # ComfyUI's heads are 64 wide, but for SD1.x, and SD2.x has some at the first level.
        channels = 64 if name == "sd2" else 32
        self.model = comfyui_unet(name, CPU, model_type, model_channels=channels, context_dim=context, **extra)
        self.unet = fill(self.model.diffusion_model, 1).eval()
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(embed_dim=4, ddconfig=FULL_VAE | {"ch": 32})
        self.vae = fill(vae, 2).eval()
        clip_class, tokenizer_class = CLIPS[self.family]
        options = {f"clip_{letter}_model_config": TINY_CLIP for letter in "lgh"}
        self.clip = fill(clip_class(device="cpu", dtype=torch.float32, model_options=options), 3).eval()
        self.tokenizer = tokenizer_class()
        weights = self.model.state_dict_for_saving(
            self.unet.state_dict(), self.clip.state_dict(), dict(self.vae.state_dict())
        )
        save_file({key: value.contiguous() for key, value in weights.items()}, path)

    def predict(self, x, timestep, context, pooled):
        adm = {} if self.family != "sdxl" else {"y": self.model.encode_adm(pooled_output=pooled, width=64, height=48)}
        return self.unet(x, torch.tensor([timestep]), context=context, **adm)


@pytest.fixture(scope="module")
def tokenizer(comfyui_dir):
    return comfyui_dir / "comfy" / "sd1_tokenizer"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    return Checkpoint(request.param, tmp_path_factory.mktemp(request.param) / "base.safetensors")


@pytest.fixture(scope="module")
def loaded(checkpoint, tokenizer):
    return load_base_model(checkpoint.path, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def sd1_file(tmp_path_factory):
    return Checkpoint("sd1", tmp_path_factory.mktemp("sd1") / "base.safetensors").path


@pytest.fixture(scope="module")
def sd2_file(tmp_path_factory):
    return Checkpoint("sd2", tmp_path_factory.mktemp("sd2") / "base.safetensors").path


def relative_error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    assert ours.shape == truth.shape
    assert truth.std() > 1e-3, "a constant output would prove nothing"
    return float((ours - truth).abs().max() / truth.abs().max())


def our_prediction(model, x, timestep, context, pooled):
    added = {}
    if model.family == "sdxl":
        # Height and width, crop, target height and width.
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.tensor([[48.0, 64, 0, 0, 48, 64]])}}
    return model.unet(x, timestep, encoder_hidden_states=context, **added).sample


@torch.no_grad()
def test_the_unet_predicts_what_comfyuis_does(checkpoint, loaded):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 16, 8, generator=generator)
    width = loaded.unet.config.cross_attention_dim
    context, pooled = torch.randn(1, 77, width, generator=generator), torch.randn(1, 64, generator=generator)
    truth = checkpoint.predict(x, 421, context, pooled)
    assert relative_error(our_prediction(loaded, x, 421, context, pooled), truth) < 1e-4


@torch.no_grad()
def test_the_vae_is_comfyuis(checkpoint, loaded):
    image = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(6)) * 2 - 1
    moments = checkpoint.vae.quant_conv(checkpoint.vae.encoder(image))
    assert relative_error(loaded.vae.encode(image).latent_dist.parameters, moments) < 1e-4
    latent = moments[:, :4] / moments.std()
    assert relative_error(loaded.vae.decode(latent).sample, checkpoint.vae.decode(latent)) < 1e-4
    assert loaded.vae.config.scaling_factor == checkpoint.model.latent_format.scale_factor


@torch.no_grad()
@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_prompts_are_encoded_as_comfyui_does(checkpoint, loaded, prompt):
    truth, pooled = checkpoint.clip.encode_token_weights(checkpoint.tokenizer.tokenize_with_weights(prompt))
    ours = loaded.encode_prompts([prompt, "something else"])
    assert relative_error(ours["prompt"][:1], truth) < 1e-4
    assert ("pooled" in ours) == (checkpoint.family == "sdxl")
    if "pooled" in ours:
        assert relative_error(ours["pooled"][:1], pooled) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["a portrait of a <c> at dawn", "a <c>, highly detailed, beside a <c>"])
def test_a_learnt_word_is_an_embedding_of_comfyui(checkpoint, loaded, prompt, tmp_path):
    draw = torch.Generator().manual_seed(8)
    spelled = spelled_vectors(loaded.text_encoders, loaded.tokenizers, "<c>")
    save_word(
        tmp_path / "someone.safetensors", loaded.family,
        [given + given.std() * torch.randn(given.shape, generator=draw) for given in spelled], {},
    )  # fmt: skip
    tokenizer = CLIPS[checkpoint.family][1](embedding_directory=[str(tmp_path)])
    tokens = tokenizer.tokenize_with_weights(prompt.replace("<c>", "embedding:someone"))
    truth, pooled = checkpoint.clip.encode_token_weights(tokens)
    vectors = read_word(tmp_path / "someone.safetensors", loaded.family)
    with word_read_as("<c>", vectors, loaded.text_encoders, loaded.tokenizers):
        ours = loaded.encode_prompts([apart("<c>", prompt)])
    assert relative_error(ours["prompt"], truth) < 1e-4
    if "pooled" in ours:
        assert relative_error(ours["pooled"], pooled) < 1e-4
    assert relative_error(loaded.encode_prompts([prompt])["prompt"], truth) > 1e-2


@torch.no_grad()
def test_the_noise_schedule_is_comfyuis(checkpoint, loaded):
    alphas = loaded.scheduler.alphas_cumprod
    sigmas = checkpoint.model.model_sampling.sigmas
    torch.testing.assert_close(((1 - alphas) / alphas).sqrt(), sigmas, rtol=1e-4, atol=0)


def test_family_and_architecture_are_named(checkpoint, loaded):
    assert (loaded.family, loaded.architecture) == ARCHITECTURES[checkpoint.name][2:4]
    assert (loaded.name, loaded.prediction_type, loaded.licence) == ("base.safetensors", "epsilon", None)


@pytest.mark.parametrize("checkpoint", ["sd2", "koala-700m"], indirect=True)
def test_a_folder_of_the_same_weights_has_the_same_hashes(checkpoint, loaded, tokenizer, tmp_path):
    import diffusers

    kind = {"sdxl": diffusers.StableDiffusionXLPipeline}.get(loaded.family, diffusers.StableDiffusionPipeline)
    parts = {"unet": loaded.unet, "vae": loaded.vae, "scheduler": loaded.scheduler}
    suffixes = ["", "_2"][: len(loaded.text_encoders)]
    for suffix, encoder, tokens in zip(suffixes, loaded.text_encoders, loaded.tokenizers, strict=True):
        parts |= {f"text_encoder{suffix}": encoder, f"tokenizer{suffix}": tokens}
    if loaded.family != "sdxl":
        parts |= {"safety_checker": None, "feature_extractor": None}
    kind(**parts).save_pretrained(tmp_path / "folder")
    again = load_base_model(tmp_path / "folder")
    assert (again.family, again.architecture) == (loaded.family, loaded.architecture)
    modules = zip([again.unet, again.vae, *again.text_encoders], [loaded.unet, loaded.vae, *loaded.text_encoders],
                  strict=True)  # fmt: skip
    assert all(model_hash(a) == model_hash(b) for a, b in modules)
    torch.testing.assert_close(again.encode_prompts([PROMPT]), loaded.encode_prompts([PROMPT]), rtol=0, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_real_checkpoints_shapes_give_the_real_architecture(name):
    """ComfyUI's full-size UNet on no memory: its shapes, read by us, are the diffusers UNet, weight by weight."""
    truth = comfyui_unet(name, torch.device("meta"))
    shapes = {key: tuple(value.shape) for key, value in truth.diffusion_model.state_dict().items()}
    with torch.device("meta"):
        ours = UNet2DConditionModel.from_config(unet_config(shapes))
    weights = ours.state_dict()
    names = comfy.utils.unet_to_diffusers(truth.model_config.unet_config)
    assert {names[key]: tuple(value.shape) for key, value in weights.items()} == shapes
    detected = comfy.model_detection.unet_config_from_diffusers_unet(weights)
    assert isinstance(comfy.model_detection.model_config_from_unet_config(detected), ARCHITECTURES[name][0])
    millions = sum(value.numel() for value in weights.values()) / 1e6
    assert millions == pytest.approx(ARCHITECTURES[name][4], rel=5e-4)


def test_a_velocity_checkpoint_of_sdxl_says_so(tmp_path):
    saved = Checkpoint("koala-700m", tmp_path / "v.safetensors", comfy.model_base.ModelType.V_PREDICTION)
    model = load_base_model(saved.path, parts=("vae",))
    assert (model.prediction_type, model.scheduler.config.rescale_betas_zero_snr) == ("v_prediction", False)
    assert load_base_model(saved.path, parts=("vae",), prediction_type="epsilon").prediction_type == "epsilon"
    zero = load_base_model(changed(saved.path, ztsnr=torch.tensor([])), parts=("vae",))
    assert float(zero.scheduler.alphas_cumprod[-1]) < 1e-6


def changed(path, drop=None, metadata=None, **tensors):
    """A copy of a checkpoint without the keys that begin with ``drop``, and with ``tensors`` for dots as __."""
    weights = {key: value for key, value in load_file(path).items() if drop is None or not key.startswith(drop)}
    weights |= {key.replace("__", "."): value for key, value in tensors.items()}
    save_file(weights, path.with_name("changed.safetensors"), metadata=metadata)
    return path.with_name("changed.safetensors")


@pytest.mark.parametrize("spread, truth", [(0.05, "epsilon"), (0.2, "v_prediction")])
def test_sd2_predicts_what_comfyui_takes_it_for(sd2_file, spread, truth, caplog):
    bias = spread * torch.tensor([1.0, -1] * 32)
    path = changed(sd2_file, model__diffusion_model__output_blocks__11__1__transformer_blocks__0__norm1__bias=bias)
    comfyui = comfy.supported_models.SD20({**COMMON, "in_channels": 4})
    expected = {"epsilon": comfy.model_base.ModelType.EPS, "v_prediction": comfy.model_base.ModelType.V_PREDICTION}
    assert comfyui.model_type(load_file(path), "model.diffusion_model.") == expected[truth]
    with caplog.at_level("INFO"):
        model = load_base_model(path, parts=("vae",))
    assert (model.prediction_type, model.architecture) == (
        truth, {"epsilon": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"}[truth],
    )  # fmt: skip
    assert "Give prediction_type to say otherwise" in caplog.text


def test_metadata_of_a_file_is_believed(sd2_file):
    metadata = {"modelspec.predict_key": "v", "modelspec.license": "OpenRAIL++"}
    model = load_base_model(changed(sd2_file, metadata=metadata), parts=("vae",))
    assert (model.prediction_type, model.licence) == ("v_prediction", "OpenRAIL++")


def test_sd2_text_with_the_layers_of_diffusers_is_whole():
    """23 layers are all that SD2.x needs; checkpoints written from a diffusers folder have no 24th."""
    from likeness.pipelines.weights.single_file import text_layers

    assert [text_layers("sd2", stored) for stored in (24, 23, 3)] == [23, 23, 2]
    assert text_layers("sdxl", 32) == 32


@torch.no_grad()
def test_the_older_layout_of_clip_is_read(sd1_file, tokenizer):
    truth = load_base_model(sd1_file, tokenizer=tokenizer, parts=("text",))
    old = {key.replace("text_model.", ""): value for key, value in load_file(sd1_file).items()}
    old["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77.0)[None]
    save_file(old, sd1_file.with_name("old.safetensors"))
    ours = load_base_model(sd1_file.with_name("old.safetensors"), tokenizer=tokenizer, parts=("text",))
    assert model_hash(ours.text_encoders[0]) == model_hash(truth.text_encoders[0])


def test_inpainting_and_half_precision_checkpoints_are_read(sd1_file):
    wide = {"model__diffusion_model__input_blocks__0__0__weight": torch.rand(32, 9, 3, 3)}
    model = load_base_model(changed(sd1_file, **wide), torch.float16, parts=("unet", "vae"))
    assert model.unet.config.in_channels == 9
    assert {value.dtype for part in (model.unet, model.vae) for value in part.state_dict().values()} == {torch.float16}


@pytest.mark.parametrize(
    "drop, message",
    [
        ("first_stage_model.", "has no VAE: give a full checkpoint"),
        ("cond_stage_model.", "has no text encoder: give"),
        ("model.diffusion_model.out.0.bias", "its UNet is not built as expected .*conv_norm_out.bias"),
        ("first_stage_model.quant_conv.bias", "its VAE is not built as expected .*quant_conv.bias"),
        ("model.diffusion_model.input_blocks.0.0.weight", "has no UNet"),
        ("model.diffusion_model.input_blocks.4.", "its UNet is not built as expected"),
        ("first_stage_model.encoder.", "its VAE is not built as expected .*encoder.conv_in.weight"),
        ("cond_stage_model.transformer.text_model.embeddings.", "its text encoder is not .*token_embedding.weight"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "lacks 1 weights, .*norm.bias"),
    ],
)
def test_a_file_that_lacks_something_is_refused(sd1_file, tokenizer, drop, message):
    with pytest.raises(ValueError, match=message):
        load_base_model(changed(sd1_file, drop=drop), tokenizer=tokenizer)


def test_a_tokenizer_must_be_given(sd1_file, tmp_path):
    with pytest.raises(ValueError, match="give tokenizer = folder with vocab.json and merges.txt"):
        load_base_model(sd1_file)
    with pytest.raises(ValueError, match="is no tokenizer: it needs vocab.json"):
        load_base_model(sd1_file, tokenizer=tmp_path)


@pytest.mark.parametrize("name", ["SSD1B", "Segmind_Vega"])
def test_an_sdxl_of_another_build_is_refused(name, tmp_path):
    """Their blocks differ in depth within a level, which no list of one depth a level can say."""
    depths = {"SSD1B": ([0, 0, 2, 2, 4, 4], [0, 0, 0, 1, 1, 2, 10, 4, 4]),
              "Segmind_Vega": ([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2])}[name]  # fmt: skip
    sizes = {"transformer_depth": depths[0], "transformer_depth_output": depths[1], "transformer_depth_middle": -1}
    model = comfyui_unet("sdxl", CPU, **sizes, model_channels=32, context_dim=128, adm_in_channels=1600)
    weights = {f"model.diffusion_model.{key}": value for key, value in fill(model.diffusion_model).state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="UNet is not built as expected"):
        load_base_model(tmp_path / "model.safetensors", parts=("unet",))


def write_full_size(name: str, path) -> None:
    """A checkpoint of the real sizes with random weights in half precision, as ComfyUI would save it."""
    generator, meta = torch.Generator().manual_seed(0), torch.device("meta")
    model = comfyui_unet(name, meta)
    with meta:
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(embed_dim=4, ddconfig=FULL_VAE)
    clip = CLIPS[ARCHITECTURES[name][2]][0](device="meta", dtype=torch.float16)
    weights = [random_weights(part, "", generator) for part in (model.diffusion_model, clip, vae)]
    weights = model.state_dict_for_saving(*weights)
    save_file({key: value.contiguous() for key, value in weights.items()}, path)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["sd1", "sd2", "koala-700m"])
def test_a_full_size_checkpoint_is_what_comfyuis_loader_makes_of_it(name, tokenizer, tmp_path):
    path = tmp_path / "full.safetensors"
    write_full_size(name, path)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)
    assert isinstance(model.model.model_config, ARCHITECTURES[name][0])
    condition = clip.encode_from_tokens(clip.tokenize(PROMPT), return_dict=True)
    context, pooled = condition["cond"].float(), condition["pooled_output"].float()
    adm = {} if name == "sd1" else {"y": model.model.encode_adm(pooled_output=pooled, width=64, height=48)}
    unet = model.model.diffusion_model.float()
    truth = unet(x, torch.tensor([421]), context=context, **adm)
    del model, clip, unet

    ours = load_base_model(path, tokenizer=tokenizer, parts=("text",)).encode_prompts([PROMPT])
    assert relative_error(ours["prompt"], context) < 1e-3
    ours = load_base_model(path, parts=("unet",))
    assert relative_error(our_prediction(ours, x, 421, context, pooled), truth) < 1e-3
    path.unlink()  # gigabytes, which pytest would keep
