"""Portrait Scores and Keep Best in a real ComfyUI, and LPIPS where torchvision is."""

import io
import math

import folder_paths
import numpy as np
import pytest
import torch
from comfyui_server import ComfyRunError
from likeness.nodes.portrait_scores import KeepBest, PortraitScores
from likeness.pipelines.evaluation import backbones
from likeness.pipelines.evaluation.backbones import embedded_clip, inception
from likeness.pipelines.evaluation.panel import LPIPS_WEIGHTS
from likeness.pipelines.evaluation.ranking import labelled
from likeness.pipelines.faces.face import Face, Faces, Identity
from likeness.pipelines.images import save_image
from likeness.pipelines.metrics import LPIPS, clip_score, ssim
from likeness.pipelines.portraits import edited, render, sample_person
from likeness.pipelines.spl import structure_loss
from likeness.pipelines.weights.manifest import named, select, shipped
from PIL import Image

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = "a portrait of a calm person at golden hour"
LIGHTS = ("studio", "golden hour", "pantone")


@pytest.fixture(scope="module")
def portraits():
    """A person in studio light [1, 3, 128, 128], and in three lights [3, 3, 128, 128], quantised as files would be."""
    people = [edited(sample_person(6, 2), expression="neutral", lighting=light) for light in LIGHTS]
    images = (render(people, 128).image * 255).round() / 255
    return images[:1], images


@pytest.fixture(scope="module")
def uploaded(server, portraits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("portraits")
    for number, image in enumerate(portraits[1]):
        save_image(image, folder / f"likeness_score_{number}.png")
        server.upload_image(folder / f"likeness_score_{number}.png")


def graph(**inputs) -> dict:
    """Three portraits as a batch; scored; the best two by the list of scores; saved plain and labelled."""
    nodes = {str(n): {"class_type": "LoadImage", "inputs": {"image": f"likeness_score_{n}.png"}} for n in range(3)}
    batch = {"3": ("0", "1"), "4": ("3", "2")}
    nodes |= {key: {"class_type": "ImageBatch", "inputs": {"image1": [a, 0], "image2": [b, 0]}}
              for key, (a, b) in batch.items()}  # fmt: skip
    keep = {"image": ["4", 0], "count": 2, "by": "given scores", "write_scores": True, "scores": ["5", 9]}
    nodes["5"] = {
        "class_type": "LikenessPortraitScores",
        "inputs": {"image": ["4", 0], "source": ["0", 0], "prompt": PROMPT, "list_score": "prompt (CLIP score)"},
    }
    nodes["6"] = {"class_type": "LikenessKeepBest", "inputs": {**keep, **inputs}}
    for key, slot in (("7", 0), ("8", 1)):
        nodes[key] = {"class_type": "SaveImage", "inputs": {"images": ["6", slot], "filename_prefix": "best"}}
    return nodes


def fetched(server, outputs, node) -> torch.Tensor:
    images = [Image.open(io.BytesIO(server.fetch_image(**entry))) for entry in outputs[node]["images"]]
    return torch.stack([torch.from_numpy(np.asarray(image.convert("RGB")).copy()) for image in images]).movedim(-1, 1)


def truth(portraits) -> torch.Tensor:
    embedded = embedded_clip()
    return clip_score(embedded.embed(portraits[1]), embedded.embed_text([PROMPT]))


def test_scores_go_as_a_list_from_one_node_to_the_other(server, uploaded, portraits):
    outputs = server.run(graph())
    expected = truth(portraits)
    order = expected.argsort(descending=True)[:2]
    assert (fetched(server, outputs, "7") == (255 * portraits[1][order]).round().byte()).all()
    table = outputs["5"]["text"][0]
    assert "CLIP score (embedded)" in table and f"{expected[0]:.4f}" in table and "no LPIPS: its weights" in table
    lines = [[f"{rank}. picture {place + 1}", f"score {expected[place]:.4f}"]
             for rank, place in enumerate(order.tolist(), 1)]  # fmt: skip
    shown = fetched(server, outputs, "8").int()
    assert (shown - 255 * labelled(portraits[1][order], lines)).abs().max() <= 1


def test_lpips_that_is_put_in_place_counts_without_a_changed_widget(server, uploaded):
    weight = named(LPIPS_WEIGHTS)
    place = server._base / "models" / weight.folder / weight.save_as
    inputs = {"image": ["0", 0], "source": ["1", 0]}
    nodes = graph() | {"5": {"class_type": "LikenessPortraitScores", "inputs": inputs}}
    nodes = {key: nodes[key] for key in ("0", "1", "5")}
    assert "no LPIPS: its weights are not there" in server.run(nodes)["5"]["text"][0]
    place.parent.mkdir(parents=True)
    try:
        place.write_bytes(b"no weights")  # that they are tried is enough: without torchvision they could not be used
        table = server.run(nodes)["5"]["text"][0]
    finally:
        place.unlink()
    assert "no LPIPS: " in table and "its weights are not there" not in table


def test_what_scores_look_for_is_a_reason_to_score_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    seen = [PortraitScores.fingerprint_inputs(image=None)]
    for group in (LPIPS_WEIGHTS, *backbones.NETWORKS["clip"].groups):
        for weight in select(shipped(), [group]):
            for name in weight.names:
                (tmp_path / weight.folder).mkdir(parents=True, exist_ok=True)
                (tmp_path / weight.folder / name).write_bytes(b"")
        seen.append(KeepBest.fingerprint_inputs(image=[None], by=["structure (LPIPS)"]))
    assert len(set(seen)) == len(seen) == 4


def test_keep_best_scores_by_itself(server, uploaded, portraits):
    by_structure = graph(by="structure (SPL)", source=["0", 0], count=9, write_scores=False)
    del by_structure["6"]["inputs"]["scores"], by_structure["5"]
    found = fetched(server, server.run(by_structure), "7")
    order = structure_loss(portraits[1], portraits[0].expand(3, -1, -1, -1)).argsort()
    assert order[0] == 0 and (found == (255 * portraits[1][order]).round().byte()).all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"by": "structure (SSIM)"}, "Keep Best: there is nothing to choose by. no SSIM: there is no source picture"),
        ({"by": "identity (Face ID score)"}, "no Face ID score: there are no faces"),
        ({"scores": ["5", 1]}, "Keep Best: 1 scores for 3 pictures: connect a list"),
        ({"count": 0}, "Value 0 smaller than min of 1"),
    ],
)
def test_what_is_missing_is_named(server, uploaded, inputs, message):
    with pytest.raises(ComfyRunError, match=message) as error:
        server.run(graph(**inputs))
    assert error.value.node == "6"


def comfy(image: torch.Tensor) -> torch.Tensor:
    return image.movedim(1, -1)


def test_means_over_the_batch_and_absent_ones(portraits):
    source, images = portraits
    *means, table, listed = PortraitScores.execute(
        comfy(images), source=comfy(source), prompt=PROMPT, source_prompt="a portrait in studio light",
        mask=torch.ones(1, 128, 128),
    ).result  # fmt: skip
    spl, structural, ratio, lpips, follows, directional, face, clothes = means
    assert structural == pytest.approx(ssim(images, source.expand_as(images)).mean().item(), abs=1e-6)
    assert listed == pytest.approx(ssim(images, source.expand_as(images)).tolist(), abs=1e-6)
    assert follows == pytest.approx(truth(portraits).mean().item(), abs=1e-5)
    assert math.isinf(ratio) and spl > 0 and -1 <= directional <= 1 and 0 <= clothes < 2
    assert math.isnan(lpips) and math.isnan(face) and "no Face ID score: there are no faces" in table


def faces_of(vectors, size=128) -> Faces:
    """One face each picture, none where the vector is None."""
    own = [() if v is None else (Face((10, 10, 90, 90), 1.0, embedding=torch.tensor(v)),) for v in vectors]
    return Faces(tuple(own), (size, size), "test")


def test_best_likeness_by_faces_and_identity(portraits):
    image = comfy(portraits[1])
    faces = faces_of([[0.0, 1.0], None, [0.6, 0.8]])
    identity = Identity(torch.tensor([[2.0, 0.0]]), "test")
    kept, shown, places, scores, table = KeepBest.execute(
        [image], [3], ["identity (Face ID score)"], [True], faces=[faces], identity=[identity]
    ).result
    assert places == [2, 0, 1] and scores[:2] == pytest.approx([0.4, 1.0]) and math.isnan(scores[2])
    assert torch.equal(kept, image[places]) and torch.equal(shown[:, :128], kept) and "Face ID score (test)" in table
    parts = [Faces(faces.images[:1], (128, 128), "test"), Faces(faces.images[1:], (128, 128), "test")]
    again = KeepBest.execute(
        [image[:1], image[1:]], [1], ["identity (Face ID score)"], [False], faces=parts, identity=[identity]
    ).result
    assert again[2] == [2] and torch.equal(again[1], image[2:3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"faces": faces_of([None, None])}, "faces are of 2 picture"),
        ({"identity": Identity(torch.ones(1, 2), "other")}, "embeddings of other cannot be mixed with those of test"),
        ({"faces": Faces(((Face((1, 1, 9, 9), 1.0),),) * 3, (128, 128), "test")}, "faces have no embeddings"),
        ({"image": torch.full((3, 128, 128, 3), torch.nan)}, "Portrait Scores: image has .* NaN"),
        ({"image": torch.zeros(3, 128, 128, 4)}, "4 channels"),
        (
            {"clip_model": "installed CLIP", "list_score": "prompt (CLIP score)"},
            "Portrait Scores: clip is not there; the place for it is .*download clip-vit-l14",
        ),
    ],
)
def test_bad_input_is_a_message(portraits, changes, message):
    good = {"image": comfy(portraits[1]), "faces": faces_of([[1.0, 0.0]] * 3), "identity": None}
    good["identity"] = Identity(torch.ones(1, 2), "test")
    with pytest.raises(ValueError, match=message):
        PortraitScores.execute(**good | changes)


def test_a_clip_that_is_not_there_takes_only_its_own_scores_away(portraits):
    source, images = map(comfy, portraits)
    *_, table, listed = PortraitScores.execute(
        images, source=source, prompt=PROMPT, clip_model="installed CLIP", mask=torch.ones(1, 128, 128)
    ).result
    assert listed[0] == pytest.approx(1) and "no CLIP score (clip): clip is not there; the place for it" in table
    assert "no Clothing score (clip): clip is not there" in table
    kept = KeepBest.execute([images], [1], ["structure (SSIM)"], [False], source=[source], prompt=[PROMPT],
                            clip_model=["installed CLIP"]).result  # fmt: skip
    assert kept[2] == [0]
    with pytest.raises(ValueError, match="there is nothing to choose by. no CLIP score .*: clip is not there"):
        KeepBest.execute([images], [1], ["prompt (CLIP score)"], [False], prompt=[PROMPT],
                         clip_model=["installed CLIP"])  # fmt: skip


def test_clip_is_loaded_once_and_only_if_a_score_needs_it(portraits, monkeypatch):
    loaded = []

    def load():
        loaded.append(1)
        return embedded_clip()

    monkeypatch.setattr(backbones, "embedded_clip", load)
    source, images = map(comfy, portraits)
    PortraitScores.execute(images, source=source)
    assert not loaded
    table = PortraitScores.execute(images, source=source, prompt=PROMPT, mask=torch.ones(1, 128, 128)).result[-2]
    assert len(loaded) == 1 and "CLIP score (embedded)" in table and "Clothing score (embedded CLIP)" in table


def test_every_picture_has_its_own_prompt_and_person(portraits):
    image = comfy(portraits[1])
    texts = ["a portrait in studio light", PROMPT, "a portrait in pantone light"]
    embedded = embedded_clip()
    *_, scores, table = KeepBest.execute([image], [3], ["prompt (CLIP score)"], [False], prompt=texts).result
    expected = clip_score(embedded.embed(portraits[1]), embedded.embed_text(texts)).sort(descending=True).values
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    people = [Identity(torch.tensor([vector]), "test") for vector in ([0.0, 1.0], [1.0, 0.0], [1.0, 0.0])]
    keep = {"faces": [faces_of([[0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])], "identity": people}
    kept = KeepBest.execute([image], [3], ["identity (Face ID score)"], [False], **keep).result
    assert kept[2] == [0, 2, 1] and kept[3] == pytest.approx([0, 0.4, 1], abs=1e-6)
    with pytest.raises(ValueError, match="2 prompts for 3 pictures: give 1 or 3"):
        KeepBest.execute([image], [3], ["prompt (CLIP score)"], [False], prompt=texts[:2])
    with pytest.raises(ValueError, match="2 identities for 3 pictures: give 1 or 3"):
        KeepBest.execute([image], [3], ["identity (Face ID score)"], [False], **keep | {"identity": people[:2]})


def test_a_list_of_batches_has_a_prompt_a_person_a_source_or_a_mask_for_each(portraits):
    """As a list of prompts makes it: a batch of pictures for each prompt, here of three and of two."""
    source, images = map(comfy, portraits)
    batches, texts = [images, images[:2]], ["a portrait in studio light", PROMPT]
    embedded = embedded_clip()
    words, seen = embedded.embed_text([texts[0]] * 3 + [texts[1]] * 2), embedded.embed(portraits[1])
    expected = clip_score(torch.cat([seen, seen[:2]]), words).sort(descending=True)
    kept = KeepBest.execute(batches, [5], ["prompt (CLIP score)"], [False], prompt=texts, source=[None],
                            source_prompt=["", "", ""]).result  # fmt: skip
    assert kept[2] == expected.indices.tolist() and kept[3] == pytest.approx(expected.values.tolist(), abs=1e-5)
    people = [Identity(torch.tensor([vector]), "test") for vector in ([0.0, 1.0], [1.0, 0.0])]
    faces = [faces_of([[0.0, 1.0]] * 3), faces_of([[0.0, 1.0]] * 2)]
    kept = KeepBest.execute(batches, [5], ["identity (Face ID score)"], [False], faces=faces, identity=people).result
    assert sorted(kept[2][:3]) == [0, 1, 2] and kept[3] == pytest.approx([0, 0, 0, 1, 1], abs=1e-6)
    whole = torch.cat([source.expand_as(images), images[1:2].expand(2, -1, -1, -1)])
    for sources in ([source, images[1:2]], [whole[:3], whole[3:]]):
        kept = KeepBest.execute(batches, [5], ["structure (SSIM)"], [False], source=sources, prompt=texts * 3).result
        values = ssim(*(each.movedim(-1, 1) for each in (torch.cat(batches), whole)))
        assert kept[3] == pytest.approx(values.sort(descending=True).values.tolist(), abs=1e-6)


def test_structure_is_compared_where_the_mask_is_white(portraits):
    """The background of one picture is kept and its person is not; of the other it is the other way round."""
    source = comfy(portraits[0])[:1]
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:] = 1
    other = torch.rand(source.shape, generator=torch.Generator().manual_seed(0))
    images = torch.cat([torch.where(white[..., None] > 0, source, other) for white in (mask, 1 - mask)])
    for by in ("structure (SSIM)", "structure (SPL)"):
        places = [
            KeepBest.execute([images], [1], [by], [False], source=[source], mask=[white]).result[2]
            for white in (mask, 1 - mask, mask[0])
        ]
        assert places == [[0], [1], [0]]
    kept = KeepBest.execute([images], [2], ["structure (SSIM)"], [False], source=[source], mask=[mask]).result
    assert torch.equal(kept[0], images) and kept[3][0] == pytest.approx(1)


def test_the_best_of_each_batch_of_a_list(portraits):
    """A list of prompts makes a batch each; the best of all would be of one prompt alone."""
    images = comfy(portraits[1])
    batches, scores = [images, images[:2], images[:1]], [0.9, 0.8, 0.7, 0.2, 0.3, math.nan]
    of_all = KeepBest.execute(batches, [2], ["given scores"], [True], scores=scores).result
    assert of_all[2] == [0, 1]
    kept, shown, places, values, _ = KeepBest.execute(
        batches, [2], ["given scores"], [True], scores=scores, each_batch=[True]
    ).result
    assert places == [0, 1, 4, 3, 5] and values[:4] == [0.9, 0.8, 0.3, 0.2] and math.isnan(values[4])
    assert torch.equal(kept, torch.cat(batches)[places]) and len(shown) == 5
    lowest = KeepBest.execute(
        batches, [1], ["given scores"], [True], scores=scores, each_batch=[True], higher_is_better=[False]
    ).result
    assert lowest[2] == [2, 3, 5]


def test_a_mask_of_any_number_of_dimensions(portraits):
    source, images = map(comfy, portraits)
    mask = torch.zeros(1, 128, 128)
    mask[:, 80:] = 1
    by = {"source": source, "list_score": "clothes (Clothing score)"}
    expected = PortraitScores.execute(images, mask=mask, **by).result[-1]
    assert expected[1] > expected[0]
    for same in (mask[0], mask[:, None]):
        assert PortraitScores.execute(images, mask=same, **by).result[-1] == expected
        kept = KeepBest.execute([images], [1], [by["list_score"]], [False], source=[source], mask=[same]).result
        assert kept[3] == expected[:1]


def test_a_source_that_vae_encode_cut_is_cut_as_well(portraits):
    source, images = map(comfy, portraits)
    whole = torch.nn.functional.pad(source, (0, 0, 3, 4, 1, 2))  # 135 x 131
    mask = torch.zeros(1, 131, 135)
    mask[:, 81:, 20:] = 1
    by = {"list_score": "clothes (Clothing score)"}
    expected = PortraitScores.execute(images, source=source, mask=mask[:, 1:129, 3:131], **by).result
    made = PortraitScores.execute(images, source=whole, mask=mask, **by).result
    assert made[1] == expected[1] and made[-1] == expected[-1]


def test_pictures_with_alpha_are_kept_by_given_scores():
    image = torch.rand(2, 64, 64, 4)
    kept, shown, *_ = KeepBest.execute([image], [1], ["given scores"], [True], scores=[1.0, 2.0]).result
    assert torch.equal(kept, image[1:]) and shown.shape[-1] == 4 and torch.equal(shown[:, :64], kept)


def test_batches_of_two_sizes_are_named():
    with pytest.raises(ValueError, match="image is a list of pictures of 32x32, 64x32: .* resize them first"):
        KeepBest.execute([torch.rand(1, 32, 32, 3), torch.rand(1, 32, 64, 3)], [1], ["given scores"], [True],
                         scores=[1.0, 2.0])  # fmt: skip


def test_an_interrupt_ends_the_scoring(portraits):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        PortraitScores.execute(comfy(portraits[1]), prompt=PROMPT)


def test_lpips_is_that_of_the_paper_on_the_given_weights(tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    features = models.alexnet(weights=None).eval().features
    torch.save({f"features.{name}": value for name, value in features.state_dict().items()}, tmp_path / "alex.pth")
    found = LPIPS(tmp_path / "alex.pth")
    images = torch.rand(2, 2, 3, 70, 64, generator=torch.Generator().manual_seed(0))
    heads = [getattr(found.network, f"lin{n}").model[-1].weight.flatten() for n in range(5)]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    layers = []
    with torch.no_grad():
        for image in images:
            x, kept = (2 * image - 1 - shift[:, None, None]) / scale[:, None, None], []
            for place, layer in enumerate(features):
                x = layer(x)
                if place in (1, 4, 7, 9, 11):
                    kept.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8))
            layers.append(kept)
    expected = sum(
        ((a - b).square() * head[:, None, None]).sum(1).mean((1, 2)) for a, b, head in zip(*layers, heads, strict=True)
    )
    assert torch.allclose(found(*images), expected, rtol=1e-3, atol=1e-7)
    assert found(images[0], images[0]).abs().max() < 1e-7
    with pytest.raises(ValueError, match="does not hold torchvision's weights"):
        torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
        LPIPS(tmp_path / "other.pth")


def test_inception_features_are_those_of_torchmetrics(tmp_path, monkeypatch):
    reason = "NOT COMPARED: pip install --no-deps torch-fidelity"
    extractor = pytest.importorskip("torch_fidelity", reason=reason).FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.manual_seed(0)
    file = tmp_path / "inception.pth"
    torch.save({}, file)
    with monkeypatch.context() as patch:  # random weights instead of those of the file, which has none yet
        patch.setattr(extractor, "load_state_dict", lambda self, weights: None)
        torch.save(extractor("random", ["2048"], feature_extractor_weights_path=str(file)).state_dict(), file)
    images = torch.randint(256, (2, 3, 60, 70), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(file))
    found = inception(file).embed(images / 255)
    assert found.shape == (2, 2048) and torch.allclose(found, metric.inception(images), rtol=1e-4, atol=1e-6)
    torch.save({"other": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="does not hold torch-fidelity's Inception"):
        inception(file)
