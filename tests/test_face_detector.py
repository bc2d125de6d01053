"""The face detector of the portrait world: what it learns from, how its answers become faces, how good it is."""

import json
import math

import pytest
import torch
from likeness.pipelines.embedded import SHIPPED
from likeness.pipelines.embedded.face_detector import FaceDetector, cell_targets, landmark_error, load_face_detector
from likeness.pipelines.embedded.face_scenes import (
    FaceScene,
    Portrait,
    SceneSettings,
    face_scene,
    hidden,
    spoilt,
)
from likeness.pipelines.faces import Face
from likeness.pipelines.faces.cascade import box_overlap
from likeness.pipelines.faces.portrait_world import AGREE, CLOSE_UP, agreed, find_portrait_faces, merged
from likeness.pipelines.portraits import group_scene, render, sample_person
from torch.nn.functional import grid_sample

pytestmark = pytest.mark.usefixtures("one_thread")
POINTS = torch.tensor([(50.0, 50.0), (70.0, 52.0), (60.0, 62.0), (52.0, 74.0), (68.0, 75.0)])
BOX = torch.tensor([40.0, 36.0, 82.0, 88.0])


def dotted() -> Portrait:
    """A dark picture with a bright spot of 5x5 pixels at each landmark."""
    picture = torch.full((3, 128, 128), -0.8)
    for x, y in POINTS.int().tolist():
        picture[:, y - 2 : y + 3, x - 2 : x + 3] = 0.8
    return Portrait(picture, BOX, POINTS + 0.5)


def draws(count):
    return (torch.Generator().manual_seed(seed) for seed in range(count))


# --- what it learns from


def test_boxes_and_landmarks_of_scenes_lie_where_the_faces_are_seen():
    """However many portraits there are, mirrored, turned, moved and scaled, the spots are below the landmarks."""
    seen = several = 0
    for draw in draws(40):
        scene = face_scene(dotted, SceneSettings(spoilt=0, hidden=0, softened=0, grey=0), draw)
        assert scene.picture.shape == (3, 128, 128) and scene.picture.abs().max() <= 1
        several += len(scene.boxes) > 1
        for box, points in zip(scene.boxes, scene.landmarks, strict=True):
            assert points[0, 0] < points[1, 0] and points[3, 0] < points[4, 0]
            extent = box[2:] - box[:2]
            assert 20 < extent[0] < 62 and extent[1] / extent[0] == pytest.approx(52 / 42, abs=0.01)
            if box.min() < 0 or box.max() > 128:
                continue
            at = (points / 64 - 1)[None, None]
            spots = grid_sample(scene.picture.mean(0)[None, None], at, align_corners=False)[0, 0, 0]
            assert spots.min() > scene.picture.mean() + 0.25
            seen += 1
    assert seen > 20 and several > 10


def test_a_spoilt_face_is_none_and_its_surroundings_stay():
    tile, ways = dotted(), set()
    x0, y0, x1, y1 = BOX.int().tolist()
    for draw in draws(12):
        picture = spoilt(tile, draw)
        outside = (picture - tile.picture).abs()
        assert outside[:, y0:y1, x0:x1].max() > 0.5
        ways.add(round(float(picture.sum()), 1))
        outside[:, y0:y1, x0:x1] = 0
        assert outside.max() == 0
    assert len(ways) > 3
    scene = face_scene(dotted, SceneSettings(spoilt=1), torch.Generator().manual_seed(0))
    assert len(scene.boxes) == len(scene.landmarks) == 0


def test_up_to_about_a_third_of_a_face_is_hidden():
    plain = Portrait(torch.linspace(-1, 1, 3 * 128 * 128).reshape(3, 128, 128), BOX, POINTS)
    for draw in draws(20):
        changed = (hidden(plain, draw) != plain.picture).any(0).float().sum() / (42 * 52)
        assert 0.05 < changed < 0.45


def test_cells_learn_where_they_are_in_a_face():
    scene = FaceScene(torch.zeros(3, 128, 128), BOX[None], POINTS[None])
    made = cell_targets(scene)
    middles = (torch.arange(16) + 0.5) * 8
    rows, columns = made["face"].nonzero(as_tuple=True)
    assert 1 <= len(rows) <= 9
    for row, column in zip(rows, columns, strict=True):
        at = torch.stack([middles[column], middles[row]])
        assert ((at - torch.tensor([61.0, 62.0])).abs() <= 0.18 * torch.tensor([42.0, 52.0])).all()
        assert torch.allclose(made["places"][:, row, column] + at.repeat(7), torch.cat([BOX, POINTS.flatten()]))
        assert made["counts"][row, column] == 1 and made["matters"][:, row, column].min() > 0
    assert made["size"][rows, columns].unique().item() == pytest.approx((42 * 52) ** 0.5)
    beside = made["counts"] == 0
    assert beside.any() and not (beside & (made["face"] == 1)).any() and made["counts"][0].min() == 1
    eye = made["matters"][4, 6, 6], made["matters"][4, 9, 8]  # the left eye lies in cell (6, 6)
    assert eye[0] > 0.9 and eye[1] < 0.4


@pytest.mark.parametrize(("shift", "face", "ignored"), [(0, True, True), (65, False, True), (90, False, False)])
def test_a_face_that_is_cut_off_is_one_then_anything_then_none(shift, face, ignored):
    move = torch.tensor([shift, 0])
    made = cell_targets(FaceScene(torch.zeros(3, 128, 128), (BOX + move.repeat(2))[None], (POINTS + move)[None]))
    assert bool(made["face"].any()) == face and bool((made["counts"] == 0).any()) == ignored


# --- how answers become faces


MIDDLE = torch.tensor([61.0, 62.0])
KNOWN = 24, 80  # pixels of the faces that it knows


def knowing(pixels: torch.Tensor):
    """A network that knows a face by a red square, 8 pixels wide where the face is BOX and POINTS, and which way it
    looks by the green square on its left; every cell knows where the face is, those near its middle that there is one.
    """
    rows, columns = (length // 8 for length in pixels.shape[-2:])
    logits, places = torch.full((len(pixels), rows, columns), -10.0), torch.zeros(len(pixels), 14, rows, columns)
    x, y = torch.meshgrid((torch.arange(columns) + 0.5) * 8, (torch.arange(rows) + 0.5) * 8, indexing="xy")
    for number, picture in enumerate(pixels):
        red, green = ((picture[one] > 0.5) & (picture[other] < -0.5) for one, other in ((0, 1), (1, 0)))
        if not (red.any() and green.any()):
            continue
        (down, right), scale = red.nonzero().float().mean(0) + 0.5, float(red.sum()) ** 0.5 / 8
        box, points = scale * (BOX - MIDDLE.repeat(2)), scale * (POINTS - MIDDLE)
        if green.nonzero().float().mean(0)[1] > right:
            box = torch.tensor([-box[2], box[1], -box[0], box[3]])
            points = (points * torch.tensor([-1.0, 1.0]))[[1, 0, 2, 4, 3]]
        away = torch.stack([right - x, down - y]).repeat(7, 1, 1)
        places[number] = torch.cat([box, points.flatten()])[:, None, None] + away
        if KNOWN[0] < (BOX[2] - BOX[0]) * scale < KNOWN[1]:
            logits[number][away[:2].abs().amax(0) <= 6] = 10
    return logits, places[:, :4], places[:, 4:]


def with_face(height, width, x, y, square):
    image = torch.full((3, height, width), 0.5)
    for left, colour in ((x - square / 2, [1.0, 0, 0]), (x - 1.5 * square, [0, 1.0, 0])):
        top, left = round(y - square / 2), round(left)
        image[:, top : top + square, left : left + square] = torch.tensor(colour)[:, None, None]
    return image


@pytest.mark.parametrize(
    ("height", "width", "x", "y", "square"),
    [(128, 128, 60, 70, 8), (96, 128, 40, 36, 10), (768, 512, 260, 300, 60), (150, 240, 180, 60, 6),
     (64, 50, 30, 28, 9)],
)  # fmt: skip
def test_answers_become_faces_in_pixels_of_the_picture(height, width, x, y, square):
    """At every size of picture and face: the first looks show it small enough, the second ones close."""
    (face,) = find_portrait_faces(knowing, with_face(height, width, x, y, square))
    scale, middle = square / 8, torch.tensor([float(x), float(y)])
    assert (face.landmarks - scale * (POINTS - MIDDLE) - middle).norm(dim=1).max() < 1 + 2 * scale
    box = scale * (BOX - MIDDLE.repeat(2)) + middle.repeat(2)
    assert box_overlap(face.box, box.tolist()) > 0.9
    assert face.score > 0.9 and not face.landmarks_estimated


def test_what_is_not_seen_again_is_no_face():
    """A network that takes the whole picture for a face, but nothing close by."""

    def hasty(pixels):
        logits, boxes, points = knowing(pixels)
        return (logits if pixels.shape[-1] != CLOSE_UP else -logits.abs()), boxes, points

    image = with_face(100, 120, 60, 50, 8)
    assert find_portrait_faces(hasty, image) == [] and len(find_portrait_faces(knowing, image)) == 1


def test_looks_that_differ_make_a_face_unsure():
    seen = torch.cat([BOX.reshape(2, 2), POINTS]).repeat(3, 1, 1)
    scores = torch.tensor([0.9, 0.8, 0.95])
    assert agreed(seen, scores).score == pytest.approx(0.8)
    assert torch.equal(agreed(seen, scores).landmarks, POINTS)
    seen[0, 2:, 0] += 12.0
    differ = torch.tensor([8.0, 4.0, 4.0]).mean() / (POINTS[1] - POINTS[0]).norm()
    assert agreed(seen, scores).score == pytest.approx(0.8 * math.exp(-((differ / AGREE) ** 2)), rel=1e-4)
    assert agreed(seen, torch.tensor([0.9, 0.2, 0.9])) is None


def test_no_face_no_answer():
    assert find_portrait_faces(knowing, torch.full((3, 70, 50), 0.5)) == []


def test_answers_of_one_face_are_averaged_and_others_stay():
    def face(x, score):
        box = torch.tensor([x, 0.0, x + 20, 20])
        return Face(tuple(box.tolist()), score, POINTS + x)

    one, other = merged([face(0, 0.6), face(50, 0.7), face(4, 0.2)])
    assert one.score == 0.7 and one.box == (50, 0, 70, 20)
    assert other.score == 0.6 and other.box == pytest.approx((1, 0, 21, 20))
    assert torch.allclose(other.landmarks, POINTS + 1)


# --- how good the shipped one is


@pytest.fixture(scope="module")
def shipped() -> FaceDetector:
    return load_face_detector(SHIPPED / "face_detector")


def test_it_is_as_good_as_its_card_says(shipped):
    told = json.loads((SHIPPED / "metrics.json").read_text())["figures"]
    truth = render([sample_person(77, number) for number in range(24)], 128)
    hits, errors, others = 0, [], 0
    for image, box, points in zip(truth.image, truth.face_box[:, 0], truth.landmarks[:, 0, :5], strict=True):
        faces = [face for face in find_portrait_faces(shipped, image) if face.score >= 0.5]
        near = [face for face in faces if box_overlap(face.box, box.tolist()) >= 0.5]
        hits, others = hits + bool(near), others + len(faces) - len(near[:1])
        errors += [landmark_error(face, points) for face in near[:1]]
    assert hits / 24 >= told["face detector: faces found"] - 0.1 and others <= 2
    expected = told["face detector: landmark error (eye distances)"]
    assert sum(errors) / len(errors) == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("size", [256, (300, 200), 700])
def test_it_finds_faces_in_pictures_of_other_sizes(shipped, size):
    truth = render([sample_person(78, number) for number in range(4)], size)
    for image, box in zip(truth.image, truth.face_box[:, 0], strict=True):
        best = find_portrait_faces(shipped, image)[0]
        assert best.score >= 0.5 and box_overlap(best.box, box.tolist()) >= 0.5


def test_it_finds_most_of_several_people(shipped):
    """Three groups of three; eight are found, one among close neighbours is not."""
    hits = others = 0
    for seed in (79, 81, 83):
        truth = render(group_scene([sample_person(seed, number) for number in range(3)]), (192, 384))
        faces = [face for face in find_portrait_faces(shipped, truth.image[0]) if face.score >= 0.5]
        near = [any(box_overlap(face.box, box.tolist()) >= 0.5 for face in faces) for box in truth.face_box[0]]
        hits, others = hits + sum(near), others + len(faces) - sum(near)
    assert hits >= 7 and others <= 1


def test_where_no_face_is_it_says_so(shipped):
    """Backgrounds and clothes of portraits, plain colours, noise."""
    truth = render([sample_person(80, number) for number in range(12)], 256)
    pictures = [image[:, 190:] for image in truth.image] + [image[:, :60] for image in truth.image]
    pictures += [torch.full((3, 128, 128), 0.4), torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))]
    found = [any(face.score >= 0.5 for face in find_portrait_faces(shipped, picture)) for picture in pictures]
    assert sum(found) <= 2


def test_a_missing_or_damaged_detector_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no face detector .*: give the folder that embedded-face-detector"):
        load_face_detector(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="holds no face detector"):
        load_face_detector(tmp_path)
