"""Everything that a camera ray finds, before any light: the geometry buffer."""

from dataclasses import dataclass

import numpy as np

from . import face_paint
from . import surface as surfaces
from .arrays import Array, array, clip, filled, matmul, put, rows_of, space, take, unit
from .iuv import chart
from .raycast import MISS, Caster
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

    scenes: np.ndarray
    caster: Caster
    colors: Array
    texture: dict[str, Array]
    person: int
    groups: list[Group]

    @property
    def group(self) -> Group:
        """One of the groups, for what they have in common."""
        return self.groups[0]


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
                    if not scene.camera.sees(*group.box, aspect):
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

    def trace(self, x: Array, y: Array, tolerance: float) -> Array:
        """What rays through world positions ``x``, ``y`` [B, R] meet first: [B, COUNT, R], see ``CHANNELS``."""
        found = filled((x.shape[0], COUNT, x.shape[1]), 0, self.device)
        found[:, CHANNELS["depth"]] = MISS
        for number, piece in enumerate(self.pieces):
            mine = found if len(piece.scenes) == len(self.scenes) else found[piece.scenes]
            self._trace_piece(mine, piece, number, x[piece.scenes], y[piece.scenes], tolerance)
            if mine is not found:
                found[piece.scenes] = mine
        return found

    def _trace_piece(self, found, piece, number, x, y, tolerance):
        hits = piece.caster.cast(x, y, found[:, -1], tolerance)
        if hits is None:
            return
        nearer = hits.hit & (hits.depth > take(found[:, -1], hits.index))
        keep = rows_of(nearer)
        if not keep.shape[1]:
            return
        index, nearer, point, depth, gradient, weights = (
            take(values, keep)
            for values in (hits.index, nearer, hits.point, hits.depth, hits.sample.gradient, hits.sample.weights)
        )
        new = self._describe(piece, number, point, gradient, weights) + [depth[:, None]]
        xp = space(x)
        put(found, index, xp.where(nearer[:, None], xp.concatenate(new, 1), take(found, index)))

    def _describe(self, piece, number, point, gradient, weights) -> list[Array]:
        """All channels but the depth."""
        albedo = matmul(piece.colors, weights)
        made = MATERIALS[piece.group.material](point, unit(gradient), albedo, piece.group.part, piece.texture)
        facts = [piece.person + 1, piece.group.costume, number + 1]
        facts = [filled((len(point), 1, point.shape[2]), float(fact), self.device) for fact in facts]
        return [
            clip(made.albedo, 0, 1), piece.caster.normal_to_world(made.normal), made.reflect,
            chart(piece.group.iuv, point), made.part[:, None], *facts,
        ]  # fmt: skip


def _foremost(members: dict[int, Group]) -> float:
    return max(group.box[1][2] for group in members.values())


def _piece(members: dict[int, Group], person: int, device) -> Piece:
    groups = list(members.values())
    count = max(len(group.shapes) for group in groups)
    colors = [[shape.color for shape in group.shapes] for group in groups]
    colors = array([row + [(0.0, 0.0, 0.0)] * (count - len(row)) for row in colors], device).swapaxes(1, 2)
    texture = {}
    for key in groups[0].texture:
        values = array([group.texture[key] for group in groups], device)
        texture[key] = values[:, None] if values.ndim == 1 else values[..., None]
    return Piece(np.array(list(members)), Caster(groups, device), colors, texture, person, groups)
