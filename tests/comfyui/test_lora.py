"""LoRAs of our trainer in ComfyUI's stock loader: every key is used, and the model changes as it does in diffusers."""

import logging

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import folder_paths
import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from likeness.pipelines.spl.pipeline import StructureGuidedImg2ImgPipeline
from likeness.pipelines.training.lora import kohya_tensors, target_layers
from likeness.pipelines.weights import load_base_model
from likeness.pipelines.weights.architectures import unet_config
from safetensors.torch import load_file
from test_weights import ARCHITECTURES, Checkpoint, comfyui_unet, our_prediction, relative_error
from tiny_models import CPU
from tiny_training import tiny_settings, tiny_trainer, write_portraits

PROMPTS = ["a face", ""]


class Trained:
    """A small single-file checkpoint as ComfyUI writes it, and a LoRA on all of its layers, trained from that file."""

    def __init__(self, name: str, folder, tokenizer):
        self.checkpoint = Checkpoint(name, folder / "base.safetensors")
        write_portraits(folder / "photos", 4)
        changes = {
            "task__model": str(folder / "base.safetensors"), "task__tokenizer": str(tokenizer), "task__resolution": 64,
            "task__bucket_step": 64, "task__prompts": [], "run__steps": 6, "run__ema_decay": 0.0, "run__name": name,
            "optimizer__learning_rate": 1e-2, "optimizer__schedule": "constant",
        }  # fmt: skip
        self.trainer = tiny_trainer(tiny_settings(folder, folder / "run", **changes))
        assert self.trainer.run()
        self.file = folder / "run" / f"{name}.safetensors"
        self.patcher = comfy.model_patcher.ModelPatcher(self.checkpoint.model.eval(), CPU, CPU)

    def in_comfyui(self, strength: float):
        """The MODEL that the node Load LoRA (model only) gives."""
        import nodes as comfyui_nodes

        folder_paths.add_model_folder_path("loras", str(self.file.parent))
        return comfyui_nodes.LoraLoaderModelOnly().load_lora_model_only(self.patcher, self.file.name, strength)[0]

    def merged(self) -> UNet2DConditionModel:
        """The base UNet of diffusers with the file's products added to its weights by hand."""
        unet = load_base_model(self.checkpoint.path, parts=("unet",)).unet
        lora = load_file(self.file)
        for name, module in unet.named_modules():
            key = "lora_unet_" + name.replace(".", "_")
            if f"{key}.alpha" in lora:
                down, up = (lora[f"{key}.lora_{part}.weight"].flatten(1) for part in ("down", "up"))
                module.weight += float(lora[f"{key}.alpha"]) / len(down) * (up @ down).reshape(module.weight.shape)
        return unet


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request, tmp_path_factory, comfyui_dir):
    folder = tmp_path_factory.mktemp(request.param)
    return Trained(request.param, folder, comfyui_dir / "comfy" / "sd1_tokenizer")


@torch.no_grad()
def test_the_stock_loader_uses_every_key_and_the_model_changes_as_the_merged_one(trained, caplog):
    with caplog.at_level(logging.WARNING):
        patched = trained.in_comfyui(1.0)
    assert not [record.message for record in caplog.records], "ComfyUI left keys out"
    layers = {key.split(".")[0] for key in load_file(trained.file)}
    assert len(patched.patches) == len(layers) == len(trained.trainer.trained) // 2

    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 16, 8, generator=generator)
    width = trained.trainer.network.config.cross_attention_dim
    context, pooled = torch.randn(1, 77, width, generator=generator), torch.randn(1, 64, generator=generator)
    plain = trained.checkpoint.predict(x, 421, context, pooled)
    with in_memory(patched):
        changed = trained.checkpoint.predict(x, 421, context, pooled)
    base = trained.trainer.task.base
    base.unet = trained.merged()
    assert relative_error(our_prediction(base, x, 421, context, pooled), changed) < 1e-4
    assert (changed - plain).abs().max() > 0.05 * plain.abs().max()


class in_memory:  # noqa: N801 - a block
    """Block in which the weights of a MODEL are patched."""

    def __init__(self, patcher):
        self.patcher = patcher

    def __enter__(self):
        comfy.model_management.load_models_gpu([self.patcher])

    def __exit__(self, *exception):
        comfy.model_management.unload_all_models()


@torch.no_grad()
@pytest.mark.parametrize("trained", ["sd1"], indirect=True)
def test_the_picture_is_the_one_of_the_merged_diffusers_model(trained):
    """Six Euler steps at cfg 3 from one noise, decoded, with the prompts that the base model's own encoder sees."""
    checkpoint = trained.checkpoint
    positive, negative = (
        checkpoint.clip.encode_token_weights(checkpoint.tokenizer.tokenize_with_weights(text))[0] for text in PROMPTS
    )
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    sampling = trained.patcher.get_model_object("model_sampling")
    # Below the top of the schedule, where ComfyUI adds slightly more noise on purpose.
    sigmas = comfy.samplers.calculate_sigmas(sampling, "karras", 10)[-7:]

    def in_comfyui(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds([[positive, {}]], [[negative, {}]])
        guider.set_cfg(3.0)
        sampler = comfy.samplers.ksampler("euler")
        latent = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
        return picture(checkpoint.vae.decode(latent))

    def picture(decoded):
        return ((decoded + 1) / 2).clamp(0, 1)

    base = trained.trainer.task.base
    scheduler = EulerDiscreteScheduler.from_config(base.scheduler.config)
    pipeline = StructureGuidedImg2ImgPipeline(base.vae, None, None, trained.merged(), scheduler)
    timesteps = [sampling.timestep(sigma).float() for sigma in sigmas[:-1]]
    theirs = picture(base.vae.decode(
        pipeline.sample(noise * sigmas[0], sigmas, timesteps, (negative, positive), 3.0)
        / base.vae.config.scaling_factor
    ).sample)  # fmt: skip
    ours, plain = in_comfyui(trained.in_comfyui(1.0)), in_comfyui(trained.patcher)
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 0.02
    assert ours.std() > 0.01


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_at_real_size_comfyui_knows_a_place_for_every_layer(name, caplog):
    """All layers of the full-size architecture, without memory: names and shapes only."""
    model = comfyui_unet(name, torch.device("meta"))
    shapes = {key: tuple(value.shape) for key, value in model.diffusion_model.state_dict().items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config(shapes))
    weights = {}
    for layer in target_layers(unet, "all"):
        module = unet.get_submodule(layer)
        inside = getattr(module, "in_channels", None) or module.in_features
        outside = module.weight.shape[0]
        kernel = tuple(module.weight.shape[2:])
        weights[f"{layer}.lora.down.weight"] = torch.zeros(1, inside, *kernel)
        weights[f"{layer}.lora.up.weight"] = torch.zeros(outside, 1, *[1] * len(kernel))
    tensors = kohya_tensors(weights, 1.0, torch.float16)
    keys = comfy.lora.model_lora_keys_unet(model, {})
    with caplog.at_level(logging.WARNING):
        patches = comfy.lora.load_lora(tensors, keys)
    assert not [record.message for record in caplog.records]
    matrices = {key for key, shape in shapes.items() if key.endswith(".weight") and len(shape) > 1}
    assert {key.removeprefix("diffusion_model.") for key in patches} == matrices
