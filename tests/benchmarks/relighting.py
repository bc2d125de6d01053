"""What relighting costs on top of plain text-to-image, and what the cache saves in training: relighting.py

    python tests/benchmarks/relighting.py [--side 1024] [--training-side 512] [--readme]

A model of KOALA-700M's size with random weights, once with its four channels and once with nine and a merged adapter.
The parts of a picture are timed in turns and added up, because a whole one takes an hour on a CPU: a call of the UNet,
encoding and decoding by the VAE, the mask. A training step is timed with everything encoded beforehand, as the trainer
has it, and with input, target and prompt encoded in the step, as loops without a cache have it.
"""

import argparse
import platform
import statistics
import time

import torch
from report import load_pack, write_into_readme
from training import CLIP_G, CLIP_L, SDXL_UNET, VAE, random_unet

KOALA_700M = {**SDXL_UNET, "layers_per_block": 1, "transformer_layers_per_block": (1, 2, 5), "mid_block_type": None}
STEPS = 25


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def in_turns(actions: dict, device: str, repeats: int) -> dict[str, float]:
    """Median seconds of each action; they take turns, of which the first does not count where there are more."""
    taken = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            wait(device)
            start = time.perf_counter()
            action()
            wait(device)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:] or times) for name, times in taken.items()}


def adapted_unet(device: str, dtype: torch.dtype):
    """KOALA-700M's size with nine channels; only its values are random, so a merged adapter is in them."""
    from likeness.pipelines.idetail.adapter import train_conv_in

    unet = random_unet(KOALA_700M, device, dtype)
    train_conv_in(unet)
    unet.conv_in = unet.conv_in.plain(dtype).to(device)
    return unet


def conditions(count: int, side: int, device: str, dtype: torch.dtype) -> dict:
    pooled, ids = torch.randn(count, 1280, device=device, dtype=dtype), [side, side, 0, 0, side, side]
    time_ids = torch.tensor([ids] * count, device=device, dtype=dtype)
    return {"encoder_hidden_states": torch.randn(count, 77, 2048, device=device, dtype=dtype),
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}  # fmt: skip


@torch.no_grad()
def inference(side: int, device: str, dtype: torch.dtype, repeats: int) -> str:
    """One line: seconds of a picture, plain and relit."""
    from diffusers import AutoencoderKL
    from likeness.pipelines.idetail.conditioning import latent_mask, relight_input

    cells = side // 8
    plain, relit = random_unet(KOALA_700M, device, dtype), adapted_unet(device, dtype)
    with torch.device(device):
        vae = AutoencoderKL(**VAE).to(dtype).eval()
    given = conditions(1, side, device, dtype)
    photo = torch.rand(1, 3, side, side, device=device, dtype=dtype)
    mask = torch.rand(1, 1, side, side, device=device)
    latent = torch.randn(1, 4, cells, cells, device=device, dtype=dtype)
    small = latent_mask(mask, (cells, cells))
    step = torch.tensor(500, device=device)
    parts = in_turns({
        "plain": lambda: plain(latent, step, **given),
        "relit": lambda: relit(relight_input(latent, small, latent), step, **given),
    }, device, repeats)  # fmt: skip
    parts |= in_turns({
        "encode": lambda: vae.encode(photo * 2 - 1).latent_dist.mode(),
        "mask": lambda: latent_mask(mask, (cells, cells)),
        "decode": lambda: vae.decode(latent).sample,
    }, device, min(repeats, 1))  # fmt: skip
    before = 2 * STEPS * parts["plain"] + parts["decode"]
    after = 2 * STEPS * parts["relit"] + parts["encode"] + parts["mask"] + parts["decode"]
    told = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in parts.items())
    return (
        f"Relighting at {side}x{side}, {STEPS} steps with guidance: {after:.4g} s a picture, the plain text-to-image "
        f"run of the same model {before:.4g} s: {100 * (after / before - 1):.1f} % on top (a call or part each: "
        f"{told})."
    )


def training(side: int, device: str, dtype: torch.dtype, repeats: int) -> str:
    """One line: seconds of a training step, with and without the cache."""
    from diffusers import AutoencoderKL, DDPMScheduler
    from likeness.pipelines.idetail.adapter import train_conv_in
    from likeness.pipelines.idetail.conditioning import latent_mask, relight_input
    from likeness.pipelines.idetail.losses import LossWeights, estimate_clean, relight_losses
    from likeness.pipelines.training.lora import add_lora
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    cells = side // 8
    unet = random_unet(KOALA_700M, device, dtype)
    train_conv_in(unet)
    add_lora(unet, "idetail", 32, 32.0, 0)
    trained = [value for value in unet.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    with torch.device(device):
        vae = AutoencoderKL(**VAE).eval().requires_grad_(False)
        encoders = [CLIPTextModel(CLIPTextConfig(**CLIP_L)).to(dtype),
                    CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280)).to(dtype)]  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    photos = torch.rand(2, 3, side, side, device=device)
    mask, tokens = torch.rand(1, 1, side, side, device=device), torch.randint(0, 49000, (1, 77), device=device)
    kept = {
        "latents": torch.randn(2, 4, cells, cells, device=device), "mask": latent_mask(mask, (cells, cells)),
        **conditions(1, side, device, dtype),
    }  # fmt: skip

    @torch.no_grad()
    def encode() -> dict:
        latents = torch.cat([vae.encode(photo[None] * 2 - 1).latent_dist.sample() for photo in photos])
        outputs = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
        prompt = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return {**kept, "latents": latents, "mask": latent_mask(mask, (cells, cells)), "encoder_hidden_states": prompt}

    def step(batch: dict) -> None:
        source, target = batch["latents"].chunk(2)
        noise, at = torch.randn_like(target), torch.randint(0, 1000, (1,), device=device)
        noisy = scheduler.add_noise(target, noise, at)
        seen = relight_input(noisy, batch["mask"], source).to(dtype)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            made = unet(seen, at, batch["encoder_hidden_states"], added_cond_kwargs=batch["added_cond_kwargs"]).sample
        clean = estimate_clean(noisy, made, scheduler.alphas_cumprod.to(device)[at])
        sum(relight_losses(made, noise, clean, source, target, batch["mask"], LossWeights()).values()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    taken = in_turns({"cached": lambda: step(kept), "in the loop": lambda: step(encode())}, device, repeats)
    return (
        f"A training step at {side}x{side}, batch 1, rank 32: {taken['cached']:.3g} s with the cache, "
        f"{taken['in the loop']:.3g} s with pictures and prompt encoded in the loop: "
        f"{taken['in the loop'] / taken['cached']:.2f}x."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="pixels of relit pictures (default: 1024)")
    parser.add_argument("--training-side", type=int, default=512, help="pixels in training (default: 512)")
    parser.add_argument("--repeats", type=int, default=1,
                        help="turns that count, after one that does not; 0: a single turn (default: 1)")  # fmt: skip
    parser.add_argument("--readme", action="store_true", help="write the result into README.md")
    options = parser.parse_args()
    load_pack()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    lines = [inference(options.side, device, dtype, options.repeats)]
    print(lines[0], flush=True)
    lines.append(training(options.training_side, device, dtype, options.repeats))
    print(lines[1], flush=True)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads, no GPU"
    lines.append(f"Random weights of KOALA-700M's size in {str(dtype).removeprefix('torch.')}; {where} "
                 f"({platform.machine()}); torch {torch.__version__}.")  # fmt: skip
    if options.readme:
        write_into_readme("relighting", "\n\n".join(lines))


if __name__ == "__main__":
    main()
