"""IDetail's data from photos: the recipe on small random networks, through the command line and by itself."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from comfyui_environment import load_script
from likeness.pipelines.configuration import build_section
from likeness.pipelines.faces import find_faces
from likeness.pipelines.generation import (
    Absent,
    DatasetReader,
    DatasetSettings,
    Job,
    Rejected,
    Survey,
    prepare_dataset,
    verify_dataset,
)
from likeness.pipelines.generation.worker import work
from likeness.pipelines.idetail import photo_data
from likeness.pipelines.idetail.photo_data import PROMPTS, IdetailPhotos, PhotoSettings
from likeness.pipelines.idetail.prompts import INPUT_PROMPTS, TARGET_PROMPTS
from likeness.pipelines.idetail.restoration import RestorationSettings, restore_detail
from likeness.pipelines.idetail.takes import INPUT, ORIGINAL, TARGET, Takes
from likeness.pipelines.idetail.task import TrainConvIn
from likeness.pipelines.images import load_image, save_image
from likeness.pipelines.masks import face_masks
from likeness.pipelines.stop import StopRequest
from tiny_instantid import write_models

for name in ("environment", "comfyui_server", "pack"):  # the script imports these by name
    load_script(name)
SMALL = {"steps": 2, "max_side": 64, "min_similarity": -1.0, "masks": "grabcut"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, one_thread):
    """(photos: a black one, a broken one and two of "people"; the models folder; the base model's own)."""
    root = tmp_path_factory.mktemp("idetail")
    base = write_models(root / "models")
    draw = torch.Generator().manual_seed(0)
    (root / "photos" / "more").mkdir(parents=True)
    save_image(torch.zeros(3, 64, 64), root / "photos" / "a_black.png")
    (root / "photos" / "b_broken.png").write_bytes(b"no picture")
    for name in ("c_anna.png", "more/d_ben.png"):
        soft = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=draw), size=(80, 64), mode="bicubic")
        save_image((soft + 0.2 * torch.randn(1, 3, 80, 64, generator=draw))[0].clamp(0, 1), root / "photos" / name)
    return root / "photos", root / "models", base


@pytest.fixture(scope="module")
def recipe(folders):
    return made_with(folders)


def made_with(folders, **changes):
    photos, models, base = folders
    return IdetailPhotos(PhotoSettings(photos=photos, models=models, model=base, **{**SMALL, **changes}))


def item(recipe, number, seed=5):
    return recipe.make(recipe.parameters(number, seed), seed)


def test_the_command_makes_takes_that_pairs_are_formed_of(folders, tmp_path, capfd):
    photos, models, base = folders
    options = {"photos": photos, "models": models, "model": base, **SMALL, "workers": 1, "shard-size": 5, "total": 9,
               "output": tmp_path / "set"}  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}={value}",)]
    assert load_script("dataset_cli").main(["generate", "idetail", *flags]) == 0, capfd.readouterr().err
    items = list(DatasetReader(tmp_path / "set"))
    takes = Takes(tmp_path / "set")
    takes.read()
    assert [take.role for take in takes.list] == [TARGET] * 7 + [INPUT] * 2
    assert {(one.caption, two.caption) for one, two in takes.pairs()} == {
        (one.caption(), two.caption()) for one in INPUT_PROMPTS[:2] for two in TARGET_PROMPTS
    }  # fmt: skip
    for number, made in enumerate(items):
        truth = made["json"]
        role, prompt = PROMPTS[number]
        assert (truth["person"], truth["role"], truth["prompt"]) == (0, role, prompt.name)
        assert truth["photo"] == "c_anna.png"
        assert truth["faces"] > 1
        assert -1 <= truth["similarity"] <= 1
        assert truth["licence"].startswith("non-commercial")
        assert made["txt"] == prompt.caption()
        assert "<c>" in made["txt"]
        assert truth["prompt_drawn"] == prompt.caption("person")
        assert made["png"].shape == (3, 64, 64)
        assert made["mask.png"].shape == (1, 64, 64)
    assert len({made["png"].numpy().tobytes() for made in items}) == len(items)


def test_a_person_has_67_takes_and_with_direct_the_photo_itself(folders, recipe):
    assert len(PROMPTS) == 67
    assert (recipe.takes, recipe.count) == (67, 4 * 67)
    roles = [recipe.parameters(number, 0)["role"] for number in range(67, 134)]
    assert (roles.count(TARGET), roles.count(INPUT)) == (7, 60)
    assert {recipe.parameters(number, 0)["person"] for number in range(67, 134)} == {1}
    direct = made_with(folders, direct=True)
    assert direct.takes == 68
    made = item(direct, 67 + 68)
    assert (made["json"]["role"], made["json"]["prompt"], made["json"]["similarity"]) == (ORIGINAL, "", 1.0)
    assert made["json"]["photo"] == "more/d_ben.png"
    whole = load_image(folders[0] / "more" / "d_ben.png")
    assert torch.equal(made["png"], whole[0, :, 8:-8])


def test_photos_without_a_face_are_passed_over_and_said(folders, caplog):
    recipe = made_with(folders)
    assert item(recipe, 67)["json"]["photo"] == "more/d_ben.png"
    assert "a_black.png is passed over: no face is found in it" in caplog.text
    assert "b_broken.png is passed over: " in caplog.text
    with pytest.raises(Absent, match=r"fewer photos show a face than there are photos \(--photos\)"):
        item(recipe, 2 * 67)


def test_photos_without_a_face_do_not_keep_a_data_set_from_being_finished(folders, tmp_path, monkeypatch):
    """Two of four photos show nobody, and no total is asked for."""
    monkeypatch.setattr(photo_data, "PROMPTS", PROMPTS[:2])
    recipe = made_with(folders)
    dataset = prepare_dataset(tmp_path, recipe, DatasetSettings(shard_size=3))
    work(dataset, recipe, Job(str(tmp_path), {}, dataset.fingerprint), StopRequest())
    state = Survey(dataset, 60).look()
    assert (dataset.total, state.complete, state.kept, state.absent) == (8, True, 4, 4)
    assert "4  fewer photos show a face than there are photos (--photos)" in state.summary()
    takes = Takes(tmp_path)
    takes.read()
    assert [take.person for take in takes.list] == ["0", "0", "1", "1"]
    assert verify_dataset(dataset) == {}


def test_a_person_who_cannot_be_drawn_costs_its_own_shard_alone(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(photo_data, "PROMPTS", PROMPTS[:2])
    recipe = made_with(folders)
    judged = recipe._judged

    def never_anna(subject, picture):
        if recipe._current[0] == 0:
            raise Rejected("face of the output not similar enough (--min-similarity)")
        return judged(subject, picture)

    monkeypatch.setattr(recipe, "_judged", never_anna)
    dataset = prepare_dataset(tmp_path, recipe, DatasetSettings(shard_size=2))
    work(dataset, recipe, Job(str(tmp_path), {}, dataset.fingerprint, max_attempts=2), StopRequest())
    assert "do without this shard (--partial)" in Survey(dataset, 60).look().failed[0]
    with pytest.raises(ValueError, match="1 of 4 shards are not finished .* take the finished ones with --partial"):
        Takes(tmp_path)
    settings = {"data": tmp_path, "model": folders[2]}
    takes = TrainConvIn(build_section(TrainConvIn.Settings, {**settings, "partial": True}, "task")).open(tmp_path)
    takes.read()
    assert [take.person for take in takes.list] == ["1", "1"]


def test_an_item_is_a_function_of_its_seed(folders, recipe):
    first = item(recipe, 3)
    item(recipe, 70)
    again = item(recipe, 3)
    assert torch.equal(first["png"], again["png"])
    assert first["json"] == again["json"]
    assert not torch.equal(first["png"], item(recipe, 3, seed=6)["png"])
    assert torch.equal(first["png"], item(made_with(folders), 3)["png"])


def test_outputs_get_the_photos_detail_inside_the_face(folders, recipe):
    plain = item(made_with(folders, restore="none"), 3)["png"][None]
    subject, region = recipe._subject_of(0)
    face = subject.face
    assert torch.equal(region, face_masks(subject.photo, [torch.tensor([face.box])], [[face.landmarks]]))
    for method in ("guided filter", "wavelet"):
        made = item(made_with(folders, restore=method, restore_region="foreground"), 3)["png"][None]
        where = recipe._foreground(subject.photo, face)
        expected = restore_detail(plain, subject.photo, where, RestorationSettings(method))
        assert (made - expected).abs().max() <= 1.5 / 255  # the plain one was rounded before
        assert (made - plain).abs().max() > 3 / 255
    assert (item(recipe, 3)["png"] - plain[0]).abs()[:, region[0, 0] == 0].max() == 0


def test_the_similarity_is_that_of_the_largest_faces_of_the_files(folders, recipe, tmp_path):
    made = item(recipe, 3)
    save_image(made["png"], tmp_path / "output.png")
    subject, _ = recipe._subject_of(0)
    found = find_faces(recipe._backend, load_image(tmp_path / "output.png"))
    cosine = float(found.images[0][0].embedding @ subject.face.embedding)
    assert made["json"]["similarity"] == pytest.approx(cosine, abs=1e-4)


def test_outputs_of_somebody_else_or_nobody_are_rejected_with_the_reason(folders, recipe):
    with pytest.raises(Rejected, match=r"face of the output not similar enough \(--min-similarity\)"):
        item(made_with(folders, min_similarity=1.0), 3)

    class Black:
        def draw(self, subject, prompt, generator):
            return torch.zeros_like(subject.photo)

    other = made_with(folders, restore="none")
    other.__dict__["_generator"] = Black()
    with pytest.raises(Rejected, match="no face in the output"):
        item(other, 3)


def test_masks_by_mask_rcnn_are_its_people(folders, recipe):
    chosen = made_with(folders)
    chosen.settings = replace(chosen.settings, masks="mask r-cnn")
    left = torch.zeros(1, 1, 64, 64)
    left[..., :30] = 0.9
    chosen.__dict__["_people"] = lambda pictures: [
        {"labels": torch.tensor([1]), "scores": torch.tensor([0.99]), "masks": left}
    ]  # fmt: skip
    mask = item(chosen, 3)["mask.png"]
    assert mask[:, :, :26].min() > 0.9
    assert mask[:, :, 34:].max() < 0.1
    with pytest.raises(ValueError, match="maskrcnn_resnet50_fpn_v2.*weights_cli.py download mask-rcnn-v2 --models"):
        made_with(folders, masks="mask r-cnn")


def test_torchvision_that_is_missing_is_told_before_anything_is_drawn(folders, monkeypatch):
    """Mask R-CNN comes after SDXL has drawn and InsightFace has judged."""
    monkeypatch.setattr(photo_data, "weight_file", lambda name, models: folders[0] / "a_black.png")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="torchvision is needed here and not installed"):
        made_with(folders, masks="mask r-cnn")


def test_other_photos_or_weights_are_another_data_set(folders, recipe, tmp_path):
    photos, models, base = folders
    assert made_with(folders).inputs == recipe.inputs
    extra = photos / "e_eve.png"
    save_image(torch.ones(3, 64, 64), extra)
    try:
        assert made_with(folders).inputs != recipe.inputs
    finally:
        extra.unlink()
    unet = base / "unet" / "diffusion_pytorch_model.safetensors"
    whole = unet.read_bytes()
    unet.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # another model of the same shape
    try:
        assert made_with(folders).inputs != recipe.inputs
    finally:
        unet.write_bytes(whole)
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index, indent=8))
    assert made_with(folders).inputs != recipe.inputs
    with pytest.raises(ValueError, match="--photos is .*nowhere: no such folder"):
        IdetailPhotos(replace(recipe.settings, photos=tmp_path / "nowhere"))
