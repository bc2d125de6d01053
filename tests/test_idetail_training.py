"""IDetail from people of the portrait world to a file that relights: data, both stages, pipeline, claims."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_environment import load_script
from likeness.pipelines.configuration import build_settings
from likeness.pipelines.embedded.family import load_family
from likeness.pipelines.evaluation.claims import verdict
from likeness.pipelines.idetail import claims
from likeness.pipelines.idetail.adapter import SHIPPED, read_adapter, split_adapter
from likeness.pipelines.idetail.pipeline import RelightPipeline
from likeness.pipelines.idetail.prompts import INPUT_PROMPTS
from likeness.pipelines.idetail.takes import INPUT, ORIGINAL, TARGET, Takes, fitted
from likeness.pipelines.idetail.task import TrainConvIn, TrainRelight
from likeness.pipelines.idetail.world import IdetailPortraits, WorldSettings, in_light, original
from likeness.pipelines.images import load_image, save_image
from likeness.pipelines.portraits import render
from likeness.pipelines.training import BatchRandom, settings_class
from likeness.pipelines.training.cache import TensorCache, fill_cache
from likeness.pipelines.training.loader import BatchReader
from likeness.pipelines.training.order import Request
from likeness.pipelines.training.task import sources_of
from likeness.pipelines.weights import load_base_model
from likeness.pipelines.weights.word_vectors import read_word, spelled_vectors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_base import make_pipeline

for name in ("environment", "comfyui_server", "pack"):  # the scripts import these by name
    load_script(name)
pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = ("--resolution", 32, "--bucket-step", 8, "--batch-size", 2, "--precision", "fp32", "--validation-pairs", 1,
         "--validation-steps", 2, "--validate-every", 0, "--name", "made")  # fmt: skip
PLAIN = ("studio", 0, 0)


def cli(script: str, *arguments) -> None:
    assert load_script(script).main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small base model, two people in 1 + 7 + 2 lights, and both stages trained for two steps."""
    folder = tmp_path_factory.mktemp("idetail")
    make_pipeline("sdxl", folder / "base").save_pretrained(folder / "base")
    cli("dataset_cli", "generate", "idetail_portraits", "--output", folder / "data", "--people", 2, "--inputs", 2,
        "--size", 32)  # fmt: skip
    base = ("--model", folder / "base", "--data", folder / "data", *TRAIN)
    cli("train_cli", "train", "idetail-conv-in", *base, "--output", folder / "conv", "--steps", 2,
        "--learning-rate", 0.01)  # fmt: skip
    cli("train_cli", "train", "idetail-lora", *base, "--output", folder / "lora", "--steps", 2, "--rank", 2,
        "--conv-in", folder / "conv" / "made.safetensors", "--export-dtype", "fp32")  # fmt: skip
    return folder


# ---- people


def test_every_person_has_an_original_seven_targets_and_its_own_inputs(world):
    takes = Takes(world / "data")
    takes.read()
    roles = [[take.role for take in takes.list if take.person == person] for person in ("0", "1")]
    assert roles == [[ORIGINAL, *[TARGET] * 7, *[INPUT] * 2]] * 2
    assert len(takes.pairs()) == 2 * 2 * 7 and len(takes.pairs("direct")) == 2 * 7 and len(takes.pairs(people=1)) == 14
    with pytest.raises(ValueError, match="shows 2 people, 3 were asked for"):
        takes.pairs(people=3)


def distance(one, other) -> float:
    return (render(one, 64).image - render(other, 64).image).abs().mean().item()


def test_outputs_of_a_person_share_a_drift_and_differ_by_less_among_themselves():
    """In one light, so that nothing but the generator's imperfection is seen."""
    recipe = IdetailPortraits(WorldSettings())
    apart, among = [], []
    for person in range(6):
        outputs = [
            in_light(recipe.person({"person": person, "take": take, "role": TARGET, "prompt": "pantone"}), *PLAIN)
            for take in (1, 2)
        ]
        photo = in_light(original(0, person), *PLAIN)
        apart += [distance(output, photo) for output in outputs]
        among.append(distance(*outputs))
    assert np.mean(among) < 0.5 * np.mean(apart)
    exact = IdetailPortraits(WorldSettings(drift=0, pose_drift=0, jitter=0, pose_jitter=0))
    same = exact.person({"person": 3, "take": 1, "role": TARGET, "prompt": "pantone"})
    assert distance(in_light(same, *PLAIN), in_light(original(0, 3), *PLAIN)) == 0


def test_all_input_prompts_are_lights_that_can_be_told_apart():
    person = original(0, 1)
    pictures = [render(in_light(person, prompt.name, 0, 0), 16).image for prompt in INPUT_PROMPTS]
    nearest = min(
        (one - other).abs().mean().item() for place, one in enumerate(pictures) for other in pictures[:place]
    )
    assert nearest > 0.004
    with pytest.raises(ValueError, match="prompt is 'disco'"):
        in_light(person, "disco", 0, 0)


def test_pictures_and_masks_are_cut_alike():
    picture = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    assert fitted(picture, (40, 60)) is picture
    cut = fitted(picture, (40, 40))
    torch.testing.assert_close(cut, picture[:, :, 10:50])
    assert fitted(picture, (16, 24)).shape == (3, 16, 24)


# ---- training


def test_stage_one_trains_the_first_convolution_and_nothing_else(world):
    tensors, _ = read_adapter(world / "conv" / "made.safetensors")
    first, rest = split_adapter(tensors)
    assert not rest and first["lora_unet_conv_in.reshape_weight"].tolist() == [32, 9, 3, 3]
    change = first["lora_unet_conv_in.lora_up.weight"].reshape(32, 9, 3, 3)
    assert change[:, 5:].abs().max() > 1e-3  # it looks at the photo
    assert not change[:, 4].any()  # and has seen no mask yet


def test_stage_two_keeps_the_first_convolution_and_exports_it_whole_and_split(world):
    folder = world / "lora"
    whole, first, lora = (load_file(folder / f"made{part}.safetensors") for part in ("", "_conv_in", "_lora"))
    assert {**first, **lora}.keys() == whole.keys()
    stage_one = load_file(world / "conv" / "made.safetensors")
    assert all(torch.equal(first[name], stage_one[name]) for name in first)
    assert any(tensor.any() for name, tensor in lora.items() if "lora_up" in name)
    with safe_open(folder / "made.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["likeness_idetail_channels"] == "noisy,mask,source" and facts["ss_network_dim"] == "2"
    assert facts["modelspec.architecture"].endswith("/lora")


def test_a_step_asks_no_encoder(world, tmp_path):
    """Everything but the UNet is gone once training begins."""
    given = {
        "task": {"model": world / "base", "data": world / "data", "conv_in": world / "conv" / "made.safetensors",
                 "resolution": 32, "bucket_step": 8, "rank": 2, "validation_steps": 1, "validation_pairs": 1},
        "run": {"output": tmp_path, "steps": 1, "precision": "fp32", "cache": world / "lora" / "cache"},
    }  # fmt: skip
    run = build_settings(settings_class(TrainRelight), given)
    task = TrainRelight(run.task)
    task.scan()
    task.load(torch.device("cpu"), torch.float32)
    task.release_encoders()
    task.base.vae.encode = task.base.encode_prompts = None  # whoever asks them fails
    cache = TensorCache(run.run.cache, {kind: task.encoder_hash(kind) for kind in ("latents", "mask", "prompt")})
    requests = [Request(0, slot, 0, slot) for slot in range(2)]
    _, batch = BatchReader(task, task.scan().examples, cache, 0).batch(requests)
    losses = task.losses(task.unet, batch, BatchRandom(0, 0, [0, 1]))
    assert set(losses) == {"identity", "foreground", "background", "noise"}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_wrong_settings_are_told(world, tmp_path, capsys):
    def fails(task, *arguments) -> str:
        arguments = ["train", task, "--model", world / "base", "--data", world / "data", *TRAIN, "--output",
                     tmp_path / "run", *arguments]  # fmt: skip
        assert load_script("train_cli").main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err

    conv = ("--conv-in", world / "conv" / "made.safetensors")
    assert "was trained with the channels 'noisy,mask,source': set --order so" in fails(
        "idetail-lora", *conv, "--order", "source,mask,noisy"
    )
    assert "shows 2 people, 5 were asked for" in fails("idetail-lora", *conv, "--people", 5)
    assert "cannot be read" in fails("idetail-lora", "--conv-in", world / "none.safetensors")
    assert "has no lora_unet_conv_in" in fails("idetail-lora", "--conv-in", world / "lora" / "made_lora.safetensors")
    none = [part for name in ("identity", "foreground", "background", "noise") for part in (f"--{name}-weight", 0)]
    assert "all four weights of the losses are 0" in fails("idetail-lora", *conv, *none)


def test_a_first_convolution_that_was_changed_since_is_not_exported(world, tmp_path, capsys):
    run = shutil.copytree(world / "lora", tmp_path / "run")
    path = world / "conv" / "made.safetensors"
    content = path.read_bytes()
    try:
        tensors, metadata = load_file(path), safe_open(path, "pt").metadata()
        save_file({name: 2 * tensor for name, tensor in tensors.items()}, path, metadata)
        assert load_script("train_cli").main(["export", str(run)]) == 1
    finally:
        path.write_bytes(content)
    assert "is not the file any more that this LoRA was trained with" in capsys.readouterr().err


def test_the_licence_of_the_data_goes_with_the_file(world, tmp_path, monkeypatch):
    read = Takes.read

    def licensed(takes, *given):
        takes.licences.add("for research only")
        return read(takes, *given)

    monkeypatch.setattr(Takes, "read", licensed)
    cli("train_cli", "train", "idetail-lora", "--model", world / "base", "--data", world / "data", *TRAIN, "--output",
        tmp_path / "run", "--steps", 1, "--rank", 2, "--conv-in", world / "conv" / "made.safetensors",
        "--pairing", "direct", "--train-conv-in", "--ema-decay", 0.9, "--signal-weighting")  # fmt: skip
    with safe_open(tmp_path / "run" / "made.safetensors", "pt") as file:
        assert file.metadata()["modelspec.license"].endswith("trained on data under: for research only")
        moved = file.get_tensor("lora_unet_conv_in.lora_up.weight")
    assert not torch.equal(moved, load_file(world / "conv" / "made.safetensors")["lora_unet_conv_in.lora_up.weight"])


@pytest.mark.parametrize("stage_one_input", ["source given", "literal"])
def test_stage_one_is_validated_as_it_is_trained(world, tmp_path, stage_one_input):
    """Its network sees in validation what it sees in training, so the picture comes back from any start."""
    seen = []
    given = {
        "task": {"model": world / "base", "data": world / "data", "resolution": 32, "bucket_step": 8,
                 "validation_steps": 1, "validation_pairs": 1, "stage_one_input": stage_one_input},
        "run": {"output": tmp_path, "precision": "fp32"},
    }  # fmt: skip
    task = TrainConvIn(build_settings(settings_class(TrainConvIn), given).task)
    task.scan()
    task.load(torch.device("cpu"), torch.float32)
    task.unet.register_forward_pre_hook(lambda unet, inputs: seen.append(inputs[0]))
    score = task.validate(task.unet, None, 0, lambda *stop: None).scores["foreground_error"]
    noisy, photo = (slice(0, 4), slice(5, 9)) if stage_one_input == "source given" else (slice(5, 9), slice(0, 4))
    assert seen[0][:, noisy].std() > 0.5 and not seen[0][:, 4].any() and score > 0
    assert bool(seen[0][:, photo].any()) == (stage_one_input == "source given")


def test_stage_one_also_learns_from_a_folder_of_captioned_pictures(world, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(2):
        save_image(render(original(0, number), 40).image[0], tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text("a studio portrait of a <c>")
    cli("train_cli", "train", "idetail-conv-in", "--model", world / "base", "--data", tmp_path / "photos", *TRAIN,
        "--output", tmp_path / "run", "--steps", 1)  # fmt: skip
    assert read_adapter(tmp_path / "run" / "made.safetensors")[0]


def test_pictures_of_all_shapes_are_shown_side_by_side(world, tmp_path):
    (tmp_path / "photos").mkdir()
    for number, height in enumerate((40, 24)):
        picture = render(original(0, number), 40).image[0, :, :height]
        save_image(picture, tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text("a studio portrait of a <c>")
    cli("train_cli", "train", "idetail-conv-in", "--model", world / "base", "--data", tmp_path / "photos", *TRAIN,
        "--validation-pairs", 2, "--output", tmp_path / "run", "--steps", 1)  # fmt: skip
    row = load_image(tmp_path / "run" / "samples" / "step-00000001.png")
    assert row.shape[-2:] == (32, 3 * 32 + 3 * 40)
    assert not row[..., 24:, 96:].any() and row[..., :24, 96:].any()


def spoilt(data: Path, key: str, extension: str, position: int) -> None:
    """Turns some bytes of a file in a data set's first shard into others."""
    offset, _ = json.loads((data / "shard-00000.json").read_text())["items"][key][extension]
    tar = bytearray((data / "shard-00000.tar").read_bytes())
    tar[offset + position : offset + position + 20] = b"\xff" * 20
    (data / "shard-00000.tar").write_bytes(tar)


def test_damaged_items_are_named_with_the_mend_and_can_be_left_out(world, tmp_path, capsys):
    shutil.copytree(world / "data", tmp_path / "data")
    command = ("--model", world / "base", "--data", tmp_path / "data", *TRAIN, "--output", tmp_path / "run",
               "--steps", 1)  # fmt: skip

    def train(*more) -> tuple[int, str]:
        code = load_script("train_cli").main(["train", "idetail-conv-in", *map(str, (*command, *more))])
        return code, "".join(capsys.readouterr())

    spoilt(tmp_path / "data", "000000005", "png", 60)  # its head is whole, so it is found when it is encoded
    code, told = train()
    assert code == 1 and "png of item 000000005 is damaged (" in told
    assert f"dataset_cli.py verify {tmp_path / 'data'} --repair" in told and "with --skip-bad" in told
    spoilt(tmp_path / "data", "000000006", "png", 0)
    spoilt(tmp_path / "data", "000000007", "json", 0)
    code, told = train()
    assert code == 1 and "2 problems in the data" in told
    assert "png of item 000000006 is damaged (it does not begin as a PNG)" in told
    assert "json of item 000000007 is damaged (" in told
    code, told = train("--skip-bad")
    assert code == 0 and "18 examples" in told


# ---- relighting


@pytest.fixture(scope="module")
def pipeline(world):
    return RelightPipeline.from_base(load_base_model(world / "base"), world / "lora" / "made.safetensors")


def relit(pipeline, count=2, **options):
    pictures = torch.cat([render(original(0, number), 32).image for number in range(count)])
    mask = torch.cat([render(original(0, number), 32).alpha for number in range(count)])
    return pipeline(**{"image": pictures, "prompt": "a <c> at dawn", "mask": mask, "steps": 2,
                       "noise": noise(count), **options})  # fmt: skip


def noise(count):
    return torch.randn((count, 4, 16, 16), generator=torch.Generator().manual_seed(0))


def test_pictures_of_a_batch_do_not_depend_on_each_other(pipeline):
    both = relit(pipeline, prompt=["a <c> at dawn", "a <c> at night"])
    assert both.shape == (2, 3, 32, 32) and both.std() > 0.01
    alone = relit(pipeline, 1)
    torch.testing.assert_close(both[:1], alone, rtol=1e-3, atol=1e-3)


def test_the_photo_and_the_guidance_count(pipeline):
    plain = relit(pipeline, 1)
    assert not torch.equal(plain, relit(pipeline, 1, image=torch.zeros(1, 3, 32, 32)))
    assert not torch.equal(plain, relit(pipeline, 1, guidance_scale=1))


def test_what_does_not_fit_is_told(pipeline, world):
    with pytest.raises(ValueError, match="mask is 64x32, image is 32x32"):
        relit(pipeline, 1, mask=torch.ones(1, 1, 32, 64))
    with pytest.raises(ValueError, match="the mask is black"):
        relit(pipeline, 1, mask=torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"noise is \(2, 4, 16, 16\), the latents are \(1, 4, 16, 16\)"):
        relit(pipeline, 1, noise=noise(2))
    with pytest.raises(ValueError, match="3 prompts for 1 images"):
        relit(pipeline, 1, prompt=["a", "b", "c"])
    base = load_base_model(world / "base")
    with pytest.raises(ValueError, match="4 input channels, relighting needs 9"):
        RelightPipeline(base.vae, None, None, base.unet, pipeline.scheduler)


def test_half_precision_relights_as_full_precision_does(world, pipeline):
    base = load_base_model(world / "base", torch.bfloat16)
    half = RelightPipeline.from_base(base, world / "lora" / "made.safetensors")
    assert {value.dtype for value in half.unet.parameters()} == {torch.bfloat16}
    assert (relit(half, 1) - relit(pipeline, 1)).abs().mean() < 0.03
    with pytest.raises(ValueError, match="9 input channels, a text-to-image model 4"):
        RelightPipeline.from_base(base, world / "lora" / "made.safetensors")


@pytest.fixture(scope="module")
def worded(world, tmp_path_factory):
    """Stage 2 again, with a placeholder that is learnt."""
    folder = tmp_path_factory.mktemp("worded")
    cli("train_cli", "train", "idetail-lora", "--model", world / "base", "--data", world / "data", *TRAIN,
        "--output", folder, "--steps", 2, "--rank", 2, "--conv-in", world / "conv" / "made.safetensors",
        "--export-dtype", "fp32", "--learn-placeholder", "--learning-rate", 0.01)  # fmt: skip
    return folder


def test_a_learnt_placeholder_is_exported_beside_the_files_of_any_run(world, worded):
    for part in ("", "_conv_in", "_lora"):
        plain, made = (load_file(folder / f"made{part}.safetensors") for folder in (world / "lora", worded))
        assert {name: value.shape for name, value in plain.items()} == {
            name: value.shape for name, value in made.items()
        }
    base = load_base_model(world / "base", parts=("text",))
    first = spelled_vectors(base.text_encoders, base.tokenizers, "<c>")
    learnt = read_word(worded / "made_placeholder.safetensors", "sdxl")
    for before, after in zip(first, learnt, strict=True):
        assert before.shape == after.shape and 1e-3 < (after - before).abs().max() < 0.1
    assert not (world / "lora" / "made_placeholder.safetensors").exists()


def test_a_run_with_a_learnt_placeholder_begins_as_one_without(world, tmp_path):
    """Its first losses are those of plain text; a change of the vectors reaches them, and only where the word is."""
    given = {
        "task": {"model": world / "base", "data": world / "data", "conv_in": world / "conv" / "made.safetensors",
                 "resolution": 32, "bucket_step": 8, "rank": 2, "validation_steps": 1, "validation_pairs": 1,
                 "caption_dropout": 0.5},
        "run": {"output": tmp_path, "steps": 1, "precision": "fp32", "cache": tmp_path / "cache"},
    }  # fmt: skip

    def losses(learn: bool, change: float = 1.0):
        given["task"]["learn_placeholder"] = learn
        task = TrainRelight(build_settings(settings_class(TrainRelight), given).task)
        examples = task.scan().examples
        network = task.load(torch.device("cpu"), torch.float32)
        kinds = {source.kind for example in examples for source in example.sources.values()}
        cache = TensorCache(tmp_path / "cache", {kind: task.encoder_hash(kind) for kind in kinds})
        requests = [Request(0, slot, 0, slot) for slot in range(6)]
        assert not fill_cache(cache, task, sources_of(examples[:6]), lambda: None, lambda *_: None)
        _, batch = BatchReader(task, examples, cache, 0).batch(requests)
        task.release_encoders()
        for vectors in network.vectors if learn else ():
            vectors.data *= change
        found = task.losses(network, batch, BatchRandom(0, 0, list(range(6))))
        return network, batch, found

    _, _, plain = losses(False)
    network, batch, learnt = losses(True)
    assert {name for name in batch if name.startswith("tokens")} == {"tokens_0", "tokens_1"}
    for name, value in plain.items():
        torch.testing.assert_close(learnt[name], value, rtol=1e-3, atol=1e-4)  # prompts are cached in half precision
    sum(learnt.values()).backward()
    assert all(vectors.grad.abs().max() > 0 for vectors in network.vectors)
    assert not any(weight.requires_grad for weight in network.text_encoders.parameters())
    _, _, changed = losses(True, -5.0)
    assert abs(changed["noise"] - learnt["noise"]) > 1e-5


@pytest.mark.usefixtures("other_precision")
def test_a_placeholder_is_learnt_in_half_precision_too(world, tmp_path):
    cli("train_cli", "train", "idetail-lora", "--model", world / "base", "--data", world / "data", *TRAIN,
        "--output", tmp_path, "--steps", 1, "--rank", 2, "--conv-in", world / "conv" / "made.safetensors",
        "--learn-placeholder", "--precision", "bf16")  # fmt: skip
    assert (tmp_path / "made_placeholder.safetensors").exists()


def test_the_pipeline_reads_a_learnt_placeholder(world, worded, pipeline):
    word = worded / "made_placeholder.safetensors"
    made = RelightPipeline.from_base(load_base_model(world / "base"), worded / "made.safetensors", placeholder=word)
    plain = RelightPipeline.from_base(load_base_model(world / "base"), worded / "made.safetensors")
    assert not torch.equal(relit(made, 1), relit(plain, 1))
    assert torch.equal(relit(made, 1, prompt="nobody at dawn"), relit(plain, 1, prompt="nobody at dawn"))


# ---- claims


def test_claims_train_their_rows_once_and_measure_against_the_exact_truth(tmp_path, monkeypatch, capsys):
    cli("dataset_cli", "generate", "idetail_portraits", "--output", tmp_path / "data", "--people", 2, "--inputs", 1)
    cli("train_cli", "train", "idetail-conv-in", "--model", claims.SHIPPED, "--data", tmp_path / "data",
        "--resolution", 128, "--bucket-step", 8, "--batch-size", 1, "--precision", "fp32", "--validation-pairs", 1,
        "--validation-steps", 1, "--name", "conv_in", "--output", tmp_path / "conv", "--steps", 1)  # fmt: skip
    monkeypatch.setattr(claims, "ROWS", (claims.Row(claims.FULL), claims.Row("rank 4", {"rank": 4})))
    shorter = {"steps": 1, "batch": 1, "effects": ("pantone", "garden"), "sampling_steps": 1, "rank": 2}
    real = claims.ClaimsSettings
    monkeypatch.setattr(claims, "ClaimsSettings", lambda *given, **more: real(*given[:4], **{**more, **shorter}))
    cli("evaluate_cli", "claims", "idetail", "--data", tmp_path / "data", "--conv-in",
        tmp_path / "conv" / "conv_in.safetensors", "--output", tmp_path / "claims", "--people", 2)  # fmt: skip
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "claims").glob("runs/*/relight.safetensors")}
    same = real(tmp_path / "data", tmp_path / "conv" / "conv_in.safetensors", tmp_path / "claims" / "runs", **shorter)
    for row in claims.ROWS:  # what is there is not trained again
        file = claims.train_row(row, same)
        assert files[file] == file.stat().st_mtime_ns
    again = {**shorter, "learning_rate": 0.5}
    monkeypatch.setattr(claims, "ClaimsSettings", lambda *given, **more: real(*given[:4], **{**more, **again}))
    told = load_script("evaluate_cli").main([
        "claims", "idetail", "--data", str(tmp_path / "data"), "--conv-in",
        str(tmp_path / "conv" / "conv_in.safetensors"), "--output", str(tmp_path / "claims"), "--people", "2",
    ])  # fmt: skip
    assert told == 1 and "was trained with learning_rate" in capsys.readouterr().err
    found = json.loads((tmp_path / "claims" / "scores.json").read_text())
    report = (tmp_path / "claims" / "report.md").read_text()
    photo = found[claims.PHOTO]
    assert np.allclose(photo["face"], 0, atol=1e-5) and np.allclose(photo["clothing"], 0, atol=1e-5)
    scenes = [original(2, number) for number in range(2)]
    for place, effect in enumerate(("pantone", "garden")):
        for number, scene in enumerate(scenes):
            lit, source = render(claims.relit_truth(scene, effect, number), 128), render(scene, 128)
            inside = source.alpha.expand(-1, 3, -1, -1)
            error = ((lit.image - source.image).square() * inside).sum() / inside.sum()
            assert photo["error"][number][place] == pytest.approx(100 * error.sqrt().item(), rel=1e-4)
    assert f"| {claims.FULL}: unseen effects |" in report and "3 people in a picture" in report
    assert report.count("\n- ") >= 6


def test_a_verdict_knows_which_way_is_better():
    found = {"a": {"x": torch.tensor([[1.0], [2.0]])}, "b": {"x": torch.tensor([[2.0], [3.0]])}}
    assert verdict(found, {"x": ("X", False)}, "less", "a", "b", "x").startswith("- holds: less; gain 1.000")
    assert verdict(found, {"x": ("X", True)}, "more", "a", "b", "x").startswith("- DOES NOT HOLD")


# ---- what is shipped


def test_the_shipped_adapter_is_small_says_how_it_was_made_and_relights():
    files = sorted(SHIPPED.parent.glob("*.safetensors"))
    assert [file.name for file in files] == ["conv_in.safetensors", "relight.safetensors"]
    assert sum(file.stat().st_size for file in files) < 4 * 2**20
    for file in files:
        with safe_open(file, "pt") as opened:
            facts = opened.metadata()
        assert {"ss_seed", "ss_steps", "likeness_revision", "likeness_settings", "data", "date"} <= set(facts)
        assert "dirty" not in facts["likeness_revision"] and "/" not in facts["likeness_settings"]
    settings = claims.ClaimsSettings(SHIPPED, SHIPPED, SHIPPED, people=3, effects=("pantone", "dark shadow"),
                                     sampling_steps=6)  # fmt: skip
    found = claims.measure(load_family(), {claims.BASE: None, "shipped": SHIPPED}, settings)
    errors = {row: columns["error"].mean().item() for row, columns in found.items()}
    assert errors["shipped"] < 0.9 * errors[claims.PHOTO]
    assert found["shipped"]["face"].mean() < found[claims.BASE]["face"].mean()
