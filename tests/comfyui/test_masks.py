"""Mask nodes inside ComfyUI: what they hand on, which method ran, and Mask R-CNN in both of torchvision's versions."""

import io

import numpy as np
import pytest
import torch
from comfyui_server import ComfyRunError
from likeness.nodes import person_masks
from likeness.nodes.masks import CleanMask, MaskEdgeBand, SoftenMask
from likeness.nodes.person_masks import ClothingMask, FaceMask, ForegroundMask, SplitPeopleMask
from likeness.pipelines.faces.face import Face, Faces
from likeness.pipelines.images import from_uint8, save_image
from likeness.pipelines.masks import (
    MaskSettings,
    clothing_masks,
    face_masks,
    foreground_masks,
    load_mask_rcnn,
    refine_mask,
    split_people,
)
from PIL import Image

FACE = (177.0, 72.0, 275.0, 182.0)  # of the astronaut, between hairline and chin


@pytest.fixture(scope="module")
def photo():
    """The astronaut at half size and its mirror, one above the other in a batch [2, 3, 256, 256]."""
    import skimage.data

    image = torch.nn.functional.interpolate(from_uint8(skimage.data.astronaut()), scale_factor=0.5, mode="area")
    return torch.cat([image, image.flip(-1)])


@pytest.fixture(scope="module")
def faces():
    x0, y0, x1, y1 = (value / 2 for value in FACE)
    return Faces(((Face((x0, y0, x1, y1), 0.9),), (Face((256 - x1, y0, 256 - x0, y1), 0.9),)), (256, 256))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Whatever weights this machine has."""
    monkeypatch.setattr(person_masks, "rcnn_file", lambda: None)


def boxes_of(faces):
    return [torch.tensor([face.box for face in own]) for own in faces.images]


def test_nodes_hand_on_what_the_pipelines_make(photo, faces):
    image, boxes, settings = photo.movedim(1, -1), boxes_of(faces), MaskSettings(softness=3)
    mask, report = ForegroundMask.execute(image, "auto", 0, 3, faces).result
    people = foreground_masks(photo, boxes, settings=settings)
    assert torch.equal(mask, people[:, 0])
    assert "grabcut from the faces (no Mask R-CNN weights in " in report
    assert f"mask 2: {float(people[1].mean()):.1%} of the picture" in report
    mask, report = ClothingMask.execute(image, "grabcut", 1, 3, faces).result
    assert torch.equal(mask, clothing_masks(photo, boxes, people, settings=settings)[:, 0])
    assert report.startswith("grabcut from the faces; clothes: grabcut\n")
    given = ClothingMask.execute(image, "grabcut", 0, 3, faces, foreground=torch.ones(1, 256, 256)).result[0]
    assert (given != mask).any()
    mask, _ = FaceMask.execute(image, 1, 3, True, faces).result
    points = [[face.with_landmarks().landmarks for face in own] for own in faces.images]
    assert torch.equal(mask, face_masks(photo, boxes, points, 0, settings)[:, 0])
    assert 0.01 < mask[0].mean() < 0.08 < given[0].mean()


def test_one_mask_a_face(photo):
    image = torch.cat([photo[:1], photo[1:]], 3)
    x0, y0, x1, y1 = (value / 2 for value in FACE)
    faces = Faces(((Face((x0, y0, x1, y1), 0.9), Face((512 - x1, y0, 512 - x0, y1), 0.9)),), (256, 512))
    both = ForegroundMask.execute(image.movedim(1, -1), "grabcut", 0, 0, faces).result[0]
    parts = SplitPeopleMask.execute(image.movedim(1, -1), both, faces, 0).result[0]
    assert parts.shape == (2, 256, 512)
    assert torch.equal(parts, split_people(image, both, boxes_of(faces), MaskSettings(softness=0))[0])
    assert parts[0, :, :256].sum() > 0.9 * parts[0].sum() > 0.9 * 0.3 * both.sum()


def test_rough_masks_and_mask_operations(photo):
    image = photo.movedim(1, -1)
    rough = torch.zeros(1, 64, 64)
    rough[:, 6:30, 22:36], rough[:, 28:, 8:48] = 1, 1
    mask, report = ForegroundMask.execute(image[:1], "auto", 0, 2, mask=rough).result
    assert torch.equal(mask, refine_mask(photo[:1], rough)[:, 0])
    assert report.startswith("grabcut from the rough mask\n")
    for node, extra in ((ClothingMask, ("auto", 0, 2)), (FaceMask, (0, 2, True))):
        assert torch.equal(node.execute(image[:1], *extra, mask=rough).result[0], mask)
    soft = SoftenMask.execute(mask, image[:1], 4).result[0]
    assert soft.shape == mask.shape
    speckled = mask.clone()
    speckled[0, 2:4, 2:4] = 1
    cleaned = CleanMask.execute(speckled, 100, 0.1, 1).result[0]
    assert not cleaned[0, 2:4, 2:4].any()
    assert cleaned.sum() > 0.9 * mask.sum()
    assert 0 < MaskEdgeBand.execute(mask, 2, 3).result[0].mean() < 0.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image, faces: ForegroundMask.execute(image, "auto", 0, 2),
         "Foreground Mask: faces are needed for grabcut .no Mask R-CNN weights in .*: connect Detect Faces"),
        (lambda image, faces: ForegroundMask.execute(image, "mask r-cnn", 0, 2, faces),
         "Foreground Mask: the weights of Mask R-CNN are missing: put maskrcnn_resnet50_fpn_v2_coco"),
        (lambda image, faces: ForegroundMask.execute(image, "auto", 2, 2, faces), "no image has more than 1 faces"),
        (lambda image, faces: ForegroundMask.execute(image[:1], "auto", 0, 2, faces), "the faces are of 2 picture"),
        (lambda image, faces: ForegroundMask.execute(image, "mask r-cnn", 0, 2, mask=torch.ones(1, 256, 256)),
         "Foreground Mask: method is mask r-cnn, but a rough mask is connected, .*: set method to auto, or disconnect"),
        (lambda image, faces: ClothingMask.execute(image, "mask r-cnn", 2, 2, mask=torch.ones(1, 256, 256)),
         "is mask r-cnn and person is 2, but a rough mask .*: set method to auto and person to 0, or disconnect"),
        (lambda image, faces: FaceMask.execute(image, 2, 2, True, mask=torch.ones(1, 256, 256)),
         "Face Mask: person is 2, but a rough mask is connected, .*: set person to 0, or disconnect the mask"),
        (lambda image, faces: ClothingMask.execute(image, "auto", 0, 2), "Clothing Mask: faces are needed to tell"),
        (lambda image, faces: FaceMask.execute(image, 0, 2, True), "Face Mask: faces are needed to know where"),
        (lambda image, faces: CleanMask.execute(torch.full((1, 8, 8), 3.0), 1, 1, 0), "Clean Mask: mask has values"),
        (lambda image, faces: MaskEdgeBand.execute(torch.ones(1, 8, 8), 0, 0), "Mask Edge Band: inner is 0"),
    ],
)  # fmt: skip
def test_errors_name_the_node_and_the_mend(photo, faces, call, message):
    with pytest.raises(ValueError, match=message):
        call(photo.movedim(1, -1), faces)


def plain_nms(boxes, scores, threshold):
    """Non-maximum suppression by definition."""
    from torchvision.ops import box_iou

    kept = []
    for index in scores.argsort(descending=True).tolist():
        if all(box_iou(boxes[index][None], boxes[other][None]) <= threshold for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long)


@pytest.fixture
def rcnn_operators(monkeypatch):
    """Builds of torchvision that do not match torch have no operators; one in Python will do for tests."""
    boxes = pytest.importorskip("torchvision.ops.boxes")
    from torchvision import extension

    if not extension._has_ops():
        monkeypatch.setattr(boxes, "nms", plain_nms)
        monkeypatch.setattr(boxes, "_assert_has_ops", lambda: None)
    # Without operators torchvision compiles a stand-in, which takes a minute.
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("version", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_mask_rcnn_of_both_versions_runs_from_its_weights(version, photo, tmp_path, monkeypatch, rcnn_operators):
    """Random weights that call everything a person: what is tested is loading, and the way through the node."""
    from torchvision.models import detection

    torch.manual_seed(0)
    made = getattr(detection, version)(weights=None, weights_backbone=None)
    with torch.no_grad():
        made.roi_heads.box_predictor.cls_score.bias[1] += 20
        made.roi_heads.mask_predictor.mask_fcn_logits.bias += 5
    path = tmp_path / f"{version}.pth"
    torch.save({name: value.half() if value.is_floating_point() else value for name, value in
                made.state_dict().items()}, path)  # fmt: skip
    loaded = load_mask_rcnn(path)
    assert type(loaded.roi_heads.box_head) is type(made.roi_heads.box_head)
    weight = "backbone.fpn.inner_blocks.2.0.weight"
    assert torch.equal(loaded.state_dict()[weight], made.state_dict()[weight].half().float())

    def small(path):
        network = load_mask_rcnn(path)
        network.transform.min_size, network.rpn._post_nms_top_n = (96,), {"training": 20, "testing": 20}
        network.rpn._pre_nms_top_n = {"training": 40, "testing": 40}
        return network

    monkeypatch.setattr(person_masks, "rcnn_file", lambda: path)
    monkeypatch.setattr(person_masks, "load_mask_rcnn", small)
    mask, report = ForegroundMask.execute(photo[:1].movedim(1, -1), "auto", 0, 0).result
    assert report.startswith("mask r-cnn\n")
    assert mask.shape == (1, 256, 256)
    assert mask.max() == 1
    tensors = torch.load(path)
    del tensors["rpn.head.bbox_pred.bias"]
    torch.save(tensors, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="(?s)does not fit torchvision's.*rpn.head.bbox_pred.bias"):
        load_mask_rcnn(tmp_path / "cut.pth")


def test_masks_in_a_graph(server, photo, tmp_path):
    save_image(photo[0], tmp_path / "likeness_masks.png")
    server.upload_image(tmp_path / "likeness_masks.png")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "likeness_masks.png"}},
        "2": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 256, "height": 256}},
        "3": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 130, "height": 200}},
        "4": {"class_type": "MaskComposite", "inputs": {
            "destination": ["2", 0], "source": ["3", 0], "x": 50, "y": 40, "operation": "add"}},
        "5": {"class_type": "LikenessForegroundMask", "inputs": {
            "image": ["1", 0], "method": "auto", "person": 0, "softness": 2, "mask": ["4", 0]}},
        "6": {"class_type": "LikenessCleanMask", "inputs": {
            "mask": ["5", 0], "fill_holes": 100, "drop_specks": 0.1, "keep_piece": 1}},
        "7": {"class_type": "MaskToImage", "inputs": {"mask": ["6", 0]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "mask"}},
    }  # fmt: skip
    outputs = server.run(graph)
    assert outputs["5"]["text"][0].startswith("grabcut from the rough mask\nmask 1: ")
    png = server.fetch_image(**outputs["8"]["images"][0])
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("L")) / 255
    rough = torch.zeros(1, 256, 256)
    rough[:, 40:240, 50:180] = 1
    people = refine_mask(photo[:1], rough)[0, 0].numpy()
    assert np.abs(shown - people).mean() < 0.02
    del graph["5"]["inputs"]["mask"]
    with pytest.raises(ComfyRunError, match="Foreground Mask: .*connect Detect Faces, or a rough mask") as error:
        server.run(graph)
    assert error.value.node == "5"
