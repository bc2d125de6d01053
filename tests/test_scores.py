"""Scores of batches and files: what is measured, what is absent and why, ranking, and folder against folder."""

import csv
import io
import json
import math
import re
import statistics
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import torch
from likeness.pipelines.embedded.family import load_family
from likeness.pipelines.embedded.measure import image_features, text_features
from likeness.pipelines.evaluation import backbones, plots, report
from likeness.pipelines.evaluation import scores as scores_module
from likeness.pipelines.evaluation.files import score_files
from likeness.pipelines.evaluation.folders import Comparison, Panel, compare_folders, people_of, pictures_of
from likeness.pipelines.evaluation.panel import portrait_scores
from likeness.pipelines.evaluation.ranking import best, labelled, wrap
from likeness.pipelines.evaluation.scores import (
    ScoreTable,
    Subject,
    absent_score,
    clothing_score,
    face_score,
    pixel_scores,
    prompt_scores,
    score_pictures,
)
from likeness.pipelines.evaluation.sets import SetScores, score_sets
from likeness.pipelines.images import from_uint8, save_image
from likeness.pipelines.metrics import (
    class_similarities,
    clip_score,
    density_coverage,
    frechet_distance,
    gmsd,
    kernel_distance,
    ssim,
)
from likeness.pipelines.stop import Stopped
from PIL import Image
from torch.nn.functional import normalize

pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(count: int, size=(40, 48), seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def colours(images: torch.Tensor) -> torch.Tensor:
    """A backbone that can be computed by hand: mean and spread of each colour."""
    return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


PLAIN = backbones.Backbone("colours", colours, lambda texts: torch.ones(len(texts), 6), lambda images: images)


@pytest.fixture(scope="module")
def embedded():
    return backbones.embedded_clip()


# ---- networks


def test_embedded_towers_see_what_they_were_trained_to_see(embedded):
    family, images = load_family(), pictures(2, (128, 128))
    texts = ["a portrait of a calm person", "a sheep"]
    assert torch.allclose(normalize(embedded.embed(images), dim=1), image_features(family, images * 2 - 1), atol=1e-5)
    assert torch.allclose(normalize(embedded.embed_text(texts), dim=1), text_features(family, texts), atol=1e-5)
    assert embedded.name == "embedded CLIP" and embedded.maps(images).shape[2:] == (8, 8)


def test_a_network_moves_with_all_that_it_runs(embedded):
    images, seen = pictures(2), []
    module = torch.nn.Linear(2, 2)
    network = backbones.Backbone("n", lambda x: seen.append(x.device.type) or x, None, None, (module,))
    moved = network.to("meta")
    assert module.weight.device.type == "meta" and moved.maps is None
    with pytest.raises(NotImplementedError):  # what comes back from there has no values
        moved.embed(images)
    assert seen == ["meta"]
    again = embedded.to("cpu")
    assert torch.equal(again.embed(images), embedded.embed(images))
    assert torch.equal(again.maps(images), embedded.maps(images))
    assert len(embedded.modules) == 2
    with pytest.raises(ValueError, match="the device nonsense cannot be used here"):
        embedded.to("nonsense")


def test_middle_square_is_that_of_pillow():
    from skimage.data import astronaut

    photo = Image.fromarray(astronaut()).resize((300, 201))
    prepare = backbones.Preparation(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    found = prepare.middle(from_uint8(np.asarray(photo)))[0]
    small = np.asarray(photo.resize((95, 64), Image.Resampling.BICUBIC))[:, 15:79] / 255
    expected = (small - (0.5, 0.4, 0.3)) / (0.2, 0.3, 0.4)
    assert found.shape == (3, 64, 64)
    # Pillow rounds to grey levels between its two passes, which tells at the sharpest edges.
    off = 255 * np.abs(found.permute(1, 2, 0).numpy() - expected) * (0.2, 0.3, 0.4)
    assert off.mean() < 0.5 and off.max() < 8
    tall = prepare.middle(torch.rand(1, 3, 131, 65))
    assert tall.shape == (1, 3, 64, 64) and prepare.whole(torch.rand(1, 3, 131, 65)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("size", [(64, 64), (101, 61), (60, 95)], ids=str)
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("CLIP", {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}),
        ("CLIP", {"crop_size": 32, "size": 32}),
        ("Bit", {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}}),  # as DINOv2's folder has it
    ],
)
def test_preparation_is_that_of_transformers(tmp_path, kind, said, size):
    import transformers
    from skimage.data import astronaut

    processor = next(getattr(transformers, f"{kind}ImageProcessor{form}") for form in ("Pil", "")
                     if hasattr(transformers, f"{kind}ImageProcessor{form}"))(**said, resample=3)  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    prepare = backbones._preparation(tmp_path, 24, backbones.CLIP_MEAN, backbones.CLIP_SPREAD)
    photo = Image.fromarray(astronaut()).resize(size[::-1])
    truth = np.asarray(processor(photo, return_tensors="np")["pixel_values"])[0]
    found = prepare.middle(from_uint8(np.asarray(photo)))[0].numpy()
    assert found.shape == truth.shape
    assert 255 * np.abs(found - truth).mean() * 0.27 < 0.6  # grey levels; a pixel beside it would be some 10


def test_clip_of_a_folder_gives_transformers_own_similarity(tmp_path, embedded):
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = backbones.load_tokenizer(backbones.SHIPPED / "tokenizer")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(tokenizer), "projection_dim": 24},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 24}, projection_dim=24,
    )).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = backbones.clip(tmp_path)
    images, texts = pictures(3, (32, 32)), ["a portrait", "a person in studio light"]
    mean, spread = (torch.tensor(x)[:, None, None] for x in (backbones.CLIP_MEAN, backbones.CLIP_SPREAD))
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        truth = model(pixel_values=(images - mean) / spread, **tokens).logits_per_image / model.logit_scale.exp()
    pairs = [[clip_score(found.embed(images[i : i + 1]), found.embed_text([text])) for text in texts] for i in range(3)]
    assert torch.allclose(torch.tensor(pairs), truth.double(), atol=1e-5)
    assert found.name == tmp_path.name


def test_dinov2_of_a_folder_and_its_preparation(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28)).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 42, "width": 42}}))
    found, images = backbones.dinov2(tmp_path), pictures(2, (42, 42))
    mean, spread = (torch.tensor(x)[:, None, None] for x in (backbones.IMAGENET_MEAN, backbones.IMAGENET_SPREAD))
    with torch.no_grad():
        truth = model(pixel_values=(images - mean) / spread).pooler_output
    assert torch.allclose(found.embed(images), truth, atol=1e-5)
    assert found.maps(images).shape == (2, 24, 3, 3)


def test_a_folder_that_is_no_network_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no config.json: give a folder as transformers saves Dinov2Model"):
        backbones.dinov2(tmp_path)


def test_networks_are_found_where_the_manifest_puts_them(tmp_path):
    with pytest.raises(ValueError, match="dinov2 is not there; the place for it is .*base: run .* download dinov2"):
        backbones.load_network("dinov2", [tmp_path])
    with pytest.raises(ValueError, match="no network 'resnet': choose embedded-clip, clip"):
        backbones.load_network("resnet", [tmp_path])
    file = tmp_path / "likeness" / "lpips" / "vgg16-397923af.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert backbones.place_of("lpips-vgg16", [tmp_path / "none", tmp_path]) == file
    own = {"own": (lambda image, source: image.mean((1, 2, 3)), True)}
    table = score_pictures(Subject(pictures(2), pictures(2)), portrait_scores([tmp_path], PLAIN, None, own))
    assert list(table.values) == ["own", "SSIM", "FSIM", "GMSD", "PSNR (dB)"]
    assert "alexnet-owt" in table.absent["LPIPS"] or "download lpips-alexnet" in table.absent["LPIPS"]
    assert "there are no faces: connect them" in table.absent["Face ID score"]


# ---- scores of a batch


def test_a_long_batch_gives_what_its_pictures_give_alone():
    count = 2 * scores_module.CHUNK + 3
    images, source, mask = pictures(count), pictures(count, seed=1), pictures(count, seed=2)[:, 0]
    chosen = (*pixel_scores(), *prompt_scores(PLAIN), clothing_score(PLAIN), face_score("somebody's"))
    faces = torch.randn(count, 7, generator=torch.Generator().manual_seed(0))
    faces[4] = torch.nan
    subject = Subject(images, source, tuple(map(str, range(count))), ("before",), mask, None, faces, faces[:1])
    steps = []
    table = score_pictures(subject, chosen, lambda *step: steps.append(step))
    assert steps == [(8, count), (16, count), (19, count)]
    assert torch.allclose(table.values["SSIM"], ssim(images, source).double())
    assert torch.allclose(table.values["GMSD"], gmsd(images, source).double())
    face = table.values["Face ID score (somebody's)"]
    assert face[0].item() == pytest.approx(0, abs=1e-6) and face[4].isnan() and face.isnan().sum() == 1
    assert table.higher["SSIM"] and not table.higher["GMSD"] and table.groups["SSIM"] == "structure"
    place = 17
    alone = score_pictures(
        replace(subject, image=images[place:18], source=source[place:18], prompts=subject.prompts[place:18],
                mask=mask[place:18], faces=faces[place:18]), chosen)  # fmt: skip
    assert set(alone.values) == set(table.values)
    for name, values in alone.values.items():
        assert torch.allclose(values, table.values[name][place : place + 1], atol=1e-6, equal_nan=True)
    assert set(table.absent) <= {"CLIP directional (colours)"}


def test_clothing_score_sees_no_change_outside_its_mask():
    source = pictures(1)
    image, mask = source.clone(), torch.zeros(1, 40, 48)
    image[..., :20, :] = 1 - image[..., :20, :]
    mask[:, 20:] = 1
    score = (clothing_score(PLAIN),)
    same = score_pictures(Subject(image, source, mask=mask), score).values["Clothing score (colours)"]
    other = score_pictures(Subject(image, source, mask=1 - mask), score).values["Clothing score (colours)"]
    assert same.item() == pytest.approx(0, abs=1e-6) and other.item() > 1e-6
    far_sighted = replace(PLAIN, maps=lambda images: images.mean((2, 3), keepdim=True).expand_as(images))
    seen = score_pictures(Subject(image, source, mask=mask), (clothing_score(far_sighted),))
    assert seen.values["Clothing score (colours)"].item() == pytest.approx(0, abs=1e-6)
    table = score_pictures(Subject(image, source, mask=0 * mask), score)
    assert table.absent == {"Clothing score (colours)": "the mask of the clothes is empty."}


def test_the_change_of_the_picture_runs_from_the_source_and_that_of_the_prompt_from_its_prompt():
    words = {"dark": torch.tensor([1.0, 0.0]), "bright": torch.tensor([0.0, 1.0])}

    def light(images):
        level = images.mean((1, 2, 3))
        return torch.stack([1 - level, level], 1)

    scores = prompt_scores(backbones.Backbone("light", light, lambda texts: torch.stack([words[t] for t in texts])))
    dark, bright = torch.full((1, 3, 32, 32), 0.1), torch.full((1, 3, 32, 32), 0.9)
    table = score_pictures(Subject(bright, dark, ("bright",), ("dark",)), scores)
    assert table.values["CLIP directional (light)"].item() == pytest.approx(1)
    against = score_pictures(Subject(bright, dark, ("dark",), ("bright",)), scores)
    assert against.values["CLIP directional (light)"].item() == pytest.approx(-1)
    assert table.values["CLIP score (light)"] > 0.9 > 0.2 > against.values["CLIP score (light)"]


def test_means_are_of_the_pictures_that_have_a_score():
    assert scores_module.mean_of(torch.tensor([1.0, torch.nan, 4.0])) == 2.5
    table = ScoreTable({"a": torch.tensor([1.0, torch.nan, 4.0])}, {}, {"a": True}, {"a": "structure"})
    assert [line.split() for line in table.text().splitlines()[1:]] == [
        ["1", "1.0000"], ["2", "-"], ["3", "4.0000"], ["mean", "2.5000"],
    ]  # fmt: skip


def test_a_map_lies_as_the_picture_does(tmp_path):
    """What changes in one place of a picture that is not a square of equal corners changes most in that cell."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"crop_size": 56}))
    network, image = backbones.dinov2(tmp_path), pictures(1, (56, 56))
    for row, column in ((0, 2), (3, 1)):
        other = image.clone()
        other[..., 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] = pictures(1, (14, 14), seed=5)
        moved = (network.maps(other) - network.maps(image)).norm(dim=1)[0]
        assert divmod(int(moved.argmax()), 4) == (row, column)


def test_absent_scores_say_why_and_the_others_stay():
    chosen = (*pixel_scores(), *prompt_scores(PLAIN), face_score("x"), absent_score("FID", "structure", "no file."))
    table = score_pictures(Subject(pictures(2), None, ("a person",)), chosen)
    assert list(table.values) == ["CLIP score (colours)"]
    assert table.absent["SSIM"] == "there is no source picture to compare with."
    assert table.absent["FID"] == "no file." and "no FID: no file." in table.text()
    other_size = score_pictures(Subject(pictures(2), pictures(1, (20, 20)), ("a person",)), chosen)
    assert "image is 48x40, source is 20x20" in other_size.absent["SSIM"]
    nobody = torch.full((2, 3), torch.nan)
    table = score_pictures(Subject(pictures(2), faces=nobody, identity=torch.ones(1, 3)), (face_score("x"),))
    assert "x found no face" in table.absent["Face ID score (x)"]


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (Subject(torch.full((1, 3, 32, 32), torch.nan)), "3072 values that are NaN"),
        (Subject(torch.zeros(0, 3, 32, 32)), "empty batch"),
        (Subject(torch.zeros(1, 4, 32, 32)), "4 channels \\(RGBA\\)"),
        (Subject(pictures(4), pictures(3)), "source is a batch of 3, which does not fit a batch of 4"),
        # 2 divides 4, but which picture is of which source?
        (Subject(pictures(4), pictures(2)), "source is a batch of 2, which does not fit a batch of 4"),
        (Subject(pictures(4), mask=torch.zeros(2, 40, 48)), "mask is a batch of 2, which does not fit"),
        (Subject(pictures(4), source_mask=torch.zeros(2, 40, 48)), "source mask is a batch of 2, which does not fit"),
        (Subject(pictures(2), identity=torch.ones(3, 5)), "3 identities for 2 pictures"),
        (Subject(pictures(2), prompts=("a", "b", "c")), "3 prompts for 2 pictures: give 1 or 2"),
        (Subject(pictures(2), mask=torch.zeros(2, 9, 99)), "mask is 99x9, image is 48x40"),
    ],
)
def test_bad_input_is_an_error_that_names_it(subject, message):
    with pytest.raises(ValueError, match=message):
        score_pictures(subject, pixel_scores())


# ---- ranking


def test_best_orders_both_ways_and_leaves_nan_to_the_end():
    values = torch.tensor([0.5, torch.nan, 0.9, 0.1, 0.9])
    assert best(values, 3, higher=True) == [2, 4, 0]
    assert best(values, 9, higher=False) == [3, 0, 2, 4, 1]
    assert best(torch.tensor([torch.inf, 3.0, torch.nan]), 3, higher=True) == [0, 1, 2]
    assert best(torch.tensor([torch.nan, -torch.inf, 0.0]), 3, higher=True) == [2, 1, 0]
    with pytest.raises(ValueError, match="none of 2 scores is a number"):
        best(torch.full((2,), torch.nan), 1, True)
    with pytest.raises(ValueError, match="0 pictures are asked for"):
        best(values, 0, True)


def test_labels_stand_below_the_untouched_picture():
    images = pictures(2, (64, 96))
    made = labelled(images, [["SSIM 0.5"], ["SSIM 0.25", "a second line that is far too long for the picture"]])
    assert torch.equal(made[:, :, :64], images)
    strips = made[:, :, 64:]
    dark = (strips < 0.5).all(1).sum((1, 2))
    assert strips.shape[2] > 0 and dark[1] > 2 * dark[0] > 0
    clear = labelled(torch.cat([images, 0.25 * images[:, :1]], 1), [["SSIM 0.5"]] * 2)
    assert torch.equal(clear[:, :3, 64:80], labelled(images, [["SSIM 0.5"]] * 2)[:, :, 64:80])
    assert (clear[:, 3, 64:] == 1).all() and torch.equal(clear[:, 3, :64], 0.25 * images[:, 0])
    assert wrap("one three fourteen", len, 9) == ["one three", "fourteen"]
    assert wrap("extraordinary word", len, 4) == ["extraordinary", "word"]


# ---- plots


def test_histograms_count_every_finite_value_once():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)).tolist()
    edges, counts = plots.bins_of([*values, float("inf"), float("nan")])
    assert counts == np.histogram(values, bins=edges)[0].tolist() and sum(counts) == 500
    for few in ([], [3.0], [2.0, 2.0]):
        edges, counts = plots.bins_of(few)
        assert edges[-1] > edges[0] and sum(counts) == len(few)


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (0.31, 0.37), (-40, 1200), (7.2, 7.2001)])
def test_axes_have_a_few_round_numbers_inside(low, high):
    values = plots._round_values(low, high)
    assert 3 <= len(values) <= 9 and low - 1e-9 <= values[0] and values[-1] <= high + 1e-9
    assert np.ptp(np.diff(values)) < 1e-9


def test_drawings_are_sound_and_names_in_them_harmless():
    name = "<script>alert(1)</script> & co"
    drawn = [plots.histogram(name, name, [0, 0.5, 1], {name: [1, 3], "b": [0, 0]}),
             plots.scatter(name, {name: [(0, 1), (2, 3)], "b": []})]  # fmt: skip
    for text in drawn:
        root = ElementTree.fromstring(text)
        assert root.tag == "svg" and not root.findall(".//script")
    assert len(ElementTree.fromstring(drawn[1]).findall("circle")) == 2


# ---- folder against folder


@pytest.fixture
def folders(tmp_path):
    """made: 2 people of 3 pictures, one of them broken, one without reference; real: 2 people of 3 pictures."""
    for seed, kind in enumerate(("made", "real")):
        for person in ("anna", "<b>"):
            (tmp_path / kind / person).mkdir(parents=True)
            for take, picture in enumerate(pictures(3, seed=seed + 10 * len(person))):
                save_image(picture, tmp_path / kind / person / f"{take}.png")
    (tmp_path / "made" / "anna" / "2.png").write_bytes(b"no picture")
    (tmp_path / "made" / "<b>" / "2.png").rename(tmp_path / "made" / "<b>" / "9.png")
    (tmp_path / "made" / "anna" / "0.txt").write_text("a calm person")
    return tmp_path


class Faces:
    """A face backend that finds one face in every picture but the first it is asked for."""

    name = embedder = "colours"

    def __init__(self):
        self.asked = 0

    def detect(self, images, on_step=None):
        from likeness.pipelines.faces.face import Face

        self.asked += 1
        return [[] if self.asked == 1 else [Face((5, 5, 30, 35), 1.0)] for _ in images]

    def prepare_embedder(self):
        pass

    def embed(self, images, faces, on_step=None):
        vectors = normalize(colours(images) - 0.4, dim=1)
        return [[replace(face, embedding=v) for face in found] for found, v in zip(faces, vectors, strict=True)]

    licence = ""


def compared(folders, on_step=lambda *step: None, faces=None):
    chosen = (*pixel_scores(), *prompt_scores(PLAIN), face_score("colours"))
    return compare_folders(folders / "made", folders / "real", Panel(chosen, PLAIN, faces), on_step=on_step)


def test_folders_are_compared_by_name_and_bad_files_are_listed(folders):
    found = compared(folders)
    assert found.complete and sorted(found.pairs) == ["<b>/0", "<b>/1", "anna/0", "anna/1"]
    assert len(found.made) == 5 and len(found.real) == 6
    assert list(found.bad) == [str(folders / "made" / "anna" / "2.png")]
    pair = [from_uint8(np.asarray(Image.open(folders / kind / "anna" / "1.png"))) for kind in ("made", "real")]
    assert found.scores["anna/1"]["SSIM"] == pytest.approx(ssim(*pair).item())
    assert "SSIM" not in found.scores["<b>/9"] and "CLIP score (colours)" in found.scores["anna/0"]
    assert found.absent["CLIP score (colours)"] == {"there is no prompt to compare with.": 4}
    assert people_of(found.made).tolist() == [0, 0, 0, 1, 1]


def test_a_picture_that_cannot_be_measured_is_listed_and_the_others_stay(folders):
    class Fussy(Faces):
        def detect(self, images, on_step=None):
            if self.asked == 1:
                self.asked += 1
                raise ValueError("a face is upside down")
            return super().detect(images, on_step)

    found = compared(folders, faces=Fussy())
    first = str(folders / "real" / "<b>" / "0.png")
    assert found.complete and found.bad[first] == f"{first}: a face is upside down" and len(found.bad) == 2
    assert "<b>/0" not in found.real and "SSIM" not in found.scores["<b>/0"] and "SSIM" in found.scores["<b>/1"]


def test_scores_of_the_wholes_are_those_of_the_features(folders):
    found = compared(folders, faces=Faces())
    sets = score_sets(found, "colours", "colours", lambda *step: None)
    made, real = (torch.stack([one.features for one in seen.values()]) for seen in (found.made, found.real))
    assert sets.values["Fréchet distance (colours)"] == pytest.approx(frechet_distance(made, real))
    assert sets.values["MMD (colours)"] == pytest.approx(kernel_distance(made, real))
    among = density_coverage(real, made)
    assert sets.values["density (colours)"] == among.density and sets.values["coverage (colours)"] == among.coverage
    assert "the first set has 5 samples" in sets.absent["KID (colours, 50 subsets of 1000)"]
    assert "no face was found in 1 of 5 pictures of the folder." in sets.warnings
    seen = [(name, one.face) for name, one in sorted(found.made.items()) if not one.face.isnan().any()]
    people = torch.tensor([name.startswith("anna") for name, _ in seen]).long()
    same, different = class_similarities(torch.stack([face for _, face in seen]), people)
    assert people.tolist() == [0, 0, 1, 1] and same.mean != pytest.approx(different.mean, abs=1e-4)
    assert sets.values["same person, mean cosine (folder)"] == pytest.approx(same.mean)
    faces = torch.stack([one.face for one in found.real.values()])
    same, different = class_similarities(faces, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert sets.values["same person, mean cosine (reference)"] == pytest.approx(same.mean)
    assert sets.similarities["reference"][1] == different
    assert "verification in 10 folds needs" in sets.absent["verification accuracy (folder)"]


def test_report_holds_everything_and_hides_nothing(folders):
    found = compared(folders, faces=Faces())
    sets = score_sets(found, "colours", "colours", lambda *step: None)
    files = report.write_report(folders / "out", found, sets, lambda *step: None)
    rows = {row["picture"]: row for row in csv.DictReader(io.StringIO(files["pictures.csv"].read_text()))}
    assert float(rows["anna/1"]["SSIM"]) == found.scores["anna/1"]["SSIM"] and rows["<b>/9"]["SSIM"] == ""
    told = json.loads(files["scores.json"].read_text(), parse_constant=pytest.fail)
    assert told["pictures"]["anna/1"] == found.scores["anna/1"] and told["sets"].keys() == sets.values.keys()
    page = files["report.html"].read_text()
    assert "<b>/0" not in page and "&lt;b&gt;/0" in page and "anna/2.png is not an image" in page
    assert page.count("data:image/jpeg;base64,") == 2 * 4 and "http" not in page
    assert len(plots_of(page)) == page.count("<svg") >= 5


def plots_of(page: str) -> list:
    return [ElementTree.fromstring(f"<svg{part.split('</svg>')[0]}</svg>") for part in page.split("<svg")[1:]]


def test_a_stop_keeps_what_was_done(folders):
    def stop(what, done, total):
        if done == 3:
            raise Stopped("SIGINT")

    found = compared(folders, stop)
    assert not found.complete and len(found.real) == 3
    page = report.write_report(folders / "out", found, SetScores(), lambda *step: None)["report.html"].read_text()
    assert "Stopped before its end" in page


def test_a_stop_keeps_the_files_that_were_scored(folders):
    def stop(done, total):
        if done == 2:
            raise Stopped("SIGINT")

    files = sorted((folders / "real").rglob("*.png"))
    found = score_files(files, Panel(pixel_scores(), PLAIN), files[0], on_step=stop)
    assert list(found.scores) == [str(file) for file in files[:2]] and found.as_json()["complete"] is False
    assert score_files(files[:1], Panel(pixel_scores(), PLAIN)).complete


def test_folders_without_pictures_or_with_two_of_one_name_are_named(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        pictures_of(tmp_path / "none")
    (tmp_path / ".hidden").mkdir()
    save_image(pictures(1)[0], tmp_path / ".hidden" / "a.png")
    with pytest.raises(ValueError, match="holds no pictures"):
        pictures_of(tmp_path)
    for name in ("a.png", "a.jpg"):
        save_image(pictures(1)[0], tmp_path / name)
    with pytest.raises(ValueError, match="a.jpg and .*a.png have the same name"):
        pictures_of(tmp_path)


def test_command_lines_write_what_they_say(folders, capsys):
    from comfyui_environment import load_script

    load_script("pack")
    command = load_script("evaluate_cli").main
    real = str(folders / "real" / "anna" / "1.png")
    bad = str(folders / "made" / "anna" / "2.png")
    target = folders / "scores.json"
    assert command(["score", real, bad, "--source", real, "--prompt", "a person", "--json", str(target)]) == 0
    said = capsys.readouterr()
    assert "CLIP score (embedded)" in said.out and "no Face ID score" in said.out and "left out: " in said.err
    told = json.loads(target.read_text(), parse_constant=pytest.fail)
    assert told["pictures"][real]["scores"]["SSIM"] == pytest.approx(1)
    assert told["pictures"][real]["scores"]["PSNR (dB)"] == "inf" and list(told["bad"]) == [bad]
    assert command(["score", bad]) == 1
    out = folders / "out"
    assert command(["compare", str(folders / "made"), str(folders / "real"), "--output", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"pictures.csv", "scores.json", "report.html"}
    assert command(["compare", str(out), str(folders / "real"), "--output", str(out)]) == 1
    assert "holds no pictures" in capsys.readouterr().err


@pytest.fixture
def command(monkeypatch):
    """The command line with a panel that is quick to load."""
    from comfyui_environment import load_script

    load_script("pack")
    script = load_script("evaluate_cli")
    monkeypatch.setattr(script, "_panel", lambda options: Panel(pixel_scores(), PLAIN))
    return script.main


def test_a_console_without_arrows_gets_the_table(folders, command, monkeypatch):
    real, target, console = str(folders / "real" / "anna" / "1.png"), folders / "scores.json", io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(console, encoding="cp1252", write_through=True))
    assert command(["score", real, "--source", real, "--json", str(target)]) == 0
    assert b"SSIM ?" in console.getvalue() and target.is_file()


def test_places_for_results_are_made_or_refused_before_anything_is_scored(folders, command, capsys):
    real, target = str(folders / "real" / "anna" / "1.png"), folders / "new" / "folder" / "scores.json"
    assert command(["score", real, "--source", real, "--json", str(target)]) == 0 and target.is_file()
    taken = ["--json", str(target / "below.json")]
    assert command(["score", real, "--source", real, *taken]) == 1
    assert command(["compare", str(folders / "made"), str(folders / "real"), "--output", str(target)]) == 1
    said = capsys.readouterr()
    assert said.err.count("is no folder to write into (") == 2 and "pictures:" not in said.err


def test_a_stopped_score_writes_what_it_found(folders, command, monkeypatch, capsys):
    from likeness.pipelines import stop

    files, target, asked = sorted(map(str, (folders / "real").rglob("*.png"))), folders / "scores.json", []

    def check(self, *progress):
        asked.append(progress)
        if len(asked) == 3:
            raise Stopped("SIGINT")

    monkeypatch.setattr(stop.StopRequest, "check", check)
    assert command(["score", *files, "--source", files[0], "--json", str(target)]) == 0
    said = capsys.readouterr()
    assert files[1] in said.out and files[2] not in said.out and "Stopped" in said.err
    assert list(json.loads(target.read_text())["pictures"]) == files[:2]


def test_what_pictures_gave_is_written_before_the_wholes_are_scored(folders, command, monkeypatch):
    from likeness.pipelines.evaluation import sets

    def crash(*settings):
        raise RuntimeError

    monkeypatch.setattr(sets, "score_sets", crash)
    with pytest.raises(RuntimeError):
        command(["compare", str(folders / "made"), str(folders / "real"), "--output", str(folders / "out")])
    told = json.loads((folders / "out" / "scores.json").read_text())
    assert "SSIM" in told["pictures"]["anna/1"] and told["warnings"] == ["The folders as wholes were not scored."]


def test_summary_of_an_even_number_of_pictures_has_the_median_between_the_two_in_the_middle():
    found = Comparison("made", "real", higher={"SSIM": True})
    values = (0.9, 0.1, 0.4, math.nan, 0.5, math.inf)
    found.scores = {str(place): {"SSIM": value} for place, value in enumerate(values)}
    known = [0.1, 0.4, 0.5, 0.9]
    told = report.summary(found, "SSIM")
    assert told["median"] == pytest.approx(statistics.median(known)) and told["mean"] == pytest.approx(sum(known) / 4)
    assert told["count"] == 5 and told["infinite"] == 1
    # Student's t with three degrees of freedom: 3.1824 standard errors to either side.
    assert told["interval"] == pytest.approx(3.1824463 * statistics.stdev(known) / 2)


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_pictures_of_a_report_come_first_and_the_worst_of_the_others_after(higher):
    found = Comparison("made", "real", higher={"score": higher})
    found.scores = {f"p{place}": {"score": (place * 7 % 30) / 30} for place in range(30)}
    shown = re.findall(r"<strong>(p\d+)</strong>", report._pictures(found, lambda *step: None))
    order = sorted(found.scores, key=lambda name: found.scores[name]["score"], reverse=higher)
    assert shown == [*order[: report.SHOWN], *order[::-1][: report.SHOWN]]
