"""Speed and memory of a LoRA step, ours against the loop of diffusers' examples: python tests/benchmarks/training.py

The other loop is our own minimal restatement of the work that diffusers' text-to-image LoRA examples do in each step:
read and cut the pictures, encode them (VAE in float32) and their captions (text encoders) in the loop, noise, UNet,
backward, clip, AdamW. Ours is the shipped trainer with its cache filled, as from the second epoch on. Both train the
same random weights of real shape, the same adapters (attention, rank 16), the same precision and pictures, each in a
process of its own, taking turns; numbers are medians. On a CPU, SDXL takes a quarter of an hour and some 18 GB.

--readme writes the table into README.md; --sizes tiny sd15 sdxl chooses.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from report import load_pack, reset_resident_peak, resident_peak, write_into_readme

WARM_UP = 2
LOADERS = 2
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


@dataclass(frozen=True)
class Size:
    """What is measured on one kind of device; resolution in pixels a side, steps are the measured ones."""

    resolution: int
    batch_size: int
    steps: int
    precision: str
    turns: int = 3


SIZES = {
    ("tiny", "cpu"): Size(64, 4, 40, "fp32"),
    ("sd15", "cpu"): Size(256, 1, 4, "fp32"),
    ("sdxl", "cpu"): Size(512, 1, 3, "bf16", turns=1),
    ("tiny", "cuda"): Size(64, 4, 40, "bf16"),
    ("sd15", "cuda"): Size(512, 4, 40, "bf16"),
    ("sdxl", "cuda"): Size(1024, 1, 20, "bf16"),
}
SDXL_UNET = {
    "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE = {"block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
       "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2}  # fmt: skip


def random_base(name: str, folder: Path, device, dtype):
    """A ``BaseModel`` of real shape and random weights, made on ``device``: UNet in ``dtype``, the rest in float32."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler
    from likeness.pipelines.weights import BaseModel
    from tiny_base import make_pipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    family = "sdxl" if name == "sdxl" else "sd1"
    stock = make_pipeline(family, folder)
    tokenizers = [stock.tokenizer, *([stock.tokenizer_2] if family == "sdxl" else [])]
    with torch.device(device):
        if name == "tiny":
            unet, vae, encoders = stock.unet, stock.vae, [stock.text_encoder]
        else:
            unet = random_unet(SDXL_UNET if name == "sdxl" else {"cross_attention_dim": 768}, device, dtype)
            vae = AutoencoderKL(**VAE)
            encoders = [CLIPTextModel(CLIPTextConfig(**CLIP_L))]
        if name == "sdxl":
            encoders.append(CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280)))
    scheduler = DDPMScheduler.from_config(stock.scheduler.config)
    for part in (unet, vae, *encoders):
        part.requires_grad_(False)
    return BaseModel(family, "benchmark", name, None, unet.to(device, dtype), vae.to(device), encoders, tokenizers,
                     scheduler)  # fmt: skip


def random_unet(config: dict, device, dtype):
    """Filled directly in ``dtype``: PyTorch's own initialisation of billions of float32 numbers takes minutes."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config).to(dtype)
    unet = unet.to_empty(device=device)
    for parameter in unet.parameters():
        scale = 1 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.02
        torch.nn.init.uniform_(parameter, -scale, scale)
    return unet


class Meter:
    """Seconds of each step after the warm-up, and the peak of memory from then on."""

    def __init__(self, device: str):
        self.device, self.marks = device, []

    def mark(self) -> None:
        """A step has ended."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())
        if len(self.marks) == WARM_UP:
            torch.cuda.reset_peak_memory_stats() if self.device == "cuda" else reset_resident_peak()

    def result(self) -> dict:
        import torch

        spans = [after - before for before, after in zip(self.marks[WARM_UP - 1 :], self.marks[WARM_UP:], strict=False)]
        memory = torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else resident_peak()
        return {"seconds": statistics.median(spans), "memory": memory}


def settings_of(name: str, folder: Path, device: str, steps: int):
    from tiny_training import tiny_settings, write_portraits

    size = SIZES[name, device]
    write_portraits(folder / "photos")
    (folder / "base").mkdir()
    return tiny_settings(
        folder, folder / "run", task__resolution=size.resolution, task__bucket_step=size.resolution, task__rank=16,
        task__layers="attention", task__prompts=[], run__steps=steps, run__batch_size=size.batch_size,
        run__save_every=10**6, run__ema_decay=0.0,
        run__precision=size.precision, report__log_every=10,
    )  # fmt: skip


def measure_ours(name: str, device: str) -> dict:
    """The shipped trainer; its steps are marked from outside."""
    import torch
    from likeness.pipelines.training import Trainer, base_model_task
    from likeness.pipelines.training.lora_task import LoraFineTune

    folder = Path(tempfile.mkdtemp())
    settings = settings_of(name, folder, device, WARM_UP + SIZES[name, device].steps)
    loaded = []

    def load(path, dtype, parts, **options):
        if "unet" in parts:
            loaded[0].unet = loaded[0].unet.to(dtype)
        else:
            loaded.append(random_base(name, folder, device, torch.float32))
        return loaded[0]

    base_model_task.load_base_model = load
    meter, trainer = Meter(device), Trainer(LoraFineTune(settings.task), settings, say=lambda text: None)
    after_step, trainer.store.save = trainer._after_step, lambda checkpoint: None
    trainer._after_step = lambda step: (meter.mark(), after_step(step))
    trainer._save = trainer._export = lambda *step: None
    trainer.run()
    return meter.result()


def measure_examples_loop(name: str, device: str) -> dict:
    """What diffusers' examples do in a step, restated."""
    import torch
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from likeness.pipelines.training.image_folder import load_for_bucket, scan_folder
    from likeness.pipelines.training.lora import add_lora
    from likeness.pipelines.training.settings import DTYPES, mixed_precision

    folder, size = Path(tempfile.mkdtemp()), SIZES[name, device]
    settings = settings_of(name, folder, device, WARM_UP + size.steps)
    dtype = DTYPES[size.precision]
    accelerator = Accelerator(mixed_precision=mixed_precision(size.precision))
    base = random_base(name, folder, device, dtype)
    base.text_encoders = [encoder.to(dtype) for encoder in base.text_encoders]
    add_lora(base.unet, "attention", 16, 16.0, 0)
    parameters = [value for value in base.unet.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    schedule = get_scheduler("constant", optimizer)
    side = (settings.task.resolution,) * 2

    class Pictures(torch.utils.data.Dataset):
        found = scan_folder(folder / "photos").pictures

        def __len__(self):
            return 10**6

        def __getitem__(self, index):
            picture = self.found[index % len(self.found)]
            return load_for_bucket(picture.path, side)[0] * 2 - 1, picture.caption

    loader = torch.utils.data.DataLoader(Pictures(), batch_size=size.batch_size, num_workers=LOADERS)
    unet, optimizer, loader, schedule = accelerator.prepare(base.unet, optimizer, loader, schedule)
    meter = Meter(device)
    for step, (pixels, captions) in enumerate(loader):
        latents = base.vae.encode(pixels.float()).latent_dist.sample() * base.vae.config.scaling_factor
        conditions = base.encode_prompts(list(captions))
        added = None
        if "pooled" in conditions:
            ids = torch.tensor([[*side, 0, 0, *side]] * len(latents), device=device, dtype=dtype)
            added = {"text_embeds": conditions["pooled"], "time_ids": ids}
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device)
        noisy = base.scheduler.add_noise(latents, noise, timesteps).to(dtype)
        prediction = unet(noisy, timesteps, conditions["prompt"], added_cond_kwargs=added, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
        accelerator.gather(loss.repeat(len(latents))).mean().item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        meter.mark()
        if step + 1 == WARM_UP + size.steps:
            break
    return meter.result()


MEASURES = {"ours": measure_ours, "examples": measure_examples_loop}


def in_own_process(which: str, name: str, device: str) -> dict:
    command = [sys.executable, __file__, "--measure", which, name, device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, device: str) -> str:
    size, results = SIZES[name, device], {"ours": [], "examples": []}
    for _ in range(size.turns):
        for which, collected in results.items():
            collected.append(in_own_process(which, name, device))
    speed = {which: statistics.median(size.batch_size / r["seconds"] for r in rs) for which, rs in results.items()}
    memory = {which: statistics.median(r["memory"] for r in rs) for which, rs in results.items()}
    pairs = zip(results["examples"], results["ours"], strict=True)
    ratio = statistics.median(theirs["seconds"] / ours["seconds"] for theirs, ours in pairs)
    pictures = f"{size.resolution}x{size.resolution}, batch {size.batch_size}, {size.precision}"
    return (
        f"| {device} | {name} | {pictures} | {speed['examples']:.3g} images/s | {speed['ours']:.3g} images/s | "
        f"{ratio:.2f}x | {memory['examples']:.0f} MiB | {memory['ours']:.0f} MiB |"
    )


def table(names: list[str]) -> str:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = ["| device | model | pictures | examples' loop | ours | faster | memory, examples' loop | memory, ours |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in names:
        lines.append(row(name, device))
        print(lines[-1], flush=True)
    where = torch.cuda.get_device_name() if device == "cuda" else "no GPU was present"
    lines += ["", f"{torch.get_num_threads()} CPU threads ({platform.machine()}), {where}; torch {torch.__version__}; "
              "median of the turns (3; SDXL on a CPU 1); memory is that of the "
              f"{'GPU' if device == 'cuda' else 'whole process'}."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(name for name, _ in SIZES))
    parser.add_argument("--sizes", nargs="*", choices=names, default=names)
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    load_pack()
    if options.measure:
        which, name, device = options.measure
        print(json.dumps(MEASURES[which](name, device)))
        return
    text = table(options.sizes)
    print(f"\n{text}")
    if options.readme:
        write_into_readme("training", text)


if __name__ == "__main__":
    main()
