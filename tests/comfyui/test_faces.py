"""The nodes for faces in a running ComfyUI: from a photo to crops and back, to an identity and its file."""

import io
import re

import face_models
import numpy as np
import pytest
import torch
from comfyui_server import ComfyRunError
from likeness.pipelines.faces import CropSettings, Face, Faces, Identity, crop_faces
from likeness.pipelines.faces.cascade import box_overlap
from likeness.pipelines.images import example_photo, load_image, save_image, to_uint8
from likeness.pipelines.portraits import group_scene, render, sample_person
from PIL import Image

BOX = {"x": 182, "y": 75, "width": 88, "height": 103}
BOX_CORNERS = (182, 75, 270, 178)


@pytest.fixture(scope="module")
def photo(server, tmp_path_factory):
    """The astronaut, uploaded."""
    path = tmp_path_factory.mktemp("faces") / "likeness_astronaut.png"
    save_image(example_photo()[0], path)
    server.upload_image(path)
    return load_image(path)


@pytest.fixture(scope="module")
def opencv(server):
    """Models for the opencv backend in the server's models folder, tiny: red cells are faces, embeddings are means."""
    models = server._base / "models" / "likeness"
    face_models.yunet(models / "yunet" / "face_detection_yunet_2023mar.onnx")
    face_models.embedder(models / "sface" / "face_recognition_sface_2021dec.onnx", "data", "fc1")


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def detect(**inputs) -> dict:
    defaults = {
        "image": ["1", 0], "backend": "embedded", "model_pack": "antelopev2", "min_score": 0.5,
        "order": "largest first", "embeddings": False, "device": "auto",
    }  # fmt: skip
    return node("LikenessDetectFaces", **{**defaults, **inputs})


def crop(**inputs) -> dict:
    defaults = {"image": ["1", 0], "faces": ["2", 0], "size": 112, "mode": "aligned", "margin": 0.0, "choose": "all",
                "index": 0}  # fmt: skip
    return node("LikenessFaceCrop", **{**defaults, **inputs})


def boxed(**inputs) -> dict:
    """Loads the photo (1) and takes the face in a box (2, box from 9)."""
    return {
        "1": node("LoadImage", image="likeness_astronaut.png"), "9": node("PrimitiveBoundingBox", **BOX),
        "2": detect(bboxes=["9", 0], **inputs),
    }  # fmt: skip


def save(source: str, slot: int, prefix: str) -> dict:
    return node("SaveImage", images=[source, slot], filename_prefix=prefix)


def fetched(server, outputs, name, number=0):
    png = server.fetch_image(**outputs[name]["images"][number])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_photo_gives_a_face_drawn_masked_and_cropped(server, photo):
    graph = {
        "1": node("LoadImage", image="likeness_astronaut.png"), "2": detect(), "3": save("2", 1, "drawn"),
        "4": node("MaskToImage", mask=["2", 4]), "5": save("4", 0, "boxes"), "6": crop(size=224),
        "7": save("6", 0, "crop"),
    }  # fmt: skip
    outputs = server.run(graph)
    (table,) = outputs["2"]["text"]
    x0, y0, x1, y1, score = map(float, re.search(r"box (\d+), (\d+) to (\d+), (\d+); score ([\d.]+)", table).groups())
    assert "picture 1: 1 face" in table and score >= 0.5 and "landmarks" in table
    assert abs((x0 + x1) / 2 - 226) < 15 and abs((y0 + y1) / 2 - 126) < 20
    mask = fetched(server, outputs, "5")[..., 0] > 127
    assert mask.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.01) and mask[126, 226]
    assert (fetched(server, outputs, "3") != to_uint8(photo[0])).any()
    assert fetched(server, outputs, "7").shape == (224, 224, 3)


def test_two_rendered_people_are_found_with_their_landmarks_and_embedded(server, tmp_path):
    """By the models that come with the pack."""
    truth = render(group_scene([sample_person(6, number) for number in (2, 3)]), (192, 288))
    path = tmp_path / "likeness_two_people.png"
    save_image(truth.image[0], path)
    server.upload_image(path)
    graph = {
        "1": node("LoadImage", image=path.name), "2": detect(embeddings=True, order="left to right"),
        "3": node("LikenessIdentityFromFaces", faces=["2", 0], choose="by index", index=1, average=True),
        "4": node("PreviewAny", source=["3", 1]),
    }  # fmt: skip
    outputs = server.run(graph)
    (table,) = outputs["2"]["text"]
    boxes = re.findall(r"box (-?\d+), (-?\d+) to (-?\d+), (-?\d+); score [\d.]+; landmarks found; embedding", table)
    assert "picture 1: 2 faces" in table and len(boxes) == 2
    for box, true in zip(boxes, sorted(truth.face_box[0].tolist()), strict=True):
        assert box_overlap([float(value) for value in box], true) > 0.5
    assert "1 embedding of embedded face embedder" in outputs["4"]["text"][0]


def test_a_box_of_another_node_is_cropped_and_put_back(server, photo):
    graph = boxed() | {
        "3": crop(size=256, mode="box", margin=0.25), "4": save("3", 0, "crop"),
        "5": node("ImageInvert", image=["3", 0]),
        "6": node("LikenessPasteFaceBack", image=["1", 0], crops=["5", 0], faces=["3", 2], softness=0.1),
        "7": save("6", 0, "pasted"),
    }  # fmt: skip
    outputs = server.run(graph)
    face = Face(BOX_CORNERS, 1)
    expected = crop_faces(photo, Faces(((face,),), (512, 512)), CropSettings(256, "box", 0.25))[0]
    assert np.abs(fetched(server, outputs, "4") - to_uint8(expected[0]).astype(int)).max() <= 1
    pasted, before = fetched(server, outputs, "7"), to_uint8(photo[0]).astype(int)
    assert np.abs(pasted[110:140, 210:240] - (255 - before[110:140, 210:240])).mean() < 4
    assert (pasted[300:] == before[300:]).all() and (pasted[:, 320:] == before[:, 320:]).all()


def test_landmarks_of_comfyuis_face_mesh_are_taken_for_each_picture_of_a_batch(comfyui_dir, photo):
    """In this process, because what gives FACE_LANDMARKS in a graph needs weights."""
    from likeness.nodes.faces import DetectFaces, FaceCrop

    points = np.random.default_rng(0).uniform(100, 300, (478, 2)).astype(np.float32)
    five = np.array([(203, 101), (246, 104), (224, 125), (203, 140), (244, 141)], np.float32)
    points[[468, 473, 1, 61, 291]] = five
    mesh = {"landmarks_xy": points, "bbox_xyxy": np.array(BOX_CORNERS, np.float32), "score": 0.9}
    landmarks = {"frames": [[], [mesh]], "image_size": (512, 512), "connection_sets": {}}
    images = photo.movedim(1, -1).expand(2, -1, -1, -1)
    settings = ("embedded", "antelopev2", 0.5, "largest first", False)
    faces, drawn, table, count, boxes = DetectFaces.execute(images, *settings, face_landmarks=landmarks).result
    assert count == 1 and "picture 1: no face" in table and "landmarks found" in table
    assert drawn.shape == images.shape and boxes.sum((1, 2)).tolist() == [0, 88 * 103]
    unsure = {**landmarks, "frames": [[], [{**mesh, "score": 0.2}]]}
    assert DetectFaces.execute(images, *settings, face_landmarks=unsure).result[3] == 1, "min_score is the detector's"
    crops, inside, chosen = FaceCrop.execute(images, faces, 112, "aligned", 0.0, "all", 0).result
    assert crops.shape == (1, 112, 112, 3) and inside.shape == (1, 112, 112) and chosen.count == 1
    assert np.abs(chosen.flat()[0][1].landmarks.numpy() - five).max() == 0
    with pytest.raises(ValueError, match="Detect Faces: bboxes and face_landmarks are both connected"):
        DetectFaces.execute(images, *settings, bboxes=BOX, face_landmarks=landmarks)
    with pytest.raises(ValueError, match=r"Detect Faces: image has 4 channels \(RGBA\)"):
        DetectFaces.execute(torch.zeros(1, 64, 64, 4), *settings)


def test_an_identity_goes_to_a_file_and_comes_back(server, photo, opencv):
    graph = boxed(backend="opencv", embeddings=True) | {
        "3": node("LikenessIdentityFromFaces", faces=["2", 0], choose="by index", index=0, average=True,
                  more_faces=["2", 0]),
        "4": node("LikenessSaveIdentity", identity=["3", 0], filename_prefix="identities/astronaut"),
        "5": node("PreviewAny", source=["3", 1]),
    }  # fmt: skip
    outputs = server.run(graph)
    assert outputs["4"]["text"] == ["identities/astronaut_00001_.safetensors"]
    assert "2 embeddings of opencv sface_2021dec" in outputs["5"]["text"][0]
    assert "cosine with their mean: 1.000 to 1.000" in outputs["5"]["text"][0]
    graph["4"]["inputs"]["filename_prefix"] = "identities/astronaut"
    graph["3"]["inputs"]["average"] = False
    assert server.run(graph)["4"]["text"] == ["identities/astronaut_00002_.safetensors"]
    loaded = boxed(backend="opencv", embeddings=True) | {
        "3": node("LikenessLoadIdentity", file="output/identities/astronaut_00001_.safetensors"),
        "4": crop(choose="most similar", reference=["3", 0]), "5": save("4", 0, "similar"),
        "6": node("PreviewAny", source=["3", 1]),
    }  # fmt: skip
    outputs = server.run(loaded)
    assert "1 embedding of opencv sface_2021dec\nlicence: Apache-2.0" in outputs["6"]["text"][0]
    expected = crop_faces(photo, Faces(((Face(BOX_CORNERS, 1),),), (512, 512)), CropSettings(112))[0]
    assert np.abs(fetched(server, outputs, "5") - to_uint8(expected[0]).astype(int)).max() <= 1


@pytest.mark.parametrize("backend", ["opencv", "insightface"])
def test_models_are_found_beside_folders_of_their_kind_that_hold_others(comfyui_dir, tmp_path, monkeypatch, backend):
    import folder_paths
    from likeness.nodes.faces import models_folder
    from likeness.pipelines.faces.insightface import FILES
    from likeness.pipelines.faces.opencv import DETECTOR

    kind = "insightface" if backend == "insightface" else "likeness"
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "own"))
    extra = ([str(tmp_path / name / kind) for name in ("empty", "full")], set())
    monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, extra)
    for place in (f"own/{kind}/models/inswapper", f"empty/{kind}"):
        (tmp_path / place).mkdir(parents=True)
    assert models_folder(backend, "buffalo_l") == tmp_path / "own"
    pack = [f"insightface/models/buffalo_l/{file}" for file in FILES["buffalo_l"]]
    for file in {"opencv": [DETECTOR], "insightface": pack}[backend]:
        (tmp_path / "full" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "full" / file).write_bytes(b"")
    assert models_folder(backend, "buffalo_l") == tmp_path / "full"
    assert models_folder("insightface", "antelopev2") == tmp_path / "own", "another pack is not there"


@pytest.mark.parametrize(("comfyui", "device", "told"), [("cpu", "auto", "cpu"), ("cuda", "auto", "auto"),
                                                         ("cpu", "cuda", "cuda")])  # fmt: skip
def test_auto_stays_on_the_cpu_where_comfyui_does(comfyui_dir, photo, monkeypatch, comfyui, device, told):
    """As with --cpu on a machine whose torch has CUDA."""
    import comfy.model_management
    from likeness.nodes import faces

    seen, load = [], faces.load_backend

    def on_cpu(name, settings):
        seen.append(settings.device)
        return load(name, faces.BackendSettings(settings.models, device="cpu"))

    monkeypatch.setattr(faces, "load_backend", on_cpu)
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device(comfyui))
    corner = photo.movedim(1, -1)[:, :64, :64]
    faces.DetectFaces.execute(corner, "embedded", "antelopev2", 0.5, "largest first", False, device)
    assert seen == [told]


@pytest.mark.parametrize("prefix", ["people/somebody/", "people\\", "someone"])
def test_each_identity_gets_a_file_of_its_own(comfyui_dir, tmp_path, monkeypatch, prefix):
    import folder_paths
    from likeness.nodes import faces

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    identity = Identity(torch.ones(1, 4), "test")
    files = [faces.SaveIdentity.execute(identity, prefix).result[0] for _ in range(3)]
    name = prefix.rstrip("/\\")
    assert files == [f"{name}_0000{number}_.safetensors" for number in (1, 2, 3)]
    folder, _, stem = name.rpartition("/")  # counted before somebody else wrote the same number
    place = str(tmp_path / folder), stem, 2, folder, name
    monkeypatch.setattr(folder_paths, "get_save_image_path", lambda *_: place)
    assert faces.SaveIdentity.execute(identity, prefix).result[0] == f"{name}_00004_.safetensors"

    def taken(identity, path):
        raise FileExistsError(f"{path} exists already: choose another name.")

    monkeypatch.setattr(faces, "save_identity", taken)
    with pytest.raises(ValueError, match="Save Identity: .*_00005_.safetensors exists already: choose another name"):
        faces.SaveIdentity.execute(identity, prefix)


SMALL = node("EmptyImage", width=64, height=64, batch_size=1, color=0)
IDENTITY = node("LikenessIdentityFromFaces", faces=["2", 0], choose="all", index=0, average=True)
BAD = {
    "lacks scrfd_10g_bnkps.onnx and glintr100.onnx: unpack antelopev2.zip": {"2": detect(backend="insightface")},
    "no face was found in 1 picture": {"1": SMALL, "2": detect()},
    "face 3 is asked for, no picture has more than 1": {"3": crop(choose="by index", index=3)},
    "connect a reference identity": {"3": crop(choose="most similar")},
    "the image is 1 of 64x64: connect the image that": {"8": SMALL, "3": crop(image=["8", 0])},
    "switch embeddings on": {"3": IDENTITY, "4": node("PreviewAny", source=["3", 1])},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_a_message_that_names_the_node(server, photo, message):
    graph = boxed() | {"3": crop(), "4": save("3", 0, "bad")} | BAD[message]
    with pytest.raises(ComfyRunError, match=message) as error:
        server.run(graph)
    assert error.value.node == ("2" if "lacks" in message else "3")


def test_only_identities_of_comfyuis_own_folders_are_loaded(server):
    graph = {
        "3": node("LikenessLoadIdentity", file="output/../secret.safetensors"),
        "4": node("PreviewAny", source=["3", 1]),
    }  # fmt: skip
    with pytest.raises(ComfyRunError, match="there is no identity 'output/../secret.safetensors'"):
        server.run(graph)


@pytest.mark.parametrize("prefix", ["../outside", "/outside", " "])
def test_an_identity_is_saved_nowhere_but_in_the_output_folder(server, photo, opencv, prefix):
    graph = boxed(backend="opencv", embeddings=True) | {
        "3": node("LikenessIdentityFromFaces", faces=["2", 0], choose="all", index=0, average=True),
        "4": node("LikenessSaveIdentity", identity=["3", 0], filename_prefix=prefix),
    }  # fmt: skip
    with pytest.raises(ComfyRunError, match="name a place below ComfyUI's output folder"):
        server.run(graph)
    assert not list(server._base.parent.glob("outside*"))
