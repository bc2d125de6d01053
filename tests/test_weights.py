"""Base models from diffusers folders, what is refused and how it is said, and the hash of weights."""

import json
import logging
import socket

import diffusers
import pytest
import torch
from likeness.pipelines.weights import load_base_model, model_hash
from safetensors.torch import load_file, save_file
from tiny_base import VOCABULARY, make_pipeline, text_encoder, write_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def stock(request, tmp_path_factory):
    """(family, stock pipeline, the folder it was saved to)."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = make_pipeline(request.param, folder)
    pipeline.save_pretrained(folder / "base")
    return request.param, pipeline, folder / "base"


@pytest.fixture
def folder(tmp_path):
    """A good SD1.x folder to break."""
    make_pipeline("sd1", tmp_path).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@torch.no_grad()
def test_a_folder_gives_the_stock_pipelines_parts_without_network(stock, monkeypatch):
    family, pipeline, folder = stock
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("the network was used"))
    model = load_base_model(folder)
    assert (model.family, model.name, model.licence) == (family, "base", None)
    assert model.prediction_type == ("v_prediction" if family == "sd2" else "epsilon")
    assert model.architecture == {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2-768-v",
                                  "sdxl": "stable-diffusion-xl-v1-base"}[family]  # fmt: skip
    encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if family == "sdxl" else [])]
    ours = [model.unet, model.vae, *model.text_encoders]
    for mine, theirs in zip(ours, [pipeline.unet, pipeline.vae, *encoders], strict=True):
        assert not mine.training
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    schedule = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    torch.testing.assert_close(model.scheduler.alphas_cumprod, schedule.alphas_cumprod)


@torch.no_grad()
def test_prompts_are_encoded_as_the_stock_pipeline_does(stock):
    family, pipeline, folder = stock
    prompts = ["a face, red hair!", "", "light " * 40]
    ours = load_base_model(folder, parts=("text",)).encode_prompts(prompts)
    theirs = pipeline.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    torch.testing.assert_close(ours["prompt"], theirs[0], rtol=0, atol=1e-6)
    assert ours["prompt"].shape == (3, 77, 72 if family == "sdxl" else 32)
    assert ("pooled" in ours) == (family == "sdxl")
    if family == "sdxl":
        torch.testing.assert_close(ours["pooled"], theirs[2], rtol=0, atol=1e-6)


def test_a_prompt_that_is_too_long_is_named_once(stock, caplog):
    model = load_base_model(stock[2], parts=("text",))
    with caplog.at_level(logging.WARNING):
        model.encode_prompts(["short", "light " * 40])
    messages = [record.getMessage() for record in caplog.records if record.name.endswith("weights.prompts")]
    assert len(messages) == 1 and "202 tokens and 77 fit: 'light light" in messages[0]


def test_text_encoders_saved_by_every_version_of_transformers_are_read(folder):
    """Version 5.6 took the level text_model out of the names, and tokenizers may be one file or two."""
    truth = load_base_model(folder, parts=("text",))

    def rename(weights):
        for key in list(weights):
            other = key.removeprefix("text_model.") if key.startswith("text_model.") else f"text_model.{key}"
            weights[other] = weights.pop(key)

    edit_weights(folder, "text_encoder", rename)
    edit_json(folder / "text_encoder" / "config.json", dtype="float16", torch_dtype="float16")
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    for name in ("vocab.json", "merges.txt"):
        (folder.parent / "letters" / name).rename(folder / "tokenizer" / name)
    ours = load_base_model(folder, parts=("text",))
    assert model_hash(ours.text_encoders[0]) == model_hash(truth.text_encoders[0])
    torch.testing.assert_close(ours.encode_prompts(["red hair"]), truth.encode_prompts(["red hair"]))


def test_only_the_parts_asked_for_are_loaded_and_need_be_there(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    model = load_base_model(folder, torch.bfloat16, parts=("unet",))
    assert (model.vae, model.text_encoders, model.tokenizers) == (None, [], [])
    assert model.unet.dtype == torch.bfloat16
    with pytest.raises(ValueError, match='add "text" to parts'):
        model.encode_prompts(["a cat"])
    with pytest.raises(ValueError, match="parts is 'unet': choose"):
        load_base_model(folder, parts="unet")


def test_half_precision_files_are_read(folder):
    for file in list(folder.rglob("*.safetensors")):
        weights = {key: value.half() for key, value in load_file(file).items()}
        save_file(weights, file.with_name(file.stem + ".fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()
    model = load_base_model(folder)
    assert {model.unet.dtype, model.vae.dtype, model.text_encoders[0].dtype} == {torch.float32}


@pytest.mark.parametrize(
    "front, licence",
    [
        ("license: creativeml-openrail-m\ntags: [a]", "creativeml-openrail-m"),
        ('license: "mit"', "mit"),
        ("license: other\nlicense_name: etri", "etri"),
        ("tags: [a]\n", None),
    ],
)
def test_the_licence_of_the_model_card(folder, front, licence):
    (folder / "README.md").write_text(f"---\n{front}\n---\n# Model\nlicense: none of this\n")
    assert load_base_model(folder, parts=("vae",)).licence == licence


def remove_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def leave_a_pickle(folder):
    remove_weights(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")


def cut_short(folder):
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_a_shard(folder):
    remove_weights(folder)
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def edit_weights(folder, component, change):
    file = next((folder / component).glob("*.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def edit_json(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def spoil(weights):
    weights["conv_in.weight"][0, 0, 0, 1] = float("nan")


DAMAGES = {
    "no index": (lambda folder: (folder / "model_index.json").unlink(), "is no diffusers folder: give the one"),
    "broken index": (lambda folder: (folder / "model_index.json").write_text("{"), "is no valid JSON"),
    "no weights": (remove_weights, "unet has no diffusion_pytorch_model.safetensors: download the folder again"),
    "only a pickle": (leave_a_pickle, "as a pickle only.*convert it to safetensors"),
    "cut short": (cut_short, "text_encoder cannot be loaded .*: download it again"),
    "missing shard": (drop_a_shard, "unet cannot be loaded .*: download it again"),
    "missing UNet weight": (lambda folder: edit_weights(folder, "unet", lambda weights: weights.pop("conv_in.bias")),
                            "unet lacks 1 weights, conv_in.bias first"),
    "missing text weight": (
        lambda folder: edit_weights(folder, "text_encoder", lambda weights: [
            weights.pop(key) for key in list(weights) if key.endswith("final_layer_norm.weight")]),
        "text_encoder lacks 1 weights, .*final_layer_norm.weight first"),
    "not finite": (lambda folder: edit_weights(folder, "unet", spoil),
                   "UNet2DConditionModel of .*: 1 of the 1152 values of conv_in.weight are NaN"),
    "other shape": (lambda folder: edit_json(folder / "unet" / "config.json", cross_attention_dim=48),
                    "unet cannot be loaded"),
    "other text": (lambda folder: edit_json(folder / "text_encoder" / "config.json", hidden_size=48),
                   "text_encoder cannot be loaded"),
    "no configuration": (lambda folder: (folder / "text_encoder" / "config.json").unlink(),
                         "text_encoder cannot be loaded .*config.json"),
    "another model": (
        lambda folder: edit_json(folder / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        "StableDiffusionPipeline whose text_encoder is T5EncoderModel: supported are"),
    "flow model": (lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text(
                       '{"_class_name": "FlowMatchEulerDiscreteScheduler"}'),
                   "is of FlowMatchEulerDiscreteScheduler, which has no betas"),
    "other prediction": (
        lambda folder: edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="sample"),
        "predicts 'sample': supported are epsilon, v_prediction"),
    "no tokenizer": (lambda folder: [file.unlink() for file in (folder / "tokenizer").glob("*")],
                     "tokenizer is no tokenizer: it needs vocab.json and merges.txt"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_the_mend(folder, damage):
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(ValueError, match=message):
        load_base_model(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    tokenizer = folder / "tokenizer"
    [file.unlink() for file in tokenizer.glob("*")]
    tokenizer.rmdir()
    write_tokenizer(tokenizer)
    vocabulary = {token: index for index, token in enumerate([*VOCABULARY[:-2], "é", *VOCABULARY[-2:]])}
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match="has 191 tokens, its text encoder knows 190"):
        load_base_model(folder)


@pytest.mark.parametrize(
    "keys, message",
    [
        (["lora_unet_down_blocks_0.lora_down.weight"], "is a LoRA"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "is a Flux transformer. Supported are"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "is a Stable Diffusion 3 transformer"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "is one component of a diffusers folder"),
        (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
        (["encoder.conv_in.weight"], r"has no UNet .*it holds encoder.conv_in.weight. Supported are"),
        ([], "it holds nothing"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "its UNet is not built as expected"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path, keys, message):
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(4, 4) for key in keys}, path)
    with pytest.raises(ValueError, match=message):
        load_base_model(path)


def test_files_that_cannot_be_opened_safely_or_at_all_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        load_base_model(tmp_path / "missing.safetensors")
    for name, message in (("model.ckpt", "is no .safetensors file.*Save Checkpoint"), ("a.safetensors", "is damaged")):
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1")
        with pytest.raises(ValueError, match=message):
            load_base_model(tmp_path / name)
    with pytest.raises(ValueError, match="prediction_type is 'v': choose from epsilon, v_prediction"):
        load_base_model(tmp_path, prediction_type="v")


def test_the_hash_is_of_names_shapes_types_and_values():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    known = model_hash(module)
    assert len(known) == 64 and known == model_hash(module)
    assert known == model_hash(torch.nn.Sequential(module[0], module[1]))
    assert known != model_hash(torch.nn.ModuleDict({"a": module[0], "b": module[1]}))
    assert known != model_hash(torch.nn.Sequential(*module).to(torch.float32))
    with torch.no_grad():
        module[0].weight.view(-1).view(torch.int16)[5] ^= 1
    assert known != model_hash(module)


def test_the_hash_does_not_depend_on_the_version_of_transformers():
    encoder = text_encoder()
    wrapped = torch.nn.Module()
    wrapped.text_model = encoder
    if not any(key.startswith("text_model.") for key in encoder.state_dict()):
        assert model_hash(wrapped) == model_hash(encoder)
