"""What one step of each training shows its network and what it costs, written out from the pictures themselves."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from comfyui_environment import load_script
from likeness.pipelines.configuration import build_settings
from likeness.pipelines.idetail.adapter import conv_in_tensors
from likeness.pipelines.idetail.conditioning import ORDERS, latent_mask
from likeness.pipelines.idetail.task import TrainConvIn, TrainRelight
from likeness.pipelines.training import BatchRandom, preflight, settings_class
from likeness.pipelines.training.image_folder import load_for_bucket
from likeness.pipelines.training.lora import save_lora
from likeness.pipelines.training.lora_task import LoraFineTune
from tiny_base import make_pipeline
from tiny_training import tiny_settings, write_portraits
from torch.nn.functional import cosine_similarity, mse_loss, smooth_l1_loss

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


class Drawn(BatchRandom):
    """Keeps the random numbers that a step draws."""

    def __init__(self, slots: int):
        super().__init__(0, 0, list(range(slots)))
        self.numbers, self.limits = {}, None

    def normal(self, name, shape):
        self.numbers[name] = super().normal(name, shape)
        return self.numbers[name]

    def integers(self, name, low, high):
        self.limits, self.numbers[name] = (low, high), super().integers(name, low, high)
        return self.numbers[name]


class Watched:
    """A network's last call and answer."""

    def __init__(self, network):
        network.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, network, inputs, named, output):
        (self.given, self.timesteps, self.prompt), self.added = inputs, named["added_cond_kwargs"]
        self.output = output[0].detach()


def batch_of(task, examples) -> dict[str, torch.Tensor]:
    """The examples as the trainer stacks them, encoded here and now."""

    def sample(example):
        def load(name):
            source = example.sources[name]
            with task.encoders(source.kind):
                return task.encode(source)

        return task.sample(example, load, torch.Generator().manual_seed(0))

    samples = [sample(example) for example in examples]
    return {name: torch.stack([each[name] for each in samples]) for name in samples[0]}


@torch.no_grad()
def latents(pipe, pictures, draw=None):
    """Scaled latents of pictures [B, 3, H, W] in 0..1; the middle of the posterior where nothing is drawn."""
    found = pipe.vae.encode(2 * pictures - 1).latent_dist
    return pipe.vae.config.scaling_factor * (found.mean if draw is None else found.mean + found.std * draw)


def signal_of(timesteps) -> torch.Tensor:
    """Cumulative alphas [B, 1, 1, 1] of Stable Diffusion's schedule."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    return (1 - roots**2).cumprod(0).float()[timesteps].reshape(-1, 1, 1, 1)


def noised(clean, drawn):
    signal = signal_of(drawn.numbers["timestep"])
    return signal.sqrt() * clean + (1 - signal).sqrt() * drawn.numbers["noise"]


# ---- LoRA


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_step_of_lora_is_denoising_of_the_folders_latents(family, tmp_path):
    pipe = make_pipeline(family, tmp_path)
    pipe.save_pretrained(tmp_path / "base")
    write_portraits(tmp_path / "photos", 4)
    task = LoraFineTune(tiny_settings(tmp_path, tmp_path / "run").task)
    examples = task.scan().examples[1:3]  # both 380 x 200
    unet, drawn = task.load(CPU, torch.float32), Drawn(2)
    seen = Watched(unet)
    loss = task.losses(unet, batch_of(task, examples), drawn)["diffusion"]

    pictures = torch.cat([load_for_bucket(tmp_path / "photos" / f"{number}.png", (32, 32)) for number in (1, 2)])
    clean = latents(pipe, pictures, drawn.numbers["posterior"])
    noisy, noise = noised(clean, drawn), drawn.numbers["noise"]
    torch.testing.assert_close(seen.given, noisy, rtol=1e-4, atol=1e-4)
    assert torch.equal(seen.timesteps, drawn.numbers["timestep"]) and drawn.limits == (0, 1000)
    captions = [f"portrait, number {number}" for number in (1, 2)]
    told = pipe.encode_prompt(captions, CPU, 1, False) if family != "sdxl" else pipe.encode_prompt(
        captions, do_classifier_free_guidance=False)  # fmt: skip
    torch.testing.assert_close(seen.prompt, told[0], rtol=1e-2, atol=1e-2)
    if family == "sdxl":
        torch.testing.assert_close(seen.added["text_embeds"], told[2], rtol=1e-2, atol=1e-2)
        # Height before width: of the file, of what is cut off above (61 x 32 cover the square), of the square.
        assert seen.added["time_ids"].tolist() == [[380, 200, 14, 0, 32, 32]] * 2
    signal = signal_of(drawn.numbers["timestep"])
    target = noise if family != "sd2" else signal.sqrt() * noise - (1 - signal).sqrt() * clean
    assert loss.item() == pytest.approx((seen.output - target).square().mean().item(), rel=1e-3)


def test_captions_are_dropped_and_pictures_mirrored_as_often_as_asked(tmp_path):
    make_pipeline("sd1", tmp_path).save_pretrained(tmp_path / "base")
    write_portraits(tmp_path / "photos", 1)
    task = LoraFineTune(tiny_settings(tmp_path, tmp_path / "run", task__flip=True, task__caption_dropout=0.2).task)
    [example], used = task.scan().examples, []
    for number in range(1000):
        task.sample(example, lambda name: used.append(name) or {}, torch.Generator().manual_seed(number))
    assert used.count("empty") == pytest.approx(200, abs=50) and used.count("prompt") == 1000 - used.count("empty")
    assert used.count("flipped") == pytest.approx(500, abs=60) and used.count("latents") == 1000 - used.count("flipped")
    assert example.sources["empty"].payload == ""
    plain, mirrored = (task.picture(example.sources[name]) for name in ("latents", "flipped"))
    assert torch.equal(mirrored, plain.flip(-1))


# ---- IDetail


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A data set of one person, as a photo and in 7 + 1 lights."""
    folder = tmp_path_factory.mktemp("people") / "data"
    for name in ("environment", "comfyui_server", "pack"):  # the script imports these by name
        load_script(name)
    assert load_script("dataset_cli").main([
        "generate", "idetail_portraits", "--output", str(folder), "--people", "1", "--inputs", "1", "--size", "32",
    ]) == 0  # fmt: skip
    return folder


def relight_task(kind, people, tmp_path, **changes):
    given = {
        "task": {"model": tmp_path / "base", "data": people, "resolution": 32, "bucket_step": 8, **changes},
        "run": {"output": tmp_path / "run", "precision": "fp32"},
    }  # fmt: skip
    task = kind(build_settings(settings_class(kind), given).task)
    return task, task.scan().examples[:2]


def write_conv_in(path, order):
    draw = torch.Generator().manual_seed(3)
    change, bias = (0.1 * torch.randn(shape, generator=draw) for shape in ((32, 9, 3, 3), (32,)))
    save_lora(path, conv_in_tensors(change, bias), {"likeness_idetail_channels": order})
    return path


def pictures_of(task, examples, part: int, file: str) -> torch.Tensor:
    """Pictures or masks of the inputs (part 0) or targets (part 1) that the examples' names tell."""
    takes = {take.key: take for take in task.takes.list}
    return torch.stack([task.takes.files(takes[example.name.split(" -> ")[part]])[file] for example in examples])


@pytest.mark.parametrize(("family", "order"), [("sd1", ORDERS[0]), ("sd2", ORDERS[1])])
def test_a_step_of_relighting_compares_with_input_and_target_where_the_paper_says(family, order, people, tmp_path):
    pipe = make_pipeline(family, tmp_path)
    pipe.save_pretrained(tmp_path / "base")
    task, examples = relight_task(
        TrainRelight, people, tmp_path, conv_in=write_conv_in(tmp_path / "conv_in.safetensors", order), order=order,
        rank=2, identity_weight=2.0, foreground_weight=3.0, background_weight=4.0, noise_weight=5.0,
        latest_timestep=700, signal_weighting=True, caption_dropout=0.0,
    )  # fmt: skip
    unet, drawn = task.load(CPU, torch.float32), Drawn(2)
    seen = Watched(unet)
    losses = task.losses(unet, batch_of(task, examples), drawn)

    source = latents(pipe, pictures_of(task, examples, 0, "png"))
    target = latents(pipe, pictures_of(task, examples, 1, "png"), drawn.numbers["posterior"])
    mask = latent_mask(pictures_of(task, examples, 0, "mask.png"), source.shape[-2:])
    assert not torch.equal(mask, latent_mask(pictures_of(task, examples, 1, "mask.png"), source.shape[-2:]))
    noisy, noise = noised(target, drawn), drawn.numbers["noise"]
    shown = [noisy, mask, source] if order == ORDERS[0] else [source, mask, noisy]
    torch.testing.assert_close(seen.given, torch.cat(shown, 1), rtol=1e-4, atol=1e-4)
    assert drawn.limits == (0, 701)
    signal = signal_of(drawn.numbers["timestep"])
    if family == "sd1":
        estimate, clean = seen.output, (noisy - (1 - signal).sqrt() * seen.output) / signal.sqrt()
    else:
        estimate = signal.sqrt() * seen.output + (1 - signal).sqrt() * noisy
        clean = signal.sqrt() * noisy - (1 - signal).sqrt() * seen.output
    share = signal.flatten()
    alike = cosine_similarity((mask * clean).flatten(1), (mask * source).flatten(1))
    front = smooth_l1_loss(mask * clean, mask * target, reduction="none").mean((1, 2, 3))
    back = ((1 - mask) * (clean - target)).abs().mean((1, 2, 3))
    expected = {
        "identity": 2 * (share * (1 - alike)).mean(), "foreground": 3 * (share * front).mean(),
        "background": 4 * (share * back).mean(), "noise": 5 * mse_loss(estimate, noise),
    }  # fmt: skip
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=1e-3
    )
    task.settings = replace(task.settings, signal_weighting=False)
    again = task.losses(unet, batch_of(task, examples), Drawn(2))
    assert again["foreground"].item() == pytest.approx(3 * front.mean().item(), rel=1e-3)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_step_of_stage_one_finds_the_noise_of_the_picture_that_it_is_shown(family, people, tmp_path):
    pipe = make_pipeline(family, tmp_path)
    pipe.save_pretrained(tmp_path / "base")
    task, examples = relight_task(TrainConvIn, people, tmp_path, caption_dropout=0.0)
    unet, drawn = task.load(CPU, torch.float32), Drawn(2)
    seen = Watched(unet)
    losses = task.losses(unet, batch_of(task, examples), drawn)
    clean = latents(pipe, pictures_of(task, examples, 0, "png"), drawn.numbers["posterior"])
    noisy = noised(clean, drawn)
    torch.testing.assert_close(seen.given, torch.cat([noisy, torch.zeros_like(noisy[:, :1]), clean], 1),
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    signal = signal_of(drawn.numbers["timestep"])
    found = seen.output if family == "sd1" else signal.sqrt() * seen.output + (1 - signal).sqrt() * noisy
    assert list(losses) == ["noise"]
    assert losses["noise"].item() == pytest.approx((found - drawn.numbers["noise"]).square().mean().item(), rel=1e-3)


def test_prompts_of_relighting_are_dropped_as_often_as_asked(people, tmp_path):
    make_pipeline("sd1", tmp_path).save_pretrained(tmp_path / "base")
    task, [example, _] = relight_task(TrainConvIn, people, tmp_path, caption_dropout=0.1)
    used = []
    for number in range(1000):
        task.sample(example, lambda name: used.append(name) or {}, torch.Generator().manual_seed(number))
    assert used.count("empty") == pytest.approx(100, abs=40) and used.count("prompt") == 1000 - used.count("empty")
    assert example.sources["empty"].payload == "" != example.sources["prompt"].payload


def test_the_error_of_a_validation_is_that_of_the_foreground(people, tmp_path):
    """Root of the mean squared difference to the target, places weighed by the mask of the input."""
    make_pipeline("sd1", tmp_path).save_pretrained(tmp_path / "base")
    task, _ = relight_task(TrainRelight, people, tmp_path, rank=2,
                           conv_in=write_conv_in(tmp_path / "conv_in.safetensors", ORDERS[0]))  # fmt: skip
    task.load(CPU, torch.float32)
    given, wanted = task.shown[0]
    row, error = task.relit(given, wanted, 1, 0, lambda *stop: None)
    picture, made, target = row.chunk(3, 2)
    assert torch.equal(picture, task.takes.files(given)["png"]) and torch.equal(target, task.takes.files(wanted)["png"])
    mask = task.takes.files(given)["mask.png"].expand(3, -1, -1)
    assert ((mask > 0) & (mask < 1)).any()
    expected = ((made - target).square() * mask).sum() / mask.sum()
    assert error == pytest.approx(expected.sqrt().item(), rel=1e-4)


def test_what_keeps_a_training_from_a_gpu_is_said(monkeypatch):
    """On Windows pip's torch knows no GPU, and training on without a word would take weeks."""
    said = []
    run = SimpleNamespace(precision="bf16")
    trainer = SimpleNamespace(say=said.append, device=torch.device("cpu"), run_settings=run)
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    preflight.Preflight(trainer).report_device()
    assert said == ["Training on cpu, bf16."]
    monkeypatch.setattr(preflight.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    preflight.Preflight(trainer).report_device()
    monkeypatch.setattr(torch.version, "cuda", None)
    preflight.Preflight(trainer).report_device()
    assert len(said) == 4 and "built without CUDA" in said[-1]
