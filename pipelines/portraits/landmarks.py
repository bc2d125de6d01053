"""Points of the face in the picture, and whether they can be seen."""

from dataclasses import replace

import numpy as np
import torch

from .arrays import array, tensor
from .gbuffer import World
from .parts import Part
from .raycast import Caster
from .shapes import Bone
from .skin import expression_values, face_layout

# The first five are InsightFace's, in its order. Left and right are those of the picture.
LANDMARKS = (
    "left eye", "right eye", "nose", "left mouth corner", "right mouth corner", "left brow", "right brow", "chin",
    "upper lip", "lower lip", "left cheek", "right cheek",
)  # fmt: skip
UPRIGHT = Bone(np.eye(3), np.zeros(3))
VISIBLE_DEPTH = 0.10  # what lies this much before a point hides it, in head units


def _in_face(person) -> list[tuple[float, float]]:
    """The landmarks in the plane of the face, in head units."""
    layout, express = face_layout(person.identity), expression_values(person)
    x, y, mouth = layout["eye_x"], layout["eye_y"], layout["mouth_y"]
    wide, corner = layout["mouth_w"] * express["mouth_width"] * 0.98, 0.065 * express["smile"] + mouth
    brow, opened = y + 0.235 + 0.09 * express["raise"], express["mouth_open"]
    return [
        (-x, y), (x, y), (0, layout["nose_y"] + 0.02), (-wide, corner), (wide, corner), (-x, brow), (x, brow),
        (0, layout["chin_y"] + 0.06), (0, mouth + 0.05 + 0.075 * opened), (0, mouth - 0.07 - 0.235 * opened),
        (-0.42, -0.25), (0.42, -0.25),
    ]  # fmt: skip


def face_landmarks(world: World, depth: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [B, N, L, 2] as (x, y) and visibility [B, N, L]; ``depth`` is [B, 1, H, W]."""
    most = max(len(scene.people) for scene in world.scenes)
    shape = (len(world.scenes), most, len(LANDMARKS))
    points = torch.zeros(*shape, 2, device=depth.device)
    visible = torch.zeros(shape, dtype=torch.bool, device=depth.device)
    for piece in world.pieces:
        if piece.group.part == Part.FACE and piece.group.name == "head":
            _of_one(world, piece, depth, height, width, points, visible)
    return points, visible


def _of_one(world, piece, depth, height, width, points, visible):
    who, present = piece.person, piece.scenes.tolist()
    faces = array([_in_face(world.scenes[number].people[who]) for number in present], world.device)
    upright = Caster([replace(group, bone=UPRIGHT) for group in piece.groups], world.device)
    places = tensor(piece.caster.to_world(upright.front(faces[..., 0], faces[..., 1])))
    for number, at in zip(present, places, strict=True):
        camera = world.scenes[number].camera
        scale = height / (2 * camera.half_height)
        x = (at[0] - camera.x) * scale + width / 2
        y = (camera.y - at[1]) * scale + height / 2
        column, row = x.long().clamp(0, width - 1), y.long().clamp(0, height - 1)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        points[number, who] = torch.stack([x, y], 1)
        visible[number, who] = inside & (at[2] > depth[number, 0, row, column] - VISIBLE_DEPTH)
