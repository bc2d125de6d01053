"""Masks of people against the exact truth of the portrait world, and against wrong input."""

import math

import numpy as np
import pytest
import torch
from likeness.pipelines.masks import (
    MaskSettings,
    RcnnSettings,
    clothing_masks,
    face_masks,
    foreground_masks,
    load_mask_rcnn,
    rcnn_masks,
    refine_mask,
    split_people,
)
from likeness.pipelines.masks.face import half_axes
from likeness.pipelines.masks.grabcut import IN, MAYBE_IN, OUT, seeds_from_mask
from likeness.pipelines.masks.mask_rcnn import match_to_faces
from likeness.pipelines.masks.window import Window
from likeness.pipelines.portraits import edited, render, sample_person
from likeness.pipelines.portraits.parts import FACE_PARTS, Part
from likeness.pipelines.portraits.scene import group_scene
from torch.nn.functional import max_pool2d

WORN = (Part.TORSO, Part.ARMS, Part.LEGS, Part.FEET, Part.COLLAR)
PEOPLE, SIDE = 20, 192
ONE_FACE = [torch.tensor([[20.0, 20, 40, 44]])]


def overlap(mask: torch.Tensor, truth: torch.Tensor) -> float:
    """Intersection over union of two masks of any shape, told at 0.5."""
    mask, truth = mask.reshape(-1) > 0.5, truth.reshape(-1) > 0.5
    return float((mask & truth).sum() / (mask | truth).sum())


def overlaps(masks: torch.Tensor, truths: torch.Tensor) -> np.ndarray:
    return np.array([overlap(*pair) for pair in zip(masks, truths, strict=True)])


@pytest.fixture(scope="module")
def people():
    return render([sample_person(11, index) for index in range(PEOPLE)], SIDE)


@pytest.fixture(scope="module")
def faces(people):
    return list(people.face_box)


@pytest.fixture(scope="module")
def pairs():
    return render([group_scene([sample_person(12, 2 * i), sample_person(12, 2 * i + 1)]) for i in range(3)], (192, 288))


def test_foreground_is_the_people(people, faces):
    masks = foreground_masks(people.image, faces)
    found = overlaps(masks, people.alpha)
    print(f"foreground: mean {found.mean():.3f}, least {found.min():.3f}")
    assert found.mean() > 0.87
    assert np.sort(found)[2] > 0.65


def test_foreground_does_not_hang_on_the_exact_box(people, faces):
    """Detectors differ by a tenth of a face, and by whether the forehead counts."""
    random = torch.Generator().manual_seed(3)
    boxes = torch.cat(faces[:10])
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + size * (0.12 * (2 * torch.rand(boxes.shape, generator=random) - 1))
    found = overlaps(foreground_masks(people.image[:10], list(moved[:, None])), people.alpha[:10])
    print(f"foreground, moved boxes: mean {found.mean():.3f}, least {found.min():.3f}")
    assert found.mean() > 0.88


def test_clothing_is_what_is_worn_below_the_chin(people, faces):
    truth = people.mask(*WORN) * people.costume
    found = overlaps(clothing_masks(people.image, faces), truth)
    given = overlaps(clothing_masks(people.image, faces, people.alpha[:, 0]), truth)
    below = torch.arange(SIDE)[:, None] > people.face_box[:, :1, 3:, None]
    without_head = overlaps(people.alpha * below, truth)
    print(f"clothing: mean {found.mean():.3f}, with the true foreground {given.mean():.3f}, "
          f"all below the chin {without_head.mean():.3f}")  # fmt: skip
    assert found.mean() > 0.86
    assert given.mean() > max(0.91, without_head.mean())


def test_face_is_skin_eyes_mouth_and_beard(people, faces):
    truth = people.mask(*FACE_PARTS, Part.BEARD, Part.GLASSES)
    refined = overlaps(face_masks(people.image, faces, [[points[0, :5]] for points in people.landmarks]), truth)
    plain = overlaps(face_masks(people.image, faces, by_color=False), truth)
    print(f"face: mean {refined.mean():.3f}, ellipse alone {plain.mean():.3f}")
    assert refined.mean() > 0.86
    assert refined.mean() > plain.mean() + 0.03


def test_the_ellipse_leans_as_the_eyes_do():
    straight, tilted = [], []
    for roll in (-30, 30):
        leaning = [edited(sample_person(11, index), roll=roll, yaw=0, pitch=0) for index in (2, 5, 8)]
        people = render(leaning, 128)
        truth = people.mask(*FACE_PARTS, Part.BEARD, Part.GLASSES)
        boxes, points = list(people.face_box), [[landmarks[0, :5]] for landmarks in people.landmarks]
        straight += [*overlaps(face_masks(people.image, boxes, by_color=False), truth)]
        tilted += [*overlaps(face_masks(people.image, boxes, points, by_color=False), truth)]
    print(f"leaning faces: upright ellipse {np.mean(straight):.3f}, leaning {np.mean(tilted):.3f}")
    assert np.mean(tilted) > np.mean(straight) + 0.01


def test_two_people_and_one_of_them(pairs):
    faces = list(pairs.face_box)
    both = overlaps(foreground_masks(pairs.image, faces), pairs.alpha)
    one = [overlaps(foreground_masks(pairs.image, faces, who), (pairs.person == who + 1).float()) for who in (0, 1)]
    print(f"two people: mean {both.mean():.3f}; one of them {np.mean(one):.3f}")
    assert both.mean() > 0.86
    assert np.mean(one) > 0.72
    worn = pairs.mask(*WORN) * pairs.costume
    second = overlaps(clothing_masks(pairs.image, faces, None, 1), worn * (pairs.person == 2))
    print(f"clothing of the second: {second.mean():.3f}")
    assert second.mean() > 0.65


def test_parts_of_a_mask_of_several_people_are_the_whole(pairs):
    parts = split_people(pairs.image, pairs.alpha[:, 0], list(pairs.face_box))
    for index, of_picture in enumerate(parts):
        assert of_picture.shape == (2, 192, 288)
        assert torch.allclose(of_picture.sum(0), pairs.alpha[index, 0], atol=1e-4)
    mean = np.mean([overlap(part[who], pairs.person[i] == who + 1) for i, part in enumerate(parts) for who in (0, 1)])
    print(f"split by the true foreground: {mean:.3f}")
    assert mean > 0.78


def test_a_rough_mask_is_brought_to_the_contour(people):
    wide = max_pool2d(people.alpha[:10], 11, stride=1, padding=5)
    refined = overlaps(refine_mask(people.image[:10], wide), people.alpha[:10])
    assert refined.mean() > 0.93
    assert refined.mean() > overlaps(wide, people.alpha[:10]).mean() + 0.1
    coarse = torch.nn.functional.interpolate(people.alpha[:4], size=(24, 24), mode="area")[:, 0]
    assert overlaps(refine_mask(people.image[:4], coarse), people.alpha[:4]).mean() > 0.93
    assert not refine_mask(people.image[:1], torch.zeros(1, SIDE, SIDE)).any()


def test_softness_widens_edges_and_only_those(people, faces):
    image, box = people.image[2:3], faces[2:3]
    hard, narrow, wide = (
        foreground_masks(image, box, settings=MaskSettings(softness=value)) for value in (0, 2, 8)
    )  # fmt: skip
    between = [((mask > 0.02) & (mask < 0.98)).float().mean() for mask in (hard, narrow, wide)]
    assert between[0] == 0
    assert 0 < between[1] < between[2]
    assert min(overlap(hard, narrow), overlap(hard, wide)) > 0.96


def test_large_pictures_of_any_shape_keep_their_edges():
    """The cut is made small; the guided filter brings it to the full size."""
    person = render(sample_person(11, 4), (602, 417))
    mask = foreground_masks(person.image, [person.face_box[0]])
    assert mask.shape == (1, 1, 602, 417)
    assert overlap(mask, person.alpha) > 0.93
    window = Window.around(0, 0, 417, 602, (602, 417), 64)
    small = window.mask(person.alpha[0, 0]) >= 0.5
    snapped, blocks = (window.finish(small, image, 0) for image in (person.image[0], torch.zeros(3, 602, 417)))
    assert 1 - overlap(snapped, person.alpha) < 0.8 * (1 - overlap(blocks, person.alpha))


def test_batches_empty_pictures_and_progress(people, faces):
    steps = []
    image = people.image[[1, 2, 1]]
    boxes = [faces[1], torch.zeros(0, 4), faces[1]]
    together = foreground_masks(image, boxes, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert not together[1].any()
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[0], foreground_masks(people.image[1:2], faces[1:2])[0])
    for masks in (clothing_masks(image, boxes), face_masks(image, boxes)):
        assert not masks[1].any()
        assert torch.equal(masks[0], masks[2])

    def cancel(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        clothing_masks(image, boxes, on_step=cancel)


def test_the_tilted_ellipse_touches_its_box():
    for across, along, degrees in ((30, 40, 0), (30, 40, 20), (30, 40, -35), (20, 36, 60), (20, 36, 90)):
        tilt = math.radians(degrees)
        angle = np.linspace(0, 2 * np.pi, 4001)
        u, v = across * np.cos(angle), along * np.sin(angle)
        x, y = u * np.cos(tilt) - v * np.sin(tilt), u * np.sin(tilt) + v * np.cos(tilt)
        box = np.array([x.min(), y.min(), x.max(), y.max()])
        assert half_axes(box, tilt) == pytest.approx((across, along), rel=1e-3)


class Detector:
    """Answers as torchvision's Mask R-CNN does: two people, one of them uncertain, and a dog that scores best."""

    def __call__(self, pictures):
        height, width = pictures[0].shape[-2:]
        masks = torch.zeros(4, 1, height, width)
        masks[0, 0, :, : width // 4] = 0.6
        masks[1, 0, :, width // 2 :] = 0.9
        masks[2, 0] = 1
        masks[3, 0, :, width // 4 : width // 2] = 1
        return [{"labels": torch.tensor([1, 1, 18, 1]), "scores": torch.tensor([0.99, 0.8, 1.0, 0.3]), "masks": masks}]


def test_mask_rcnn_people_by_size_by_face_and_together():
    image, hard = torch.rand(2, 3, 40, 80, generator=torch.Generator().manual_seed(0)), RcnnSettings(softness=0)
    small, large = torch.zeros(40, 80), torch.zeros(40, 80)
    small[:, :20], large[:, 40:] = 1, 1

    def found(**options):
        return rcnn_masks(Detector(), image, settings=options.pop("settings", hard), **options)

    assert torch.equal(found()[1, 0], small + large)
    assert torch.equal(found(person=0)[0, 0], large)
    assert torch.equal(found(person=1)[0, 0], small)
    left, right, nobody = [4.0, 5, 12, 15], [50.0, 5, 60, 15], [24.0, 5, 36, 15]
    boxes = [torch.tensor([left, right, nobody]), torch.tensor([right])]
    assert torch.equal(found(faces=boxes, person=0)[:, 0], torch.stack([small, large]))
    assert torch.equal(found(faces=boxes, person=1)[:, 0], torch.stack([large, torch.zeros(40, 80)]))
    assert not found(faces=boxes, person=2).any()
    assert torch.equal(found(faces=[torch.zeros(0, 4)] * 2)[1, 0], small + large)
    soft = found(settings=RcnnSettings(threshold=None, softness=0))[0, 0]
    assert torch.allclose(soft, 0.6 * small + 0.9 * large)
    strict = found(settings=RcnnSettings(minimum_score=0.9, softness=0))
    assert torch.equal(strict[0, 0], small)
    with pytest.raises(ValueError, match="person 3 is asked for, no image has more than 2 people: choose 1 to 2"):
        found(person=2)
    with pytest.raises(ValueError, match="no people in any image"):
        rcnn_masks(Detector(), image, person=0, settings=RcnnSettings(minimum_score=1.0))


def test_where_people_overlap_the_surer_one_counts():
    scores = torch.full((2, 40, 80), 0.3)
    scores[1, :, 40:] = 0.8

    def model(pictures):
        count = torch.ones(2)
        return [{"labels": count.long(), "scores": count, "masks": scores[:, None]}]

    image = torch.rand(1, 3, 40, 80, generator=torch.Generator().manual_seed(0))
    soft = rcnn_masks(model, image, settings=RcnnSettings(threshold=None, softness=0))
    assert torch.allclose(soft[0, 0], scores.amax(0))
    assert torch.equal(rcnn_masks(model, image, settings=RcnnSettings(softness=0))[0, 0], (scores[1] > 0.5).float())


def test_a_mask_belongs_to_the_face_that_it_covers_best():
    """The mask of who stands in front covers half of the face behind, too, which has a mask of its own."""
    front, behind = torch.zeros(40, 80), torch.zeros(40, 80)
    front[:, :30], behind[:, 26:70] = 1, 1
    faces = np.array([[22.0, 5, 34, 15], [10.0, 5, 20, 15]])  # of the one behind, and in front
    assert match_to_faces(torch.stack([front, behind]), faces) == [1, 0]
    assert match_to_faces(front[None], faces) == [None, 0]
    assert match_to_faces(torch.zeros(0, 40, 80), faces) == [None, None]


def test_a_thin_rough_mask_keeps_its_spine_and_a_thick_one_its_core():
    thin, thick = np.zeros((60, 100), np.float32), np.zeros((60, 100), np.float32)
    thin[28:33, 5:95], thick[10:50, 20:80] = 1, 1
    for mask in (thin, thick):
        labels, reach = seeds_from_mask(mask, 0.15), 0.15 * mask.sum() ** 0.5
        assert (labels == IN).any() and not (labels[mask == 0] == IN).any()
        rows, columns = np.nonzero(mask)
        away = np.hypot(*(np.mgrid[:60, :100].reshape(2, -1, 1) - np.stack([rows, columns])[:, None])).min(1)
        assert ((labels == OUT) ^ (away.reshape(60, 100) > reach)).mean() < 0.02
    assert (labels[10 + math.ceil(reach) : 50 - math.ceil(reach), 50] == IN).all() and labels[12, 50] == MAYBE_IN


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises((ValueError, ImportError), match="is no Mask R-CNN of torchvision|torchvision is needed"):
        load_mask_rcnn(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not exist"):
        load_mask_rcnn(tmp_path / "missing.pth")


IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: foreground_masks(IMAGE, [torch.zeros(0, 4)]), "no faces in any image"),
        (lambda: foreground_masks(IMAGE, ONE_FACE, 1), "person 2 is asked for, no image has more than 1 faces"),
        (lambda: foreground_masks(IMAGE, ONE_FACE * 2), "faces are those of 2 images, image is a batch of 1"),
        (lambda: foreground_masks(IMAGE, [torch.tensor([[9.0, 9, 9, 20]])]), r"face box \(9, 9, 9, 20\).*is empty"),
        (lambda: foreground_masks(IMAGE, [torch.tensor([[70.0, 9, 99, 20]])]), "outside of the 64x64 image"),
        (lambda: foreground_masks(IMAGE, [torch.full((1, 4), math.nan)]), "not finite"),
        (lambda: foreground_masks(torch.full_like(IMAGE, math.nan), ONE_FACE), "NaN"),
        (lambda: foreground_masks(torch.ones(1, 4, 64, 64), ONE_FACE), "4 channels"),
        (lambda: clothing_masks(IMAGE, ONE_FACE, torch.ones(1, 9, 64)), "foreground is 64x9, image is 64x64"),
        (lambda: face_masks(IMAGE, ONE_FACE, [[torch.ones(5)]]), "give 5 finite points"),
        (lambda: face_masks(IMAGE, ONE_FACE, [[None]] * 2), "landmarks are those of 2 images, the faces of 1"),
        (lambda: face_masks(IMAGE, ONE_FACE, [[None, None]]), "1 face boxes and 2 sets of landmarks"),
        (lambda: refine_mask(IMAGE, torch.ones(1, 64, 64), tolerance=0), "tolerance is 0"),
        (lambda: split_people(IMAGE, torch.ones(1, 64, 64), [torch.zeros(0, 4)]), "image 1 has no faces to split"),
        (lambda: MaskSettings(softness=-1), "softness is -1"),
        (lambda: RcnnSettings(minimum_score=0), "minimum_score is 0"),
    ],
)
def test_bad_input_is_refused_with_value_and_mend(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_uniform_and_tiny_pictures_give_masks_without_nan():
    for image, box in ((torch.zeros(1, 3, 64, 64), ONE_FACE), (IMAGE[..., :7, :5], [torch.tensor([[1.0, 1, 4, 5]])])):
        for masks in (foreground_masks(image, box), clothing_masks(image, box), face_masks(image, box)):
            assert masks.shape == image[:, :1].shape
            assert masks.min() >= 0 and masks.max() <= 1
