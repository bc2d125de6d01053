"""The parts of the trainer, each against an independent account of what it should do."""

import itertools
import logging
import math
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from likeness.pipelines.embedded.portrait_set import PortraitTask
from likeness.pipelines.generation import DatasetReader, DatasetSettings, Job, export_folder, prepare_dataset
from likeness.pipelines.generation.worker import work
from likeness.pipelines.stop import StopRequest
from likeness.pipelines.training import BatchRandom, Checkpoint, CheckpointStore, Source, cache
from likeness.pipelines.training.cache import TensorCache, fill_cache
from likeness.pipelines.training.diffusion import diffusion_loss, diffusion_target, min_snr_weights
from likeness.pipelines.training.image_folder import bucket_for, cover_crop, load_for_bucket, scan_folder
from likeness.pipelines.training.lora import LAYERS, add_lora, kohya_tensors, merge_kohya, target_layers
from likeness.pipelines.training.lora_task import LoraFineTune
from likeness.pipelines.training.optimisation import averaged_weights, learning_rate, make_ema
from likeness.pipelines.training.order import Order, share
from likeness.pipelines.training.settings import OptimizerSettings
from PIL import Image
from pretend_windows import pretend_windows
from tile_recipes import Tiles, TilesSettings
from tiny_base import make_pipeline
from tiny_training import tiny_settings, write_portraits
from torch import nn

SIZES = [(32, 32)] * 5 + [(48, 16)] * 3 + [(16, 48)]


def test_an_epoch_shows_every_example_and_repeats_only_to_fill_a_bucket():
    order = Order(SIZES, global_batch=2, seed=1)
    assert order.steps_per_epoch == 3 + 2 + 1
    for epoch in range(3):
        steps = [order.step(epoch * 6 + place) for place in range(6)]
        assert all(len({SIZES[request.index] for request in step}) == 1 for step in steps)
        seen = Counter(request.index for step in steps for request in step)
        assert set(seen) == set(range(len(SIZES))) and sum(seen.values()) == 12
        assert max(seen[index] for index in range(8)) <= 2

    def epoch(number):
        return [request.index for place in range(6) for request in order.step(number * 6 + place)]

    assert len({tuple(epoch(number)) for number in range(4)}) == 4, "every epoch has the same order"
    many = Order([(32, 32)] * 12, global_batch=3, seed=1)
    company = [{frozenset(request.index for request in many.step(step)) for step in range(4 * number, 4 * number + 4)}
               for number in range(3)]  # fmt: skip
    assert not company[0] & company[1] or not company[1] & company[2], "the same examples always meet in a batch"


def test_the_order_has_no_memory():
    asked_at_once, asked_backwards = Order(SIZES, 2, 1), Order(SIZES, 2, 1)
    forwards = [asked_at_once.step(step) for step in range(20)]
    assert [asked_backwards.step(step) for step in reversed(range(20))] == forwards[::-1]
    assert [Order(SIZES, 2, 2).step(step) for step in range(20)] != forwards


@pytest.mark.parametrize(("processes", "batch_size", "accumulation"), [(1, 8, 1), (2, 4, 1), (2, 2, 2), (4, 1, 2)])
def test_processes_share_a_global_batch_without_gap_or_overlap(processes, batch_size, accumulation):
    requests = Order([(32, 32)] * 30, 8, 0).step(2)
    shares = [share(requests, rank, processes, batch_size) for rank in range(processes)]
    assert all(len(mine) == accumulation and all(len(micro) == batch_size for micro in mine) for mine in shares)
    assert sorted(request.slot for mine in shares for micro in mine for request in micro) == list(range(8))


def test_random_numbers_of_a_sample_do_not_depend_on_how_the_batch_is_split():
    whole = BatchRandom(3, 5, [0, 1, 2, 3])
    parts = [BatchRandom(3, 5, [0, 1]), BatchRandom(3, 5, [2, 3])]
    for draw in (
        lambda random: random.normal("noise", (2, 3)),
        lambda random: random.uniform("drop"),
        lambda random: random.integers("timestep", 0, 1000),
    ):
        assert torch.equal(draw(whole), torch.cat([draw(part) for part in parts]))
    assert not torch.equal(whole.normal("noise", (9,)), BatchRandom(3, 6, [0, 1, 2, 3]).normal("noise", (9,)))
    assert not torch.equal(whole.normal("noise", (9,)), whole.normal("posterior", (9,)))
    many = BatchRandom(0, 0, list(range(4000))).normal("noise", (4,))
    assert abs(many.mean()) < 0.03 and abs(many.std() - 1) < 0.03


def slow_learning_rate(schedule, step, steps, warmup, top):
    if step < warmup:
        return top * step / warmup
    done = (step - warmup) / (steps - warmup)
    return top * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate_rises_and_falls_as_written_in_its_help(schedule):
    rate = learning_rate(OptimizerSettings(schedule=schedule, warmup_steps=5, learning_rate=2e-4), 40)
    expected = [slow_learning_rate(schedule, step, 40, 5, 2e-4) for step in range(41)]
    assert [rate(step) for step in range(41)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_loss_and_min_snr_weights_follow_their_formulas(kind):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind)
    clean, noise, prediction = (torch.randn(6, 4, 5, 5, dtype=torch.float64) for _ in range(3))
    timesteps = torch.tensor([0, 50, 300, 700, 900, 999])
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    total = 0.0
    for place, step in enumerate(timesteps.tolist()):
        signal, spread = math.sqrt(kept[step]), math.sqrt(1 - kept[step])
        x0, e, out = (tensor[place].numpy() for tensor in (clean, noise, prediction))
        target = e if kind == "epsilon" else signal * e - spread * x0
        snr = signal**2 / spread**2
        weight = min(snr, 5.0) / (snr if kind == "epsilon" else snr + 1)
        total += weight * ((out - target) ** 2).mean() / 6
        assert float(min_snr_weights(timesteps, scheduler, 5.0)[place]) == pytest.approx(weight, rel=1e-4)
    assert float(diffusion_loss(prediction, clean, noise, timesteps, scheduler, 5.0)) == pytest.approx(total, rel=1e-4)
    plain = (prediction - diffusion_target(clean, noise, timesteps, scheduler)).square().mean()
    unweighted = diffusion_loss(prediction, clean, noise, timesteps, scheduler)
    assert float(unweighted) == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize(("kind", "limit"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_min_snr_weighs_a_level_without_any_signal_by_its_limit(kind, limit):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind, rescale_betas_zero_snr=True)
    weights = min_snr_weights(torch.tensor([999, 990]), scheduler, 5.0)
    assert weights.tolist() == pytest.approx([limit, limit], abs=2e-4)


def test_averages_stand_in_for_the_weights_and_give_them_back():
    trained = {name: nn.Parameter(torch.full((3,), value)) for name, value in (("a", 1.0), ("b", 2.0))}
    ema = make_ema(list(trained.values()), 0.5)
    ema.shadow_params = [torch.full((3,), 10.0), torch.full((3,), 20.0)]
    for error in (None, KeyboardInterrupt):
        with pytest.raises(error) if error else nullcontext(), averaged_weights(ema, trained):
            assert [value[0].item() for value in trained.values()] == [10.0, 20.0]
            if error:
                raise error
        assert [value[0].item() for value in trained.values()] == [1.0, 2.0]
        assert [value[0].item() for value in ema.shadow_params] == [10.0, 20.0]


def test_places_of_the_loss_count_by_their_weights():
    scheduler = DDPMScheduler()
    clean, noise, prediction = (torch.randn(2, 4, 3, 5, dtype=torch.float64) for _ in range(3))
    weight = torch.rand(2, 1, 3, 5, dtype=torch.float64) * 7
    total = 0.0
    for place in range(2):
        for row in range(3):
            for column in range(5):
                error = (prediction - noise)[place, :, row, column].square().mean()
                total += float(weight[place, 0, row, column] / weight[place].sum() * error) / 2
    loss = diffusion_loss(prediction, clean, noise, torch.tensor([10, 500]), scheduler, 0.0, weight)
    assert float(loss) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (1024, 64), (768, 32), (32, 16)])
def test_buckets_are_the_nearest_shape_that_is_allowed(resolution, step):
    limits = (resolution // 2 // step * step, 2 * resolution)
    sides = [side for side in range(step, 2 * resolution + 1, step) if limits[0] <= side <= limits[1]]

    def fits(h, w):
        return h * w <= resolution**2 and max(h, w) <= limits[1]

    allowed = [(h, w) for h, w in itertools.product(sides, sides)
               if fits(h, w) and not fits(h + step, w) and not fits(h, w + step)]  # fmt: skip
    for size in [(512, 512), (600, 400), (400, 601), (3000, 1000), (1000, 3001), (100, 5000), (719, 1280)]:
        distances = {shape: abs(math.log(shape[0] / shape[1] * size[1] / size[0])) for shape in allowed}
        height, width = bucket_for(size, resolution, step)
        assert distances[height, width] == pytest.approx(min(distances.values()), abs=1e-8)
        assert bucket_for(size[::-1], resolution, step) == (width, height)
        (high, wide), (top, left) = cover_crop(size, (height, width))
        assert high >= height and wide >= width and min(high - height, wide - width) == 0
        assert 0 <= top <= high - height and 0 <= left <= wide - width


def test_pictures_are_cut_from_their_middle_and_mirrored(tmp_path):
    columns = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 3, 32, axis=0).repeat(3, axis=2)
    Image.fromarray(columns).save(tmp_path / "a.png")
    image = load_for_bucket(tmp_path / "a.png", (32, 32))
    assert torch.equal((image[0, 0, 0] * 255).round(), torch.arange(16, 48) * 3.0)
    assert torch.equal(load_for_bucket(tmp_path / "a.png", (32, 32), flip=True), image.flip(-1))


def test_everything_wrong_in_a_folder_is_found_at_once(tmp_path):
    folder = write_portraits(tmp_path / "photos", 4)
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "words.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGBA", (40, 40), (255, 0, 0, 90)).save(folder / "clear.png")
    (folder / "copy.png").write_bytes(whole)
    (folder / "1.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "2.txt").unlink()
    (folder / "lonely.txt").write_text("a caption")
    (folder / "metadata.jsonl").write_text('{"file_name": "2.png", "text": "from  the table"}\nnonsense\n')
    found = scan_folder(folder)
    for name in ("cut.png", "words.jpg", "empty.png", "clear.png", "1.png", "metadata.jsonl, line 2"):
        assert sum(name in error for error in found.errors) == 1, name
    assert len(found.errors) == 6
    captions = {picture.path.name: picture.caption for picture in found.pictures}
    assert captions == {"0.png": "portrait, number 0", "2.png": "from the table", "3.png": "portrait, number 3",
                        "copy.png": None}  # fmt: skip
    assert any("copy.png is the same file as" in warning for warning in found.warnings)
    assert any("lonely.txt has no picture" in warning for warning in found.warnings)


def test_an_exported_data_set_is_a_folder_to_train_on(tmp_path):
    recipe = Tiles(TilesSettings())
    dataset = prepare_dataset(tmp_path / "set", recipe, DatasetSettings(total=3))
    work(dataset, recipe, Job(str(tmp_path / "set"), {}, dataset.fingerprint), StopRequest())
    export_folder(DatasetReader(tmp_path / "set"), tmp_path / "plain")
    found = scan_folder(tmp_path / "plain")
    assert (found.errors, found.warnings) == ([], [])
    captions = {picture.path.name: picture.caption for picture in found.pictures}
    assert captions == {f"{item['__key__']}.png": item["txt"] for item in DatasetReader(tmp_path / "set")}
    assert (tmp_path / "plain" / "mask" / "000000000.png").is_file()


def test_pictures_without_caption_are_errors_unless_that_is_meant(tmp_path):
    folder = write_portraits(tmp_path / "photos", 3)
    (folder / "1.txt").unlink()
    (tmp_path / "base").mkdir()  # not opened before the data is looked at
    settings = tiny_settings(tmp_path, tmp_path / "run")
    scan = LoraFineTune(settings.task).scan()
    assert len(scan.examples) == 2 and "1.png has no caption: write 1.txt" in scan.errors[0]
    meant = LoraFineTune(replace(settings.task, missing_captions="empty")).scan()
    assert len(meant.examples) == 3 and not meant.errors


class Encoder:
    """A task's encoding, that can be counted and broken."""

    def __init__(self, weights: str, bad=()):
        self.weights, self.bad, self.calls = weights, bad, []

    def encoders(self, kind):
        import contextlib

        return contextlib.nullcontext()

    def encode(self, source):
        self.calls.append(source.content)
        value = float("nan") if source.content in self.bad else float(len(source.content))
        return {"x": torch.full((3,), value)}


def filled(folder: Path, encoder: Encoder, sources):
    cache = TensorCache(folder, {"latents": encoder.weights})
    return cache, fill_cache(cache, encoder, sources, lambda: None, lambda done, total: None)


def test_the_cache_encodes_once_and_again_only_for_other_weights_or_damage(tmp_path):
    names = [("aa", ""), ("bbb", ""), ("aa", ""), ("aa", "flip")]
    sources = [Source("latents", content, detail) for content, detail in names]
    encoder = Encoder("one")
    cache, failures = filled(tmp_path, encoder, sources)
    assert encoder.calls == ["aa", "bbb", "aa"] and not failures
    assert torch.equal(cache.load(sources[1])["x"], torch.full((3,), 3.0))
    again = Encoder("one")
    filled(tmp_path, again, sources)
    assert again.calls == []
    other = Encoder("two")
    filled(tmp_path, other, sources)
    assert len(other.calls) == 3
    path = cache.path(sources[1])
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="cannot be read.*start again"):
        cache.load(sources[1])
    repaired = Encoder("one")
    filled(tmp_path, repaired, sources)
    assert repaired.calls == ["bbb"]


def test_encodings_that_are_not_finite_are_refused_and_named(tmp_path):
    sources = [Source("latents", "good"), Source("latents", "bad")]
    cache, failures = filled(tmp_path, Encoder("one", bad=["bad"]), sources)
    assert [(source.content, "NaN" in reason) for source, reason in failures] == [("bad", True)]
    assert not cache.path(sources[1]).exists() and cache.path(sources[0]).exists()


def test_an_entry_that_another_run_made_meanwhile_is_kept(tmp_path, monkeypatch):
    """On Windows it could not even be replaced while that run has it open."""
    hold, pauses = pretend_windows(monkeypatch)
    entries, source = TensorCache(tmp_path, {"latents": "one"}), Source("latents", "a")
    path, save = entries.path(source), cache.save_file

    def save_and_be_overtaken(tensors, temporary):
        save(tensors, temporary)
        shutil.copy(temporary, path)
        hold(path, math.inf)

    monkeypatch.setattr(cache, "save_file", save_and_be_overtaken)
    entries.store(source, {"x": torch.ones(2)})
    waited = len(pauses)
    entries.store(source, {"x": torch.zeros(2)})
    assert torch.equal(entries.load(source)["x"], torch.ones(2)) and len(pauses) == waited
    path.write_bytes(b"damaged")
    monkeypatch.setattr(cache, "save_file", save)
    with pytest.raises(PermissionError, match="safetensors is in use by another program"):
        entries.store(source, {"x": torch.ones(2)})


def test_an_old_checkpoint_in_use_on_windows_stays_with_a_warning_until_it_is_free(tmp_path, monkeypatch, caplog):
    hold, _ = pretend_windows(monkeypatch)
    store = CheckpointStore(tmp_path, keep=1)

    def save(step: int) -> Path:
        return store.save(Checkpoint(step, {"weights": {"x": torch.ones(2)}}, {}, {}))

    hold(save(1), math.inf)
    save(2)
    assert store.steps() == [1, 2] and store.load().step == 2
    assert "an old one stays: " in caplog.text and "step-00000001 is in use by another program" in caplog.text
    hold(tmp_path / "step-00000001", 0)
    save(3)
    assert store.steps() == [3]
    (tmp_path / "step-00000003" / "state.json").write_text("damaged")
    hold(tmp_path / "step-00000003", math.inf)
    with pytest.raises(PermissionError, match="step-00000003 is in use by another program"):
        save(3)
    assert (tmp_path / "step-00000003" / "weights.safetensors").exists()


def test_an_export_in_use_on_windows_stays_whole(tmp_path, monkeypatch):
    class Task(PortraitTask):
        def write(self, folder, weights, facts):
            (folder / "vae").mkdir()
            (folder / "vae" / "config.json").write_text(facts["text"])

    def export(text: str) -> list[Path]:
        return Task(None).export(tmp_path, "model", {}, {"text": text})

    hold, pauses = pretend_windows(monkeypatch)
    [target] = export("first")
    hold(target, math.inf)
    with pytest.raises(PermissionError, match="model is in use by another program"):
        export("second")
    assert (target / "vae" / "config.json").read_text() == "first"
    hold(target, sum(pauses) + 20)
    export("second")
    assert (target / "vae" / "config.json").read_text() == "second" and list(tmp_path.iterdir()) == [target]


@pytest.fixture
def unet(tmp_path):
    return make_pipeline("sd1", tmp_path).unet


def test_layers_that_get_an_adapter(unet):
    every = {name for name, module in unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    attention, convolution, idetail, everything = (set(target_layers(unet, layers)) for layers in LAYERS)
    assert attention < convolution < everything == every
    assert everything - idetail == {
        name for name in every if name in ("conv_in", "conv_out") or name.endswith(("proj_in", "proj_out", "emb_proj"))
    }
    assert {name.split(".")[-2] for name in attention if "attn" in name} >= {"attn1", "attn2", "to_out"}
    assert everything - convolution == {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS)
def test_adapters_start_as_nothing_and_their_file_is_the_same_change_of_weights(unet, layers):
    """Adding (alpha / rank) up x down to each weight by hand gives what the adapted network gives."""
    x, context, step = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32), torch.tensor([3, 900])
    plain = unet(x, step, context).sample
    weights_before = {name: value.clone() for name, value in unet.state_dict().items()}
    add_lora(unet, layers, rank=4, alpha=3.0, seed=0)
    torch.testing.assert_close(unet(x, step, context).sample, plain, rtol=0, atol=0)
    trained = {name: value for name, value in unet.named_parameters() if value.requires_grad}
    for value in trained.values():
        value.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    adapted = unet(x, step, context).sample
    assert (adapted - plain).abs().max() > 1e-2
    tensors = kohya_tensors(trained, 3.0, torch.float32)
    layers_in_file = {key.rsplit(".lora_down", 1)[0] for key in tensors if ".lora_down" in key}
    for name, weight in weights_before.items():
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        if key in layers_in_file:
            down, up = (tensors[f"{key}.{part}.weight"].flatten(1) for part in ("lora_down", "lora_up"))
            weight += float(tensors[f"{key}.alpha"]) / down.shape[0] * (up @ down).reshape(weight.shape)
            layers_in_file.discard(key)
    assert not layers_in_file
    merged = type(unet).from_config(unet.config)
    merged.load_state_dict(weights_before)
    torch.testing.assert_close(merged.eval()(x, step, context).sample, adapted, rtol=1e-4, atol=1e-5)
    halves = type(unet).from_config(unet.config)
    halves.load_state_dict({name: value for name, value in unet.state_dict().items() if ".lora." not in name})
    for strength in (0.75, 0.25):
        merge_kohya(halves, tensors, strength)
    torch.testing.assert_close(halves.state_dict(), merged.state_dict(), rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_adapters_and_leaves_the_global_generator_alone(tmp_path):
    def adapters(seed):
        network = make_pipeline("sd1", tmp_path / str(seed) / str(torch.rand(1).item())).unet
        torch.manual_seed(99)
        add_lora(network, "attention", 4, 4.0, seed)
        drawn = torch.rand(1)
        return {n: p for n, p in network.named_parameters() if p.requires_grad}, drawn

    (one, drawn), (same, _), (other, _) = adapters(1), adapters(1), adapters(2)
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    torch.manual_seed(99)
    assert torch.equal(drawn, torch.rand(1))


def test_a_long_prompt_is_cut_with_a_warning_that_shows_it(tmp_path, caplog):
    make_pipeline("sd1", tmp_path).save_pretrained(tmp_path / "base")
    folder = write_portraits(tmp_path / "photos", 1)
    (folder / "0.txt").write_text("light " * 40)
    task = LoraFineTune(tiny_settings(tmp_path, tmp_path / "run").task)
    [example] = task.scan().examples
    task.load(torch.device("cpu"), torch.float32)
    with caplog.at_level(logging.WARNING), task.encoders("prompt"):
        assert task.encode(example.sources["prompt"])["prompt"].shape == (77, 32)
    assert "light light" in caplog.text
