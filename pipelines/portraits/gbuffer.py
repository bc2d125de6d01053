"""Everything that a camera ray finds, before any light: the geometry buffer."""

from dataclasses import dataclass

import torch

from . import face_paint
from . import surface as surfaces
from .iuv import chart
from .raycast import MISS, Caster, rows_of, take, unit
from .scene import Scene
from .shadows import Occluders
from .shapes import Group
from .skeleton import Skeleton, person_groups

MATERIALS = {
    "head": face_paint.head, "hair": surfaces.hair, "cloth": surfaces.cloth, "wool": surfaces.wool,
    "felt": surfaces.felt, "metal": surfaces.metal, "glossy": surfaces.glossy, "petal": surfaces.petal,
    "bare": surfaces.bare,
}  # fmt: skip
CHANNELS = {
    "albedo": slice(0, 3), "normal": slice(3, 6), "reflect": slice(6, 10), "iuv": slice(10, 13), "part": slice(13, 14),
    "person": slice(14, 15), "costume": slice(15, 16), "piece": slice(16, 17), "depth": slice(17, 18),
}  # fmt: skip
COUNT = 18


@dataclass
class Piece:
    """One group of those scenes of a batch that have it (``scenes``: [S]), with what its material needs."""

    scenes: torch.Tensor
    caster: Caster
    colors: torch.Tensor
    texture: dict[str, torch.Tensor]
    person: int
    group: Group


class World:
    """A batch of scenes ready for rays; ``aspect`` is the width of the picture over its height."""

    def __init__(self, scenes: list[Scene], device, aspect: float = 1.0):
        self.device, self.scenes = device, scenes
        self.skeletons: list[list[Skeleton]] = []
        rows: dict[tuple, dict[int, Group]] = {}
        inside: list[list[Group]] = [[] for _ in scenes]
        for number, scene in enumerate(scenes):
            self.skeletons.append([])
            for who, (person, place) in enumerate(zip(scene.people, scene.places, strict=True)):
                groups, bones = person_groups(person, place)
                self.skeletons[-1].append(bones)
                for group in groups:
                    if not scene.camera.sees(*group.bounds(), aspect):
                        continue
                    inside[number].append(group)
                    # Only groups that are painted alike can share a piece; a batch may mix costumes and hair.
                    key = (
                        who,
                        group.name,
                        group.material,
                        group.melt,
                        int(group.part),
                        group.costume,
                        group.mirrored,
                        bool(group.carves),
                        bool(group.bumps),
                    )
                    rows.setdefault(key, {})[number] = group
        # Faces, then what is in front, come first: rays behind them, or through a hood's window, need not be walked.
        front = sorted(rows.items(), key=lambda row: (row[0][1] != "head", -_foremost(row[1])))
        self.pieces = [_piece(groups, key[0], device) for key, groups in front]
        self.occluders = Occluders(inside, device)

    def trace(self, x: torch.Tensor, y: torch.Tensor, tolerance: float) -> torch.Tensor:
        """What rays through world positions ``x``, ``y`` [B, R] meet first: [B, COUNT, R], see ``CHANNELS``."""
        found = torch.zeros(x.shape[0], COUNT, x.shape[1], device=self.device)
        found[:, CHANNELS["depth"]] = MISS
        for number, piece in enumerate(self.pieces):
            self._trace_piece(found, piece, number, x, y, tolerance)
        return found

    def _trace_piece(self, found, piece, number, x, y, tolerance):
        rows = piece.scenes[:, None]
        depth = found[piece.scenes, -1]
        hits = piece.caster.cast(x[piece.scenes], y[piece.scenes], depth, tolerance)
        if hits is None:
            return
        nearer = hits.hit & (hits.depth > take(depth, hits.index))
        keep = rows_of(nearer)
        if not keep.shape[1]:
            return
        index, nearer, point = take(hits.index, keep), take(nearer, keep), take(hits.point, keep)
        new = self._describe(piece, number, point, take(hits.sample.gradient, keep), take(hits.sample.weights, keep))
        new.append(take(hits.depth, keep)[:, None])
        seen = torch.where(nearer[:, None], torch.cat(new, 1), found[rows, :, index].transpose(1, 2))
        found[rows, :, index] = seen.transpose(1, 2)

    def _describe(self, piece, number, point, gradient, weights) -> list[torch.Tensor]:
        """All channels but the depth."""
        normal = unit(gradient)
        albedo = torch.bmm(piece.colors, weights)
        made = MATERIALS[piece.group.material](point, normal, albedo, piece.group.part, piece.texture)
        facts = point.new_tensor([float(piece.person + 1), float(piece.group.costume), float(number + 1)])
        constants = facts[None, :, None].expand(len(point), 3, point.shape[2])
        return [
            made.albedo.clamp(0, 1), piece.caster.normal_to_world(made.normal), made.reflect,
            chart(piece.group.iuv, point), made.part[:, None].float(), constants,
        ]  # fmt: skip


def _foremost(members: dict[int, Group]) -> float:
    return max(group.bounds()[1][2] for group in members.values())


def _piece(members: dict[int, Group], person: int, device) -> Piece:
    groups = list(members.values())
    count = max(len(group.shapes) for group in groups)
    colors = [[shape.color for shape in group.shapes] for group in groups]
    colors = [row + [(0.0, 0.0, 0.0)] * (count - len(row)) for row in colors]
    texture = {}
    for key in groups[0].texture:
        values = torch.tensor([group.texture[key] for group in groups], dtype=torch.float32, device=device)
        texture[key] = values[:, None] if values.ndim == 1 else values[..., None]
    colors = torch.tensor(colors, dtype=torch.float32, device=device).transpose(1, 2)
    scenes = torch.tensor(list(members), device=device)
    return Piece(scenes, Caster(groups, device), colors, texture, person, groups[0])
