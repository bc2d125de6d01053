"""The face detector of the portrait world: what it learns from, how its answers become faces, how good it is."""

import json

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
from likeness.pipelines.faces.portrait_world import find_portrait_faces, merged
from likeness.pipelines.portraits import group_scene, render, sample_person
from torch.nn.functional import avg_pool2d, grid_sample

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


def knowing(pixels: torch.Tensor):
    """A network that knows a face by one red cell, and which way it looks by the green cell on its left."""
    red, green = (avg_pool2d(pixels[:, [channel]], 8) > 0.9 for channel in (0, 1))
    red &= avg_pool2d(pixels[:, [1]], 8) < -0.9
    found = red & (avg_pool2d(red.float(), 3, 1, 1) * 9 < 1.5)  # one cell alone
    middles = (torch.arange(max(red.shape[2:])) + 0.5) * 8
    answers = torch.zeros(len(pixels), 14, *red.shape[2:])
    for number, (row, column) in enumerate(first(found)):
        if row is None:
            continue
        looks_back = column > 0 and not bool(green[number, 0, row, column - 1])
        box, points = BOX - torch.tensor([61.0, 62.0]).repeat(2), POINTS - torch.tensor([61.0, 62.0])
        if looks_back:
            box = torch.tensor([-box[2], box[1], -box[0], box[3]])
            points = (points * torch.tensor([-1.0, 1.0]))[[1, 0, 2, 4, 3]]
        place = torch.cat([box, points.flatten()])[:, None, None]
        x, y = torch.meshgrid(middles[: red.shape[3]], middles[: red.shape[2]], indexing="xy")
        away = torch.stack([middles[column] - x, middles[row] - y]).repeat(7, 1, 1)
        answers[number] = place + away
    return 20 * found[:, 0].float() - 10, answers[:, :4], answers[:, 4:]


def first(found):
    places = [one[0].nonzero() for one in found]
    return [tuple(place[0].tolist()) if len(place) else (None, None) for place in places]


@pytest.mark.parametrize(("height", "width", "cell"), [(128, 128, 8), (192, 256, 16), (64, 40, 8)])
def test_answers_become_faces_in_pixels_of_the_picture(height, width, cell):
    """Seen at the size at which the red cell is one of the network's."""
    image = torch.full((3, height, width), 0.5)
    row, column = 2, 4
    for at, colour in ((column, [1.0, 0, 0]), (column - 1, [0, 1.0, 0])):
        image[:, row * cell : (row + 1) * cell, at * cell : (at + 1) * cell] = torch.tensor(colour)[:, None, None]
    (face,) = find_portrait_faces(knowing, image)
    scale = cell / 8
    middle = torch.tensor([(column + 0.5) * cell, (row + 0.5) * cell])
    expected = scale * (POINTS - torch.tensor([61.0, 62.0])) + middle
    assert torch.allclose(face.landmarks, expected, atol=0.01)
    box = scale * (BOX - torch.tensor([61.0, 62.0]).repeat(2)) + middle.repeat(2)
    assert face.box == pytest.approx(tuple(box.tolist()), abs=0.01)
    assert face.score > 0.99 and not face.landmarks_estimated


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


def test_it_finds_several_people(shipped):
    truth = render(group_scene([sample_person(79, number) for number in range(3)]), (192, 384))
    faces = [face for face in find_portrait_faces(shipped, truth.image[0]) if face.score >= 0.5]
    for box in truth.face_box[0]:
        assert any(box_overlap(face.box, box.tolist()) >= 0.5 for face in faces)
    assert len(faces) <= 4


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
