"""A picture and the complete truth about it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from .antialias import Rays, antialias, arriving, picture
from .arrays import array, as_float, like, space, tensor
from .backgrounds import background
from .captions import caption
from .gbuffer import CHANNELS, World
from .landmarks import face_landmarks
from .parameters import Person
from .parts import FACE_PARTS, Part
from .scene import Scene, scene_of
from .shading import LightRig

EXPRESSIVE = ("head", "beard")  # the groups that an expression changes
PER_PERSON = ("landmarks", "visible", "face_box", "label")


@dataclass
class Render:
    """B pictures of H x W pixels with N people at most. Everything but ``image`` and ``alpha`` is of pixel centres.

    image: [B, 3, H, W] in 0..1 (sRGB); alpha: [B, 1, H, W], share of the pixel that people cover; part: int
    [B, 1, H, W], values of ``Part``; person: int [B, 1, H, W], 0 for the background, else 1..N; depth: [B, 1, H, W] in
    head units towards the camera, ``MISS`` where there is nothing; normal: [B, 3, H, W] of the world; albedo:
    [B, 3, H, W] linear; iuv: [B, 3, H, W], part 0..24, U and V in 0..1; costume, expression: bool [B, 1, H, W], the
    region that a change of costume or expression may touch in this picture; landmarks: [B, N, L, 2] in pixels (x, y)
    as named in ``LANDMARKS``; visible: bool [B, N, L]; face_box: [B, N, 4] in pixels (x0, y0, x1, y1), zeros without
    a face; label: int [B, N], -1 for nobody; caption: B texts.
    """

    image: torch.Tensor
    alpha: torch.Tensor
    part: torch.Tensor
    person: torch.Tensor
    depth: torch.Tensor
    normal: torch.Tensor
    albedo: torch.Tensor
    iuv: torch.Tensor
    costume: torch.Tensor
    expression: torch.Tensor
    landmarks: torch.Tensor
    visible: torch.Tensor
    face_box: torch.Tensor
    label: torch.Tensor
    caption: list[str]

    def mask(self, *parts: Part) -> torch.Tensor:
        """Where one of ``parts`` is seen: float [B, 1, H, W]."""
        return sum((self.part == int(part)) for part in parts).clamp(max=1).float()


@torch.no_grad()
def render(
    people: Person | Scene | Sequence[Person | Scene], size: int | tuple[int, int] = 128, device="cpu"
) -> Render:
    """Render people or scenes at ``size`` (side, or height and width) in pixels, at least 16.

    On a CPU the pictures are made one by one, which is as fast there and makes each bit for bit independent of the
    others; on other devices all at once. On another platform, or with numba instead of without, float32 rounds
    differently in the last bits, so a picture may differ there by a grey level, and by more in the few pixels where a
    ray just meets an edge.
    """
    scenes = [_scene(item) for item in ([people] if isinstance(people, (Person, Scene)) else people)]
    height, width = (size, size) if isinstance(size, int) else size
    if not scenes or min(height, width) < 16:
        raise ValueError(f"{len(scenes)} scenes at {width}x{height}: give at least one, and at least 16 pixels a side.")
    device = torch.device(device)
    if device.type != "cpu":
        return _render(scenes, height, width, device)
    if len(scenes) == 1:
        return _render(scenes, height, width, None)
    return _gather((_render([scene], height, width, None) for scene in scenes), scenes)


def _scene(item: Person | Scene) -> Scene:
    return scene_of(item) if isinstance(item, Person) else item


def _gather(pictures: Iterable[Render], scenes: list[Scene]) -> Render:
    """One ``Render`` of all ``pictures``, each copied to its place as soon as it is made."""
    gathered, most = {"caption": []}, max(len(scene.people) for scene in scenes)
    for number, made in enumerate(pictures):
        gathered["caption"] += made.caption
        for entry in fields(Render):
            value = getattr(made, entry.name)
            if entry.name == "caption":
                continue
            if number == 0:
                shape = (most, *value.shape[2:]) if entry.name in PER_PERSON else value.shape[1:]
                gathered[entry.name] = value.new_full((len(scenes), *shape), -1 if entry.name == "label" else 0)
            gathered[entry.name][number, : value.shape[1]] = value[0]
    return Render(**gathered)


def _render(scenes: list[Scene], height: int, width: int, device: torch.device | None) -> Render:
    """Scenes at once with torch on ``device``, or one scene with numpy where that is ``None``."""
    world = World(scenes, device, width / height)
    rig = LightRig([scene.lighting for scene in scenes], device)
    pixel = array([[2 * scene.camera.half_height / height] for scene in scenes], device)
    x, y = _pixel_centers(scenes, height, width, pixel)
    tolerance = 0.35 * float(pixel.min())
    behind = space(x).stack([background(scene.background, height, width, device) for scene in scenes])
    rays = Rays(x, y, world.trace(x, y, tolerance), behind.reshape(len(scenes), 3, -1))
    rays.arrives = arriving(world, rig, rays, rays.hit())
    image = picture(rig, rays).reshape(len(scenes), 3, height, width)
    alpha = as_float(rays.hit()).reshape(len(scenes), 1, height, width)
    antialias(world, rig, image, alpha, rays, pixel, tolerance)
    return _truth(world, *(tensor(values) for values in (rays.found, image, alpha)), height, width)


def _pixel_centers(scenes, height, width, pixel):
    row = like(np.arange(height) + 0.5 - height / 2, pixel)[:, None] + like(np.zeros(width), pixel)
    column = like(np.arange(width) + 0.5 - width / 2, pixel)[None] + like(np.zeros((height, 1)), pixel)
    middle = like([[scene.camera.x, scene.camera.y] for scene in scenes], pixel)
    return middle[:, :1] + column.reshape(-1) * pixel, middle[:, 1:] - row.reshape(-1) * pixel


def _truth(world, found, image, alpha, height, width) -> Render:
    def grid(values):
        return values.unflatten(2, (height, width))

    maps = {name: grid(found[:, channels]) for name, channels in CHANNELS.items()}
    part, person = maps["part"].int(), maps["person"].int()
    landmarks, visible = face_landmarks(world, maps["depth"], height, width)
    head = torch.zeros_like(part, dtype=torch.bool)
    for number, piece in enumerate(world.pieces):
        if piece.group.name in EXPRESSIVE:
            head |= maps["piece"] == number + 1
    most = max(len(scene.people) for scene in world.scenes)
    labels = [[person.identity.label for person in scene.people] for scene in world.scenes]
    return Render(
        image=image.clamp(0, 1), alpha=alpha, part=part, person=person, depth=maps["depth"],
        normal=maps["normal"], albedo=maps["albedo"], iuv=maps["iuv"], costume=maps["costume"] > 0, expression=head,
        landmarks=landmarks, visible=visible, face_box=_face_boxes(part, person, most),
        label=torch.tensor([row + [-1] * (most - len(row)) for row in labels], device=part.device),
        caption=[caption(scene) for scene in world.scenes],
    )  # fmt: skip


def _face_boxes(part, person, most) -> torch.Tensor:
    """Boxes [B, most, 4] around the visible faces."""
    face = torch.zeros_like(part, dtype=torch.bool)
    for value in (*FACE_PARTS, Part.BEARD):
        face |= part == int(value)
    boxes = torch.zeros(part.shape[0], most, 4, device=part.device)
    for scene in range(part.shape[0]):
        for who in range(most):
            rows, columns = (face[scene, 0] & (person[scene, 0] == who + 1)).nonzero(as_tuple=True)
            if len(rows):
                values = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                boxes[scene, who] = torch.stack(values).float()
    return boxes
