"""Masks of people, of their faces and of their clothes."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import torch
from comfy_api.latest import io, ui

from ..pipelines.masks import (
    MaskSettings,
    RcnnSettings,
    clothing_masks,
    face_masks,
    foreground_masks,
    ignore_below,
    load_mask_rcnn,
    rcnn_masks,
    refine_mask,
    split_people,
)
from ..pipelines.weights.manifest import destination, find, named
from .convert import compute_device, named_errors, node_progress, to_pipeline
from .weights import models_folders, weights_in_place

RCNN_WEIGHTS = ("mask-rcnn-v2/detector", "mask-rcnn-v1/detector")
METHODS = ("auto", "mask r-cnn", "grabcut")
MANY_PEOPLE = 20  # whose masks memory is asked for

FACES = io.Custom("LIKENESS_FACES").Input(
    "faces", optional=True,
    tooltip="The faces from Detect Faces, of this image. Persons are numbered as they are.",
)  # fmt: skip
IMAGE = io.Image.Input("image", tooltip="The picture, or a batch; any size.")
METHOD = io.Combo.Input(
    "method", options=list(METHODS),
    tooltip="How people are found. mask r-cnn: torchvision's network, which needs its weights. grabcut: by colours, "
    "from the faces; needs no weights. auto: mask r-cnn where its weights are, else grabcut; the report says which.",
)
PERSON = io.Int.Input(
    "person", default=0, min=0, max=999,
    tooltip="0: everybody. 1: the first of the faces, 2: the second; without faces, people by size.",
)  # fmt: skip
SOFTNESS = io.Int.Input(
    "softness", default=2, min=0, max=64,
    tooltip="How soft edges may become where the picture is soft, in pixels; 0 makes them hard.",
)  # fmt: skip
TOLERANCE = io.Float.Input(
    "tolerance", default=0.15, min=0.01, max=1.0, step=0.01, optional=True, advanced=True,
    tooltip="How far a rough mask may be off, as a share of the side of a square of its area.",
)  # fmt: skip


def rough(of: str):
    """The input for a rough mask of ``of``."""
    return io.Mask.Input(
        "mask", optional=True,
        tooltip=f"A rough mask of {of}, from any node or drawn by hand: it is brought to the contour, and nothing else "
        "is searched for.",
    )  # fmt: skip


def outputs(what: str) -> list:
    return [
        io.Mask.Output(display_name="mask", tooltip=f"{what}, 0 to 1, at the size of the image."),
        io.String.Output(display_name="report", tooltip="Which method ran, and how much of each image is covered."),
    ]


class ForegroundMask(io.ComfyNode):
    """People before their background."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessForegroundMask",
            display_name="Foreground Mask",
            category="Likeness/mask",
            description="The mask of the people in a picture, of all or of one: by Mask R-CNN where its weights are, "
            "by GrabCut from detected faces, or from a rough mask.",
            search_aliases=["person mask", "segment person", "remove background", "grabcut", "mask rcnn", "matting"],
            inputs=[
                IMAGE, METHOD, PERSON, SOFTNESS, FACES, rough("the people"), TOLERANCE,
                io.Float.Input(
                    "minimum_score", default=0.7, min=0.05, max=1.0, step=0.05, optional=True, advanced=True,
                    tooltip="Mask R-CNN: how sure it must be that something is a person.",
                ),
                io.Boolean.Input(
                    "keep_scores", default=False, optional=True, advanced=True,
                    tooltip="Mask R-CNN: keep its soft scores as mask, instead of everything from 0.5 on.",
                ),
            ],
            outputs=outputs("The people"),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return weights_in_place(*RCNN_WEIGHTS)  # "auto" means another method once they are there

    @classmethod
    def execute(
        cls, image, method, person, softness, faces=None, mask=None, tolerance=0.15, minimum_score=0.7,
        keep_scores=False,
    ) -> io.NodeOutput:  # fmt: skip
        picture, settings = to_pipeline(image), MaskSettings(softness=softness)
        with named_errors("Foreground Mask"):
            if mask is not None:
                return refined(picture, mask, person, settings, tolerance, method)
            rcnn = RcnnSettings(minimum_score, None if keep_scores else 0.5, softness)
            return answer(*find_people(picture, method, person, settings, rcnn, faces))


class ClothingMask(io.ComfyNode):
    """What people wear below the chin."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessClothingMask",
            display_name="Clothing Mask",
            category="Likeness/mask",
            description="The mask of what people wear: the people without head, hair and neck, told apart by their "
            "colours. Hats count as part of the head.",
            search_aliases=["clothes mask", "garment mask", "outfit", "dress", "segment clothes"],
            inputs=[
                IMAGE, METHOD, PERSON, SOFTNESS, FACES, rough("the clothes"), TOLERANCE,
                io.Mask.Input(
                    "foreground", optional=True,
                    tooltip="The mask of the people, if you have a good one; otherwise they are found by the method.",
                ),
            ],
            outputs=outputs("The clothes"),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return weights_in_place(*RCNN_WEIGHTS)  # "auto" means another method once they are there

    @classmethod
    def execute(
        cls, image, method, person, softness, faces=None, mask=None, tolerance=0.15, foreground=None
    ) -> io.NodeOutput:  # fmt: skip
        picture, settings = to_pipeline(image), MaskSettings(softness=softness)
        with named_errors("Clothing Mask"):
            if mask is not None:
                return refined(picture, mask, person, settings, tolerance, method)
            boxes, _ = read_faces(faces, picture, "to tell heads from clothes")
            how = "people: the connected foreground"
            if foreground is None:
                rcnn = RcnnSettings(softness=softness)
                foreground, how = find_people(picture, method, person, settings, rcnn, faces)
            chosen = person - 1 if person else None
            masks = clothing_masks(picture, boxes, foreground, chosen, settings, node_progress())
            return answer(masks, f"{how}; clothes: grabcut")


class FaceMask(io.ComfyNode):
    """Faces without hair and ears."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessFaceMask",
            display_name="Face Mask",
            category="Likeness/mask",
            description="The mask of faces: skin, eyes, mouth and beard, neither hair nor ears. An ellipse in the box "
            "of each detected face, tilted as its eyes are, refined by colours.",
            search_aliases=["segment face", "facial mask", "skin mask", "inpaint face"],
            inputs=[
                IMAGE, PERSON, SOFTNESS,
                io.Boolean.Input(
                    "by_color", default=True,
                    tooltip="Refine the ellipse by the colours of skin and hair. Off: the ellipse itself. A rough mask "
                    "is always refined.",
                ),
                FACES, rough("the face"), TOLERANCE,
            ],
            outputs=outputs("The faces"),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, image, person, softness, by_color, faces=None, mask=None, tolerance=0.15
    ) -> io.NodeOutput:  # fmt: skip
        picture, settings = to_pipeline(image), MaskSettings(softness=softness)
        with named_errors("Face Mask"):
            if mask is not None:
                return refined(picture, mask, person, settings, tolerance)
            boxes, landmarks = read_faces(faces, picture, "to know where they are")
            chosen = person - 1 if person else None
            steps = node_progress()
            masks = face_masks(picture, boxes, landmarks, chosen, settings, by_color, steps)
            return answer(masks, "ellipse in the face box" + (", refined by grabcut" if by_color else ""))


class SplitPeopleMask(io.ComfyNode):
    """One mask of several people, as one mask a person."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LikenessSplitPeopleMask",
            display_name="Split People Mask",
            category="Likeness/mask",
            description="Splits a mask of several people by their faces and colours: a batch with one mask for each "
            "face. The parts add up to the mask.",
            search_aliases=["separate people", "instances", "mask per person"],
            inputs=[
                IMAGE, io.Mask.Input("mask", tooltip="All the people, for example from Foreground Mask."),
                io.Custom("LIKENESS_FACES").Input("faces", tooltip="The faces from Detect Faces, of this image."),
                SOFTNESS,
            ],
            outputs=outputs("One mask for each face, those of the first image first"),
        )  # fmt: skip

    @classmethod
    def execute(cls, image, mask, faces, softness) -> io.NodeOutput:
        picture = to_pipeline(image)
        with named_errors("Split People Mask"):
            boxes, _ = read_faces(faces, picture, "to split people by")
            parts = split_people(picture, mask, boxes, MaskSettings(softness=softness))
        return answer(torch.cat(parts)[:, None], "split by nearness to the faces, and grabcut between them")


def read_faces(faces, picture: torch.Tensor, purpose: str) -> tuple[list[torch.Tensor], list]:
    """Boxes [N, 4] and landmarks ([5, 2] each) of every picture, from LIKENESS_FACES."""
    if faces is None:
        raise ValueError(f"faces are needed {purpose}: connect Detect Faces, or a rough mask.")
    faces.check_pictures(picture)
    boxes = [torch.tensor([face.box for face in own]).reshape(-1, 4) for own in faces.images]
    return boxes, [[face.with_landmarks().landmarks for face in own] for own in faces.images]


def find_people(picture, method: str, person: int, settings: MaskSettings, rcnn: RcnnSettings, faces):
    """(masks [B, 1, H, W], which method ran) by a method of ``METHODS``; ``person`` counts from 1, 0 is all."""
    chosen, path = person - 1 if person else None, rcnn_file()
    installed = importlib.util.find_spec("torchvision") is not None
    steps = node_progress()
    if method == "mask r-cnn" or (method == "auto" and path and installed):
        boxes = None if faces is None else read_faces(faces, picture, "")[0]
        network = managed_rcnn(path, rcnn.minimum_score, tuple(picture.shape[-2:]))
        return rcnn_masks(network, picture.cpu(), boxes, chosen, rcnn, steps), "mask r-cnn"
    missing = f"no Mask R-CNN weights in {rcnn_folder()}" if path is None else "torchvision is not installed"
    why = f" ({missing})" if method == "auto" else ""
    boxes, _ = read_faces(faces, picture, f"for grabcut{why}")
    return foreground_masks(picture, boxes, chosen, settings, steps), f"grabcut from the faces{why}"


def rcnn_file() -> Path | None:
    """The weights of Mask R-CNN in ComfyUI's models folders, the better version first."""
    for name in RCNN_WEIGHTS:
        weight = named(name)
        if paths := find(weight, models_folders(weight.folder)):
            return paths[0]
    return None


def rcnn_folder() -> str:
    return str(destination(named(RCNN_WEIGHTS[0]), Path("models")))


def managed_rcnn(path: Path | None, minimum_score: float, size: tuple[int, int]) -> Callable:
    """The network on ComfyUI's device, under its memory management: takes pictures of ``size`` (H, W) from the CPU, one
    at a time, and gives what it finds from about ``minimum_score`` on back to it.
    """
    if path is None:
        name = named(RCNN_WEIGHTS[0]).save_as
        raise ValueError(
            f"the weights of Mask R-CNN are missing: put {name} into {rcnn_folder()} (the Weights node gets it), or "
            "choose grabcut."
        )
    offload = comfy.model_management.unet_offload_device()
    device, network = compute_device(), ignore_below(load_mask_rcnn(path), minimum_score)
    patcher = comfy.model_patcher.ModelPatcher(network, device, offload)
    planes = 2 * MANY_PEOPLE * 4 * size[0] * size[1]
    comfy.model_management.load_models_gpu([patcher], memory_required=planes, force_full_load=True)
    network.to(device)  # --novram loads nothing, and torchvision's layers do not fetch their weights

    def find(pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        found = network([picture.to(device) for picture in pictures])
        return [{name: value.cpu() for name, value in each.items()} for each in found]

    return find


def refined(
    picture, mask, person: int, settings: MaskSettings, tolerance: float, method: str = "auto"
) -> io.NodeOutput:
    """The answer from a rough mask."""
    # name, value and the value that leaves it to the mask, of what asks for something else
    against = [("method", method, "auto")] if method == "mask r-cnn" else []
    against += [("person", person, 0)] if person else []
    if against:
        raise ValueError(
            f"{' and '.join(f'{name} is {value}' for name, value, _ in against)}, but a rough mask is connected, which "
            f"says itself what is meant: set {' and '.join(f'{name} to {value}' for name, _, value in against)}, or "
            "disconnect the mask."
        )
    masks = refine_mask(picture, mask, settings, tolerance, node_progress())
    return answer(masks, "grabcut from the rough mask")


def answer(masks: torch.Tensor, how: str) -> io.NodeOutput:
    """Masks [B, 1, H, W] as MASK, with a report."""
    shares = masks.mean((1, 2, 3)).tolist()
    lines = [
        f"mask {number}: " + (f"{share:.1%} of the picture" if share else "empty, nobody was found")
        for number, share in enumerate(shares, 1)
    ]
    report = "\n".join([how, *lines])
    masks = masks[:, 0].to(comfy.model_management.intermediate_device())
    return io.NodeOutput(masks, report, ui=ui.PreviewText(report))
