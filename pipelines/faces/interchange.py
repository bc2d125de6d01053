"""Faces that other programs found: bounding boxes and the 478 points of MediaPipe's face mesh, in ComfyUI's form."""

import math

import torch

from .face import Face

# Both irises' centres, the tip of the nose and the corners of the mouth, of the left of the picture first
# (MediaPipe counts from the person's right).
MESH_POINTS = (468, 473, 1, 61, 291)
MESH_SIZE = 478


def faces_from_boxes(boxes, pictures: int) -> list[list[Face]]:
    """Faces of ComfyUI's BOUNDING_BOX: one dict x, y, width, height; a list of them; or one list for each picture.

    Boxes are in pixels and between hairline and chin, ``score`` is 1 where they carry none. One dict or one list is
    taken for every picture. Raises ``ValueError`` for anything else.
    """
    frames = boxes if isinstance(boxes, list) else [boxes]
    frames = frames if frames and all(isinstance(frame, list) for frame in frames) else [frames]
    frames = frames * pictures if len(frames) == 1 else frames
    if len(frames) != pictures:
        raise ValueError(f"bounding boxes are of {len(frames)} pictures, the image is a batch of {pictures}.")
    return [[_face_of_box(box) for box in frame] for frame in frames]


def _face_of_box(box) -> Face:
    try:
        x, y, width, height = (float(box[key]) for key in ("x", "y", "width", "height"))
        score = float(box.get("score", 1.0))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ValueError(f"a bounding box is {box!r}: it needs the numbers x, y, width and height.") from None
    if not (width > 0 and height > 0 and math.isfinite(x + y + width + height)):
        raise ValueError(f"a bounding box is {width:g}x{height:g} at {x:g}, {y:g}: it must not be empty.")
    return Face((x, y, x + width, y + height), min(max(score, 0.0), 1.0))


def faces_from_landmarks(value, size: tuple[int, int], pictures: int) -> list[list[Face]]:
    """Faces of ComfyUI's FACE_LANDMARKS for pictures of ``size`` (H, W).

    Raises ``ValueError`` for another form, and for landmarks of other pictures.
    """
    try:
        frames, of_size = value["frames"], tuple(int(side) for side in value["image_size"])
    except (TypeError, KeyError, ValueError):
        raise ValueError("face landmarks are in no form of ComfyUI's: connect Detect Face Landmarks.") from None
    if of_size != tuple(size) or len(frames) != pictures:
        raise ValueError(
            f"face landmarks are of {len(frames)} picture(s) of {of_size[1]}x{of_size[0]}, the image is {pictures} of "
            f"{size[1]}x{size[0]}: connect the image that they were detected in."
        )
    return [[_face_of_mesh(face) for face in frame] for frame in frames]


def _face_of_mesh(face: dict) -> Face:
    try:
        points, score = torch.as_tensor(face["landmarks_xy"]).float(), float(face["score"])
        box = tuple(float(value) for value in face["bbox_xyxy"])
    except (TypeError, KeyError, ValueError):
        raise ValueError("face landmarks are in no form of ComfyUI's: connect Detect Face Landmarks.") from None
    if len(points) < MESH_SIZE:
        raise ValueError(f"a face has {len(points)} landmarks: the {MESH_SIZE} of MediaPipe with irises are needed.")
    return Face(box, min(max(score, 0.0), 1.0), points[list(MESH_POINTS)])
