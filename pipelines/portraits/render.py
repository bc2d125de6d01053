"""A picture and the complete truth about it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from .arrays import Array, array, as_float, like, put, rows_of, space, take, tensor
from .backgrounds import background
from .captions import caption
from .gbuffer import CHANNELS, World
from .landmarks import face_landmarks
from .parameters import Person
from .parts import FACE_PARTS, Part
from .raycast import MISS
from .scene import Scene, scene_of
from .shading import LightRig, film, radiance

# Where the four extra rays of a pixel at an edge go, in pixels from its middle.
EDGE_SAMPLES = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
EXPRESSIVE = ("head", "beard")  # the groups that an expression changes
ALBEDO_EDGE, DEPTH_EDGE, NORMAL_EDGE = 0.45, 0.15, 0.6


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
    others; on other devices all at once. On another platform float32 rounds differently in the last bits, so a picture
    may differ there by a grey level, and by more in the few pixels where a ray just meets an edge.
    """
    scenes = [_scene(item) for item in ([people] if isinstance(people, (Person, Scene)) else people)]
    height, width = (size, size) if isinstance(size, int) else size
    if not scenes or min(height, width) < 16:
        raise ValueError(f"{len(scenes)} scenes at {width}x{height}: give at least one, and at least 16 pixels a side.")
    device = torch.device(device)
    if device.type == "cpu":
        batches = [_render([scene], height, width, None) for scene in scenes]
    else:
        batches = [_render(scenes, height, width, device)]
    return batches[0] if len(batches) == 1 else _join(batches)


def _scene(item: Person | Scene) -> Scene:
    return scene_of(item) if isinstance(item, Person) else item


def _join(batches: list[Render]) -> Render:
    joined = {}
    most = max(batch.label.shape[1] for batch in batches)
    for entry in fields(Render):
        values = [getattr(batch, entry.name) for batch in batches]
        if entry.name in ("landmarks", "visible", "face_box", "label"):
            fill = -1 if entry.name == "label" else 0
            values = [_pad_people(value, most, fill) for value in values]
        joined[entry.name] = sum(values, []) if entry.name == "caption" else torch.cat(values)
    return Render(**joined)


def _pad_people(value: torch.Tensor, count: int, fill) -> torch.Tensor:
    missing = value.new_full((value.shape[0], count - value.shape[1], *value.shape[2:]), fill)
    return torch.cat([value, missing], 1)


def _render(scenes: list[Scene], height: int, width: int, device: torch.device | None) -> Render:
    """Scenes at once with torch on ``device``, or one scene with numpy where that is ``None``."""
    world = World(scenes, device, width / height)
    rig = LightRig([scene.lighting for scene in scenes], device)
    pixel = array([[2 * scene.camera.half_height / height] for scene in scenes], device)
    x, y = _pixel_centers(scenes, height, width, pixel)
    tolerance = 0.35 * float(pixel.min())
    centers = world.trace(x, y, tolerance)
    xp = space(x)
    behind = xp.stack([background(scene.background, height, width, device) for scene in scenes])
    behind = behind.reshape(len(scenes), 3, -1)
    image = film(_light(world, rig, centers, x, y, behind))
    alpha = as_float(centers[:, -1:] > MISS)
    edge = rows_of(_edges(centers, height, width))
    if edge.shape[1]:
        _antialias(world, rig, image, alpha, edge, x, y, pixel, tolerance, behind)
    return _truth(world, *(tensor(values) for values in (centers, image, alpha)), height, width)


def _pixel_centers(scenes, height, width, pixel):
    row = like(np.arange(height) + 0.5 - height / 2, pixel)[:, None] + like(np.zeros(width), pixel)
    column = like(np.arange(width) + 0.5 - width / 2, pixel)[None] + like(np.zeros((height, 1)), pixel)
    middle = like([[scene.camera.x, scene.camera.y] for scene in scenes], pixel)
    return middle[:, :1] + column.reshape(-1) * pixel, middle[:, 1:] - row.reshape(-1) * pixel


def _light(world, rig, found, x, y, behind):
    """Linear light [B, 3, R]: surfaces where there are some, else the background."""
    xp, seen = space(x), found[:, -1] > MISS
    index = rows_of(seen)
    if not index.shape[1]:
        return behind
    near = take(found, index)
    point = xp.stack([take(x, index), take(y, index), near[:, -1]], 1)
    albedo, normal, reflect = (near[:, CHANNELS[name]] for name in ("albedo", "normal", "reflect"))
    visible = rig.shadows(world.occluders, point)
    lit = radiance(rig, visible, point, normal, albedo, reflect) * rig.exposure
    lit = xp.where(take(seen, index)[:, None], lit, take(behind, index))
    light = behind + 0
    put(light, index, lit)
    return light


def _edges(found, height, width) -> Array:
    """Pixels [B, R] beside which something else is seen."""
    grid = found.reshape(*found.shape[:2], height, width)
    albedo, what = grid[:, :3].sum(1), grid[:, 13] + 64 * grid[:, 16]
    facing, depth = grid[:, 5], grid[:, 17]
    edge = what < 0
    for here, there in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :, 1:], np.s_[:, :, :-1])):
        differs = what[here] != what[there]
        for values, limit in ((albedo, ALBEDO_EDGE), (depth, DEPTH_EDGE), (facing, NORMAL_EDGE)):
            differs |= abs(values[here] - values[there]) > limit
        edge[here] |= differs
        edge[there] |= differs
    return edge.reshape(len(edge), -1)


def _antialias(world, rig, image, alpha, edge, x, y, pixel, tolerance, behind):
    """Average four more rays into every pixel at an edge, as the eye would: after the film."""
    xp, shifts, count = space(x), like(EDGE_SAMPLES, x), len(EDGE_SAMPLES)
    at_x, at_y = (
        (take(values, edge)[:, None] + shifts[:, axis, None] * pixel[..., None]).reshape(len(x), -1)
        for axis, values in enumerate((x, y))
    )
    found = world.trace(at_x, at_y, tolerance)
    light = film(_light(world, rig, found, at_x, at_y, xp.concatenate([take(behind, edge)] * count, 2)))
    put(image, edge, light.reshape(*light.shape[:2], count, -1).mean(2))
    put(alpha, edge, as_float(found[:, -1:] > MISS).reshape(len(x), 1, count, -1).mean(2))


def _truth(world, found, image, alpha, height, width) -> Render:
    def grid(values):
        return values.unflatten(2, (height, width))

    maps = {name: grid(found[:, channels]) for name, channels in CHANNELS.items()}
    part, person = maps["part"].int(), maps["person"].int()
    landmarks, visible = face_landmarks(world, maps["depth"], height, width)
    moving = [number + 1.0 for number, piece in enumerate(world.pieces) if piece.group.name in EXPRESSIVE]
    head = torch.isin(maps["piece"], torch.tensor(moving, device=part.device))
    most = max(len(scene.people) for scene in world.scenes)
    labels = [[person.identity.label for person in scene.people] for scene in world.scenes]
    return Render(
        image=grid(image).clamp(0, 1), alpha=grid(alpha), part=part, person=person, depth=maps["depth"],
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
