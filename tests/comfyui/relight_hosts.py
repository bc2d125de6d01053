"""A base model in ComfyUI and in our diffusers pipeline, with a random adapter of IDetail, for tests."""

import copy

import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
import torch
from likeness.nodes.idetail import RelightConditioning, RelightLoraLoader
from likeness.nodes.models import load_embedded
from likeness.pipelines.embedded import SHIPPED
from likeness.pipelines.embedded.family import load_family
from likeness.pipelines.idetail.adapter import ORDER, conv_in_tensors
from likeness.pipelines.idetail.conditioning import ORDERS
from likeness.pipelines.idetail.pipeline import RelightPipeline
from likeness.pipelines.training.lora import kohya_tensors, merge_kohya, target_layers
from likeness.pipelines.weights import load_base_model
from safetensors.torch import load_file, save_file
from test_weights import Checkpoint
from tiny_models import CPU, FULL_VAE

import nodes as comfyui_nodes

PROMPTS, NEGATIVE, STEPS = ["a portrait of a <c> at golden hour", "a <c> in red and blue light"], "a blurry person", 4


def random_lora(unet, draw, dtype=torch.float32, rank=4) -> dict[str, torch.Tensor]:
    """A LoRA on IDetail's layers as training exports it."""
    weights = {}
    for layer in target_layers(unet, "idetail"):
        shape = unet.get_submodule(layer).weight.shape
        down, up = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
        weights[f"{layer}.lora.down.weight"] = torch.randn(down, generator=draw) / shape[1:].numel() ** 0.5
        weights[f"{layer}.lora.up.weight"] = 0.3 * torch.randn(up, generator=draw) / rank**0.5
    return kohya_tensors(weights, rank / 2, dtype)


def random_conv_in(unet, draw) -> dict[str, torch.Tensor]:
    """A first convolution of nine channels as training exports it."""
    shape = unet.conv_in.weight.shape
    change = 0.1 * torch.randn(shape[0], 2 * shape[1] + 1, *shape[2:], generator=draw)
    return conv_in_tensors(change, 0.1 * torch.randn(shape[0], generator=draw))


def write_adapter(unet, folder) -> None:
    """The three files that idetail-lora exports, with random values, and a LoRA of somebody else."""
    draw = torch.Generator().manual_seed(0)
    first, lora, other = random_conv_in(unet, draw), random_lora(unet, draw), random_lora(unet, draw)
    name, whole = folder.name, {**first, **lora}
    for suffix, tensors in {"": whole, "_conv_in": first, "_lora": lora}.items():
        save_file(tensors, folder / f"{name}{suffix}.safetensors", metadata={ORDER: ORDERS[0]})
    save_file(whole, folder / f"{name}_turned.safetensors", metadata={ORDER: ORDERS[1]})
    save_file(other, folder / f"{name}_other.safetensors")
    folder_paths.add_model_folder_path("loras", str(folder))


class Host:
    """One base model in both hosts, and the files of a random adapter for it in ComfyUI's folder of LoRAs."""

    def __init__(self, name, base, model, vae, encode, folder):
        self.name, self.base, self.model, self.vae, self.encode = name, base, model, vae, encode
        # ComfyUI finds files by their names alone, and another test has an sdxl.safetensors.
        self.folder = folder / f"relight_{name}"
        self.folder.mkdir()
        write_adapter(base.unet, self.folder)

    def file(self, suffix: str = "") -> str:
        return f"{self.folder.name}{suffix}.safetensors"

    def by_stock_loader(self, suffix: str = "", strength: float = 1.0, model=None):
        loader = comfyui_nodes.LoraLoaderModelOnly()
        return loader.load_lora_model_only(model or self.model, self.file(suffix), strength)[0]

    def by_our_loader(self, suffix: str = "", strength: float = 1.0, conv_in_strength: float = 1.0, model=None):
        return RelightLoraLoader.execute(model or self.model, self.file(suffix), strength, conv_in_strength).result[0]

    def conditioned(self, model, pictures, masks, prompts=PROMPTS):
        return RelightConditioning.execute(
            model, self.encode(prompts), self.encode([NEGATIVE]), self.vae, pictures, masks
        ).result

    def sample(self, model, positive, negative, latent, cfg=1.0, seed=3):
        """(latents in the model's scale, noise levels, noise), from the top of the schedule."""
        noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(seed))
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", STEPS)
        found = comfy.sample.sample_custom(
            model, noise, cfg, comfy.samplers.sampler_object("euler"), sigmas, positive, negative, latent["samples"],
            seed=0, disable_pbar=True,
        )  # fmt: skip
        return model.get_model_object("latent_format").process_in(found), sigmas, noise

    def relit(self, model, pictures, masks, prompts=PROMPTS, cfg=1.0):
        return self.sample(model, *self.conditioned(model, pictures, masks, prompts), cfg)[0]

    def pipeline(self, strength: float = 1.0, other: bool = False) -> "OnGivenLevels":
        base = copy.copy(self.base)
        base.unet = copy.deepcopy(self.base.unet)
        made = OnGivenLevels.from_base(base, self.folder / self.file(), strength)
        if other:
            merge_kohya(made.unet, load_file(self.folder / self.file("_other")))
        return made


class OnGivenLevels(RelightPipeline):
    """The pipeline on ComfyUI's noise levels, which keeps its latents."""

    def on(self, sigmas, sampling):
        self.levels, self.steps = sigmas, [sampling.timestep(sigma).float() for sigma in sigmas[:-1]]
        return self

    def sample(self, x, sigmas, timesteps, *rest):
        noise = x / (sigmas[0] ** 2 + 1).sqrt()
        start = noise * (self.levels[0] ** 2 + 1).sqrt()
        self.latents = super().sample(start, self.levels, self.steps, *rest)
        return self.latents


def embedded(folder) -> Host:
    model, clip, vae, _ = load_embedded(SHIPPED)

    def encode(texts):
        return [[torch.cat([clip.encode_from_tokens(clip.tokenize(text)) for text in texts]), {}]]

    return Host("embedded", load_family().base, model, vae, encode, folder)


def sdxl(folder, comfyui_dir) -> Host:
    checkpoint = Checkpoint("koala-700m", folder / "sdxl.ckpt.safetensors")
    base = load_base_model(checkpoint.path, tokenizer=comfyui_dir / "comfy" / "sd1_tokenizer")
    config = {"params": {"embed_dim": 4, "ddconfig": FULL_VAE | {"ch": 32}}}
    vae = comfy.sd.VAE(sd=dict(checkpoint.vae.state_dict()), config=config, dtype=torch.float32)

    def encode(texts):
        tokens = [checkpoint.tokenizer.tokenize_with_weights(text) for text in texts]
        rows, pooled = zip(*[checkpoint.clip.encode_token_weights(each)[:2] for each in tokens], strict=True)
        return [[torch.cat(rows), {"pooled_output": torch.cat(pooled)}]]

    model = comfy.model_patcher.ModelPatcher(checkpoint.model.eval(), CPU, CPU)
    return Host("sdxl", base, model, vae, encode, folder)
