"""Faces: detectors against exact truth, crops there and back, choice, identities and their files."""

import itertools
import logging
import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import cv2
import face_models
import numpy as np
import pytest
import torch
from likeness.pipelines.faces import (
    BackendSettings,
    CropSettings,
    Face,
    Faces,
    Identity,
    align_faces,
    choose,
    crop_faces,
    find_faces,
    identity_of,
    load_backend,
    load_identity,
    paste_faces,
    save_identity,
)  # fmt: skip
from likeness.pipelines.faces.align import warp
from likeness.pipelines.faces.cascade import Cascade, box_overlap, grouped
from likeness.pipelines.faces.crop import inverse, placement
from likeness.pipelines.faces.draw import FOUND, box_mask, draw_faces
from likeness.pipelines.faces.embedded import SURE
from likeness.pipelines.faces.interchange import faces_from_boxes, faces_from_landmarks
from likeness.pipelines.faces.portrait_world import find_portrait_faces
from likeness.pipelines.faces.select import ordered
from likeness.pipelines.idetail.instantid_models import load_face_backend
from likeness.pipelines.images import example_photo, load_image, to_uint8
from likeness.pipelines.portraits import render, sample_person
from PIL import Image
from torch.nn.functional import avg_pool2d, cosine_similarity, normalize

pytestmark = pytest.mark.usefixtures("one_thread")
# Of the astronaut's photo, read from it by eye.
ASTRONAUT = torch.tensor([(203.0, 100.8), (246.3, 103.8), (224.3, 125.0), (203.0, 140.5), (243.8, 141.3)])
ASTRONAUT_BOX = (182, 75, 270, 178)
# Heads of the six people in InsightFace's group photo, the middle of each; the last looks away to the side.
GROUP = [(117, 335), (318, 212), (510, 345), (786, 418), (1174, 340), (945, 140)]


def faces_at(*places, size=(100, 120), score=0.9, vectors=None, embedder=None) -> Faces:
    """Faces of one picture, 20x20 pixels around ``places``."""
    faces = [Face((x - 10, y - 10, x + 10, y + 10), score).with_landmarks() for x, y in places]
    if vectors is not None:
        faces = [face.embedded(vector) for face, vector in zip(faces, vectors, strict=True)]
    return Faces((tuple(faces),), size, embedder)


def turned(image: torch.Tensor, points: torch.Tensor, degrees: float):
    """An image [1, 3, H, W] and points in it turned clockwise about the middle."""
    array = np.asarray(Image.fromarray(to_uint8(image[0])).rotate(-degrees, Image.Resampling.BICUBIC))
    angle, middle = math.radians(degrees), torch.tensor([image.shape[-1] / 2, image.shape[-2] / 2])
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return torch.from_numpy(array.copy()).movedim(-1, 0)[None].float() / 255, (points - middle) @ turn.T + middle


# --- the detector that needs no download


@pytest.mark.parametrize("degrees", [0, 25])
def test_the_cascade_finds_the_astronaut_and_how_she_leans(degrees):
    image, truth = turned(example_photo()[..., :300, 60:400], ASTRONAUT - torch.tensor([60.0, 0.0]), degrees)
    faces = [face for face in Cascade().detect(image[0]) if face.score >= 0.5]
    assert len(faces) == 1
    face = faces[0].with_landmarks()
    assert face.landmarks_estimated
    assert abs(face.turn - degrees - 3) < 9
    apart = (truth[1] - truth[0]).norm()
    assert (face.landmarks - truth).norm(dim=1).mean() < 0.25 * apart
    if degrees == 0:
        assert box_overlap(face.box, (ASTRONAUT_BOX[0] - 60, 75, ASTRONAUT_BOX[2] - 60, 178)) > 0.6


def test_the_cascade_finds_most_of_a_group():
    file = Path(pytest.importorskip("insightface").__file__).parent / "data" / "images" / "t1.jpg"
    faces = [face for face in Cascade().detect(load_image(file)[0]) if face.score >= 0.5]
    hits = [[face for face in faces if math.dist(face.centre, head) < 40] for head in GROUP]
    assert sum(map(bool, hits)) >= 4
    assert len(faces) - sum(map(len, hits)) <= 1


def test_pictures_smaller_than_the_cascade_and_plain_ones_hold_no_face():
    assert Cascade().detect(torch.rand(3, 9, 300, generator=torch.Generator().manual_seed(0))) == []
    assert Cascade().detect(torch.full((3, 64, 80), 0.5)) == []


def test_windows_are_grouped_by_overlap():
    near = np.array([[50, 50, 20, 0], [51, 50, 20, 0], [50, 52, 22, 10]], float)
    far = np.array([[90, 50, 20, 0], [50, 50, 60, 0]], float)
    assert [len(group) for group in grouped(np.concatenate([far, near]))] == [3, 1, 1]


def test_overlap_is_intersection_over_union_of_counted_pixels():
    draw = np.random.default_rng(0)
    corners, sides = draw.integers(0, 20, (30, 2)), draw.integers(2, 18, (30, 2))
    boxes = np.concatenate([corners, corners + sides], 1)
    covered = np.zeros((30, 40, 40), bool)
    for cover, (x0, y0, x1, y1) in zip(covered, boxes, strict=True):
        cover[y0:y1, x0:x1] = True
    for one, other in itertools.combinations(range(30), 2):
        truth = (covered[one] & covered[other]).sum() / (covered[one] | covered[other]).sum()
        assert box_overlap(boxes[one], boxes[other]) == pytest.approx(truth)


def test_photographs_lose_no_face_by_the_detector_of_the_portrait_world():
    backend = load_backend("embedded", BackendSettings(Path(), device="cpu"))
    (faces,) = find_faces(backend, example_photo(), embed=False).images
    assert len(faces) == 1 and box_overlap(faces[0].box, ASTRONAUT_BOX) > 0.6
    assert (faces[0].landmarks - ASTRONAUT).norm(dim=1).mean() < 0.25 * (ASTRONAUT[1] - ASTRONAUT[0]).norm()
    if file := find_spec("insightface"):
        photo = load_image(Path(file.origin).parent / "data" / "images" / "t1.jpg")
        (faces,) = find_faces(backend, photo, embed=False).images
        hits = [[face for face in faces if math.dist(face.centre, head) < 40] for head in GROUP]
        assert sum(map(bool, hits)) >= 4 and len(faces) - sum(map(len, hits)) <= 1


def test_pictures_without_faces_deceive_neither_detector():
    """Photographs and drawings that come with scikit-image, no face in any of them."""
    import skimage.data

    for name in ("coffee", "brick", "rocket", "moon", "clock", "chelsea"):
        picture = torch.from_numpy(np.array(getattr(skimage.data, name)()))
        picture = picture.expand(3, -1, -1) if picture.ndim == 2 else picture.movedim(-1, 0)
        assert all(face.score < SURE for face in find_portrait_faces(shipped_detector(), picture / 255)), name


def test_renders_have_the_faces_of_the_embedded_detector():
    truth = render([sample_person(31, number) for number in range(6)], 256)
    faces = find_faces(load_backend("embedded", BackendSettings(Path(), device="cpu")), truth.image)
    assert [len(own) for own in faces.images] == [1] * 6
    for (face,), box, points in zip(faces.images, truth.face_box[:, 0], truth.landmarks[:, 0, :5], strict=True):
        assert box_overlap(face.box, box.tolist()) > 0.4 and not face.landmarks_estimated
        assert (face.landmarks - points).norm(dim=1).mean() < 0.3 * (points[1] - points[0]).norm()
        assert face.embedding is not None


def shipped_detector():
    from likeness.pipelines.embedded import SHIPPED
    from likeness.pipelines.embedded.face_detector import load_face_detector

    return load_face_detector(SHIPPED / "face_detector")


# --- backends on tiny models whose answers are known


CELLS = [(2, 1), (6, 4)]  # column and row of red cells


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    face_models.yunet(folder / "likeness" / "yunet" / "face_detection_yunet_2023mar.onnx")
    face_models.embedder(folder / "likeness" / "sface" / "face_recognition_sface_2021dec.onnx", "data", "fc1")
    packs = folder / "insightface" / "models"
    face_models.scrfd(packs / "buffalo_l" / "det_10g.onnx")
    face_models.embedder(packs / "buffalo_l" / "w600k_r50.onnx")
    face_models.scrfd(packs / "antelopev2" / "antelopev2" / "scrfd_10g_bnkps.onnx")
    face_models.embedder(packs / "antelopev2" / "antelopev2" / "glintr100.onnx")
    return folder


def marked(columns: int, side: int) -> torch.Tensor:
    """Two grey pictures, ``columns`` cells of ``side`` pixels wide; in the first the cells of CELLS are red."""
    draw = torch.Generator().manual_seed(1)
    grey = 0.4 + 0.1 * torch.rand(2, 1, columns * 4 // 5, columns, generator=draw)
    cells = grey.repeat(1, 3, 1, 1)
    for column, row in CELLS:
        cells[0, :, row, column] = torch.tensor([1.0, 0, 0])
    return cells.repeat_interleave(side, 2).repeat_interleave(side, 3)


@pytest.mark.parametrize(
    ("name", "pack", "columns", "side"),
    [("opencv", "", 10, 32), ("opencv", "", 10, 80), ("insightface", "buffalo_l", 20, 16),
     ("insightface", "antelopev2", 20, 96)],
)  # fmt: skip
def test_backends_give_boxes_and_points_in_pixels_and_embeddings_of_aligned_faces(
    models, monkeypatch, name, pack, columns, side
):
    """OpenCV's smaller view is of 320 pixels, 10 cells, InsightFace's of 640."""
    monkeypatch.setattr("likeness.pipelines.faces.opencv.SIDES", (320,))
    backend = load_backend(name, BackendSettings(models, pack, "cpu"))
    assert backend.notes == ()
    images, steps = marked(columns, side), []
    faces = find_faces(backend, images, 0.9, "left to right", on_step=lambda done, total: steps.append((done, total)))
    assert [len(own) for own in faces.images] == [2, 0]
    assert faces.embedder == backend.embedder and faces.licence
    assert steps[:2] == [(1, 2), (2, 2)]
    for face, cell in zip(faces.images[0], CELLS, strict=True):
        assert np.allclose(np.array(face.box), side * (np.tile(cell, 2) + face_models.BOX), atol=0.02 * side)
        assert np.allclose(face.landmarks.numpy(), side * (np.array(cell) + face_models.POINTS), atol=0.02 * side)
        assert not face.landmarks_estimated
        crop = align_faces(images[:1], face.landmarks[None], 112)
        pooled = avg_pool2d(crop * 255 - (127.5 if name == "insightface" else 0), 28).flatten()
        assert cosine_similarity(pooled, face.embedding, dim=0) > 0.999
        assert face.embedding.norm() == pytest.approx(1, abs=1e-5)
        seen = float(pooled.norm()) / (127.5 if name == "insightface" else 1)
        assert face.length == pytest.approx(seen, rel=0.02)


@pytest.mark.skipif(
    tuple(map(int, cv2.__version__.split(".")[:2])) < (4, 11), reason=f"OpenCV {cv2.__version__} takes no content"
)
def test_opencv_is_given_the_content_of_files_because_it_opens_no_path_beyond_ascii_everywhere(models, monkeypatch):
    asked, images = [], marked(10, 32)

    def like_windows(create):
        def made(*source):
            asked.append(source)
            if isinstance(source[1], str):
                raise cv2.error("Can't open the file")
            return create(*source)

        return SimpleNamespace(create=made)

    for name in ("FaceDetectorYN", "FaceRecognizerSF"):
        monkeypatch.setattr(cv2, name, like_windows(getattr(cv2, name).create))
    faces = find_faces(load_backend("opencv", BackendSettings(models)), images, 0.9)
    assert len(faces.images[0]) == 2 and len(asked) == 2


@pytest.mark.parametrize("refusal", [cv2.error("Overload resolution failed"), TypeError("Can't convert object")])
def test_an_opencv_that_takes_no_content_is_given_the_path(models, monkeypatch, refusal):
    create = cv2.FaceDetectorYN.create

    def before_4_11(*source):
        if not isinstance(source[1], str):
            raise refusal
        return create(*source)

    monkeypatch.setattr(cv2, "FaceDetectorYN", SimpleNamespace(create=before_4_11))
    faces = find_faces(load_backend("opencv", BackendSettings(models)), marked(10, 32), 0.9, embed=False)
    assert len(faces.images[0]) == 2


def test_both_views_of_opencv_find_a_face_once(models):
    faces = find_faces(load_backend("opencv", BackendSettings(models)), marked(10, 64), 0.9, embed=False)
    assert len(faces.images[0]) >= 2
    boxes = [face.box for face in faces.images[0]]
    assert all(box_overlap(one, other) <= 0.3 for one in boxes for other in boxes if one is not other)


def test_a_backend_on_the_cpu_that_was_asked_for_cuda_says_so(models, caplog):
    if torch.cuda.is_available():
        pytest.skip("CUDA is here")
    with caplog.at_level(logging.WARNING):
        notes = [load_backend(name, BackendSettings(models, "buffalo_l", "cuda")).notes for name in
                 ("embedded", "opencv", "insightface")]  # fmt: skip
    assert all("CPU is used" in note for note, in notes)
    assert all(note in caplog.text for note, in notes)


def test_missing_and_broken_files_are_named_with_the_place_they_belong(models, tmp_path):
    with pytest.raises(ValueError, match=r"lacks scrfd_10g_bnkps.onnx and glintr100.onnx: unpack .*antelopev2"):
        load_backend("insightface", BackendSettings(tmp_path))
    with pytest.raises(ValueError, match=r"needs face_detection_yunet_2023mar.onnx: put it into .*yunet"):
        load_backend("opencv", BackendSettings(tmp_path))
    for file in ("likeness/yunet/face_detection_yunet_2023mar.onnx", "insightface/models/buffalo_l/det_10g.onnx",
                 "insightface/models/buffalo_l/w600k_r50.onnx"):  # fmt: skip
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"no model")
    for name in ("opencv", "insightface"):
        with pytest.raises(ValueError, match="cannot be loaded"):
            load_backend(name, BackendSettings(tmp_path, "buffalo_l"))
    with pytest.raises(ValueError, match="no face backend 'other': choose one of embedded, opencv, insightface"):
        load_backend("other", BackendSettings(tmp_path))


@pytest.mark.parametrize("name", ["embedded", "opencv"])
def test_a_missing_embedder_is_told_before_anything_is_searched(models, tmp_path, monkeypatch, name):
    detector = models / "likeness" / "yunet" / "face_detection_yunet_2023mar.onnx"
    (tmp_path / "likeness" / "yunet").mkdir(parents=True)
    (tmp_path / "likeness" / "yunet" / detector.name).write_bytes(detector.read_bytes())
    monkeypatch.setattr("likeness.pipelines.embedded.SHIPPED", tmp_path)
    backend, asked = load_backend(name, BackendSettings(tmp_path)), []
    monkeypatch.setattr(backend, "detect", lambda images, on_step: asked.append(1) or [[] for _ in images])
    with pytest.raises(ValueError, match="needs face_recognition_sface_2021dec.onnx|face embedder has no weights"):
        find_faces(backend, torch.zeros(1, 3, 64, 64))
    assert not asked
    assert find_faces(backend, torch.zeros(1, 3, 64, 64), embed=False).count == 0 and asked


def test_a_missing_detector_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("likeness.pipelines.embedded.SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="the embedded face detector has no weights .*: choose another backend, or"):
        find_faces(load_backend("embedded", BackendSettings(tmp_path)), torch.zeros(1, 3, 64, 64), embed=False)


def test_the_embedded_backend_embeds_aligned_faces_with_the_network_beside_it(tmp_path, monkeypatch):
    from likeness.pipelines.embedded.architectures import build, convnext
    from likeness.pipelines.embedded.components import TRANSFORMERS, plain_config, save_component
    from likeness.pipelines.embedded.face_embedder import embed

    monkeypatch.setattr("likeness.pipelines.embedded.SHIPPED", tmp_path)
    backend, given = load_backend("embedded", BackendSettings(tmp_path)), [[Face((0, 0, 1, 1), 1, ASTRONAUT)], []]
    images = torch.cat([example_photo(), torch.zeros(1, 3, 512, 512)])
    with pytest.raises(ValueError, match="embedded face embedder has no weights"):
        find_faces(backend, images, given=given)
    assert find_faces(backend, images, given=given, embed=False).embedder is None
    network = build(convnext, seed=5)
    with torch.no_grad():
        for parameter in network.parameters():  # layer scales are born zero
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_component(tmp_path / "face_embedder", TRANSFORMERS, plain_config(network), network.state_dict(), {})
    faces = find_faces(backend, images, given=given)
    with torch.no_grad():
        expected = embed(network.eval(), align_faces(images[:1], ASTRONAUT[None], 64) * 2 - 1)[0]
    assert (faces.images[0][0].embedding - expected).abs().max() < 0.02  # the file is fp16
    assert faces.images[1] == () and faces.embedder.startswith("embedded face embedder ")


# --- faces that ComfyUI's own nodes found


def test_bounding_boxes_are_taken_for_all_pictures_or_for_each():
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "label": "face", "score": 0.7}
    other = {"x": 0, "y": 0, "width": 5.5, "height": 4}
    assert faces_from_boxes(box, 2)[1][0].box == (10, 20, 40, 60)
    assert [len(own) for own in faces_from_boxes([box, other], 2)] == [2, 2]
    each = faces_from_boxes([[box], []], 2)
    assert [len(own) for own in each] == [1, 0] and each[0][0].score == 0.7
    assert each[0][0].with_landmarks().landmarks_estimated
    assert faces_from_boxes([], 2) == [[], []]
    for bad, message in (
        ([[box]] * 3, "of 3 pictures, the image is a batch of 2"), ({"x": 1}, "needs the numbers x, y"),
        ({**box, "width": 0}, "must not be empty"), ("[]", "needs the numbers"), ({**box, "x": float("nan")}, "empty"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            faces_from_boxes(bad, 2)


def test_mesh_landmarks_become_the_five_points():
    points = np.arange(956, dtype=np.float32).reshape(478, 2)
    mesh = {"landmarks_xy": points, "bbox_xyxy": np.array([1, 2, 30, 40.5]), "score": 0.8}
    value = {"frames": [[mesh], []], "image_size": (64, 80), "connection_sets": {}}
    (face,), none = faces_from_landmarks(value, (64, 80), 2)
    assert none == [] and face.box == (1, 2, 30, 40.5) and face.score == pytest.approx(0.8)
    assert torch.equal(face.landmarks, torch.from_numpy(points[[468, 473, 1, 61, 291]]))
    with pytest.raises(ValueError, match=r"2 picture\(s\) of 80x64, the image is 2 of 64x64"):
        faces_from_landmarks(value, (64, 64), 2)
    with pytest.raises(ValueError, match="468 landmarks"):
        faces_from_landmarks({**value, "frames": [[{**mesh, "landmarks_xy": points[:468]}], []]}, (64, 80), 2)
    with pytest.raises(ValueError, match="no form of ComfyUI's"):
        faces_from_landmarks([], (64, 80), 2)


# --- crops


def test_aligned_crops_are_those_of_insightface():
    align = pytest.importorskip("insightface.utils.face_align")
    image, points = turned(example_photo(), ASTRONAUT, 17)
    half = torch.tensor([[0.5], [0.5]])
    for size in (112, 224):
        forward = placement(Face((0, 0, 1, 1), 1, points), CropSettings(size))
        assert torch.allclose(forward, torch.tensor(align.estimate_norm(points.numpy(), size)).float(), atol=2e-3)
        # OpenCV counts from the middle of the first pixel, we count from its corner.
        back = inverse(forward)
        back = torch.cat([back[:, :2], back[:, 2:] + half - back[:, :2] @ half], 1)
        ours = to_uint8(warp(image, back[None], (size, size), "zeros")[0]).astype(int)
        assert np.abs(ours - align.norm_crop(to_uint8(image[0]), points.numpy(), size)).mean() < 1


def test_aligned_crops_pass_gradients_to_the_picture():
    image = torch.rand(1, 3, 20, 20, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    points = torch.tensor([[[6.0, 7.0], [13, 8], [9, 11], [7, 14], [12, 14]]])
    align_faces(image, points, 16).square().sum().backward()
    step = torch.zeros_like(image)
    step[0, 1, 10, 9] = 1e-2
    with torch.no_grad():
        up, down = (align_faces(image + sign * step, points, 16).double().square().sum() for sign in (1, -1))
    assert image.grad[0, 1, 10, 9] == pytest.approx(float(up - down) / 0.02, rel=1e-2)


def test_a_box_crop_is_the_box_with_its_margin():
    image = torch.rand(1, 3, 60, 80, generator=torch.Generator().manual_seed(2))
    faces = Faces(((Face((20, 10, 40, 40), 1),),), (60, 80))
    crops, inside = crop_faces(image, faces, CropSettings(30, "box"))
    assert torch.allclose(crops, image[:, :, 10:40, 15:45], atol=1e-5) and inside.min() > 0.999
    wide, inside = crop_faces(image, faces, CropSettings(60, "box", 0.5))
    assert torch.allclose(wide[:, :, 5:, 0:], image[:, :, 0:55, 0:60], atol=1e-5)
    assert torch.equal(wide[:, :, 0], wide[:, :, 4])
    assert inside[0, 0, :4].max() < 1e-3 and inside[0, 0, 5:].min() > 0.999


def test_the_margin_of_an_aligned_crop_is_a_part_of_its_side_on_every_side():
    """At half again the pixels on each side the face has the scale it has without a margin, in the middle."""
    image, points = turned(example_photo(), ASTRONAUT, 17)
    faces = Faces(((Face(ASTRONAUT_BOX, 1, points),),), tuple(image.shape[-2:]))
    plain, wide = (crop_faces(image, faces, CropSettings(*chosen))[0] for chosen in ((64, "aligned"),
                                                                                    (128, "aligned", 0.5)))  # fmt: skip
    assert torch.allclose(wide[..., 32:96, 32:96], plain, atol=1e-3)


def test_a_large_face_is_cropped_without_aliasing():
    stripes = (torch.arange(600) % 2).float().expand(1, 3, 600, 600)
    faces = Faces(((Face((4, 4, 596, 596), 1),),), (600, 600))
    crop = crop_faces(stripes, faces, CropSettings(50, "box"))[0]
    assert (crop - 0.5).abs().max() < 0.06


@pytest.mark.parametrize("mode", ["aligned", "box"])
def test_a_crop_put_back_is_the_picture_and_only_the_crop_changes_it(mode):
    photo = avg_pool2d(avg_pool2d(example_photo(), 5, 1, 2), 5, 1, 2)  # no detail that two bilinear steps would lose
    image, points = turned(photo, ASTRONAUT, 15)
    face = Face(ASTRONAUT_BOX, 1, points)
    settings = CropSettings(256, mode, 0.1)
    faces = Faces(((face,), ()), (512, 512), crop=settings)
    images = torch.cat([image, photo])
    crops = crop_faces(images, faces, settings)[0]
    back = paste_faces(images, crops, faces)
    assert (back - images).abs().max() < 0.03
    painted = paste_faces(images, torch.ones_like(crops), faces, 0.2)
    assert torch.equal(painted[1], images[1])
    reach = placement(face, settings)
    rows, columns = torch.meshgrid(torch.arange(512) + 0.5, torch.arange(512) + 0.5, indexing="ij")
    at = torch.einsum("ij,jhw->ihw", reach, torch.stack([columns, rows, torch.ones(512, 512)]))
    outside = ((at < -1) | (at > 257)).any(0)
    middle = ((at > 70) & (at < 186)).all(0)
    assert torch.equal(painted[0][:, outside], images[0][:, outside])
    assert (painted[0][:, middle] > 0.999).all() and middle.sum() > 500
    changes = (painted - images)[0].abs().amax(0)
    ring = ((at > 0) & (at < 6)).any(0) & ~outside
    assert changes[ring].max() < 0.1  # no seam at the edge


def test_crops_of_another_size_are_scaled_and_wrong_ones_named():
    image = torch.zeros(1, 3, 60, 80)
    faces = Faces(((Face((20, 10, 50, 40), 1),),), (60, 80), crop=CropSettings(32, "box"))
    one, two = (paste_faces(image, torch.ones(1, 3, side, side), faces, 0.1) for side in (32, 128))
    assert (one - two).abs().mean() < 0.01
    with pytest.raises(ValueError, match=r"2 crop\(s\) of 32x32 for 1 face"):
        paste_faces(image, torch.ones(2, 3, 32, 32), faces)
    with pytest.raises(ValueError, match="connect the image that the faces were detected in"):
        paste_faces(torch.zeros(1, 3, 60, 60), torch.ones(1, 3, 32, 32), faces)
    with pytest.raises(ValueError, match="do not say how they were cropped"):
        paste_faces(image, torch.ones(1, 3, 32, 32), Faces(faces.images, (60, 80)))
    with pytest.raises(ValueError, match="no face to crop"):
        crop_faces(image, Faces(((),), (60, 80)), CropSettings())


def test_landmarks_of_a_box_lean_with_the_head():
    points = Face((10, 20, 50, 70), 1).with_landmarks().landmarks
    leaning = Face((10, 20, 50, 70), 1, turn=90).with_landmarks().landmarks
    x, y = (points - torch.tensor([30.0, 45.0])).T
    assert torch.allclose(leaning - torch.tensor([30.0, 45.0]), torch.stack([-y, x], 1), atol=1e-4)


# --- which faces


def test_faces_are_ordered_and_the_unsure_ones_left_out():
    small, large, unsure = Face((50, 0, 60, 10), 0.6), Face((20, 0, 50, 30), 0.7), Face((0, 0, 9, 9), 0.2)
    every = [unsure, small, large]
    assert ordered(every, "largest first", 0.5) == [large, small]
    assert ordered(every, "left to right") == [unsure, large, small]
    assert ordered(every, "surest first") == [large, small, unsure]
    with pytest.raises(ValueError, match="order of faces is 'other'"):
        ordered(every, "other")


def test_choice_by_index_and_by_likeness_works_picture_by_picture():
    east, north = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    first = faces_at((20, 20), (60, 20), vectors=[east, north], embedder="a")
    second = faces_at((30, 30), vectors=[0.9 * north + 0.1 * east], embedder="a")
    faces = Faces((*first.images, *second.images, ()), first.size, "a")
    assert [face.centre for _, face in choose(faces, "by index", 1).flat()] == [(60, 20)]
    assert [face.centre for _, face in choose(faces, "by index", -1).flat()] == [(60, 20), (30, 30)]
    assert [face.centre for _, face in choose(faces, "all").flat()] == [(20, 20), (60, 20), (30, 30)]
    chosen = choose(faces, "most similar", reference=Identity(north[None], "a"))
    assert [face.centre for _, face in chosen.flat()] == [(60, 20), (30, 30)]
    with pytest.raises(ValueError, match="face 5 is asked for, no picture has more than 2: use an index up to 1"):
        choose(faces, "by index", 5)
    with pytest.raises(ValueError, match="no face was found in 2 picture"):
        choose(Faces(((), ()), (9, 9)), "all")
    with pytest.raises(ValueError, match="connect a reference identity"):
        choose(faces, "most similar")
    with pytest.raises(ValueError, match="embeddings of b cannot be mixed with those of a"):
        choose(faces, "most similar", reference=Identity(north[None], "b"))


# --- identities


def test_identities_average_and_join_only_within_one_embedder(tmp_path):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 8, generator=draw)
    faces = faces_at((20, 20), (50, 20), (80, 20), vectors=list(rows), embedder="arc")
    identity = identity_of([face for _, face in faces.flat()], "arc", "free")
    expected = normalize(normalize(rows, dim=1).mean(0), dim=0)
    assert torch.allclose(identity.mean(), expected, atol=1e-6)
    assert torch.allclose(identity.averaged().embeddings, expected[None], atol=1e-6)
    assert identity.similarity(3 * expected, "arc") == pytest.approx(1, abs=1e-5)
    assert len(identity.joined(identity).embeddings) == 6
    with pytest.raises(ValueError, match="embeddings of arc cannot be mixed with those of sface"):
        identity.joined(Identity(rows, "sface"))
    with pytest.raises(ValueError, match="no embeddings: switch embeddings on"):
        identity_of([Face((0, 0, 1, 1), 1)], None)
    with pytest.raises(ValueError, match="no face to take an identity from"):
        identity_of([], "arc")
    with pytest.raises(ValueError, match="cancel out"):
        Identity(torch.stack([rows[0], -rows[0]]), "arc").mean()
    for bad in (torch.zeros(1, 4), torch.full((1, 4), float("nan"))):
        with pytest.raises(ValueError, match="zero, NaN or infinite"):
            Identity(bad, "arc")


def test_an_identity_survives_its_file_and_other_files_are_told_apart(tmp_path):
    from safetensors.torch import save_file

    identity = Identity(torch.randn(2, 5, generator=torch.Generator().manual_seed(3)), "arc", "research only")
    path = tmp_path / "deep" / "somebody.safetensors"
    save_identity(identity, path)
    loaded = load_identity(path)
    assert torch.equal(loaded.embeddings, identity.embeddings)
    assert (loaded.embedder, loaded.licence) == ("arc", "research only")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        save_identity(identity.averaged(), path)
    assert path.read_bytes() == before
    save_identity(identity.averaged(), path, overwrite=True)
    assert len(load_identity(path).embeddings) == 1
    save_file({"embeddings": torch.ones(1, 3)}, tmp_path / "other.safetensors")
    save_file({"embeddings": torch.ones(2, 3)}, tmp_path / "count.safetensors", {
        "format": "likeness-identity", "format_version": "1", "embedder": "arc", "count": "1"})  # fmt: skip
    save_file({"embeddings": torch.ones(1, 3)}, tmp_path / "new.safetensors", {
        "format": "likeness-identity", "format_version": "2", "embedder": "arc", "count": "1"})  # fmt: skip
    (tmp_path / "text.safetensors").write_text("hello")
    for name, message in (("other", "holds no identity"), ("count", "wrong number"), ("new", "of format 2"),
                          ("text", "no safetensors file"), ("none", "no such file")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_identity(tmp_path / f"{name}.safetensors")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_a_loaded_identity_lets_go_of_its_file(tmp_path):
    """Else it could on Windows be neither removed nor replaced for as long as ComfyUI keeps it."""
    path = tmp_path / "somebody.safetensors"
    save_identity(Identity(torch.ones(2, 5), "arc"), path)
    loaded = load_identity(path)
    assert str(path) not in Path("/proc/self/maps").read_text() and len(loaded.embeddings) == 2


# --- for looking


def test_boxes_are_drawn_and_masked_where_they_are():
    image = torch.full((2, 3, 100, 120), 0.5)
    faces = Faces((faces_at((40, 50)).images[0], ()), (100, 120))
    drawn, mask = draw_faces(image, faces), box_mask(faces)
    assert torch.equal(drawn[1], (image[1] * 255).round() / 255)
    assert (to_uint8(drawn[0])[50, 30] == FOUND).all()
    expected = torch.zeros(2, 100, 120)
    expected[0, 40:60, 30:50] = 1
    assert torch.equal(mask, expected)


def test_bad_pictures_are_refused_before_a_detector_sees_them(tmp_path):
    backend = load_backend("embedded", BackendSettings(tmp_path))
    for images, message in ((torch.rand(1, 4, 30, 30), "RGBA"), (torch.full((1, 3, 9, 9), float("nan")), "NaN"),
                            (torch.rand(0, 3, 9, 9), "empty batch")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            find_faces(backend, images, embed=False)


def test_boxes_of_rendered_faces_give_landmarks_near_the_exact_ones():
    """The fixed proportions against the portrait world's truth, for heads that face the camera."""
    found = render([sample_person(21, number) for number in range(24)], 128)
    errors = []
    for box, truth in zip(found.face_box[:, 0], found.landmarks[:, 0, :5], strict=True):
        middle = (truth[0, 0] + truth[1, 0]) / 2
        if abs(middle - truth[2, 0]) < 0.1 * (truth[1, 0] - truth[0, 0]):
            points = Face(tuple(box.tolist()), 1).with_landmarks().landmarks
            errors.append(float((points - truth).norm(dim=1).mean() / (truth[1] - truth[0]).norm()))
    assert len(errors) >= 4 and sum(errors) / len(errors) < 0.3


def test_insightface_runs_on_the_gpu_of_its_worker(models, monkeypatch):
    """Each worker of a data set has a GPU of its own; the first one would not hold all of them."""
    insightface, told = pytest.importorskip("likeness.pipelines.faces.insightface"), {}
    cuda = (["CUDAExecutionProvider", "CPUExecutionProvider"], ())
    monkeypatch.setattr(insightface, "_providers", lambda device: cuda if device == "auto" else (cuda[0][1:], ()))
    stock = insightface.need("insightface.app", "insightface").FaceAnalysis

    class Seen(stock):
        def __init__(self, **options):
            told.update(options)
            super().__init__(**{**options, "providers": ["CPUExecutionProvider"], "provider_options": [{}]})

    monkeypatch.setattr(insightface.need("insightface.app", "insightface"), "FaceAnalysis", Seen)
    for device, expected in (("cuda:2", [{"device_id": 2}, {}]), ("cuda", [{"device_id": 0}, {}]), ("cpu", [{}])):
        load_face_backend(models, device)
        assert told["provider_options"] == expected
