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
from .shapes import Group, boxes
from .skeleton import person_groups

MATERIALS = {
    "head": face_paint.head, "hair": surfaces.hair, "cloth": surfaces.cloth, "wool": surfaces.wool,
    "felt": surfaces.felt, "metal": surfaces.metal, "glossy": surfaces.glossy, "petal": surfaces.petal,
    "bare": surfaces.bare,
}  # fmt: skip
# What light needs comes first; the rest is truth, which only the rays of pixel centres ask for.
CHANNELS = {
    "albedo": slice(0, 3), "normal": slice(3, 6), "reflect": slice(6, 10), "piece": slice(10, 11),
    "depth": slice(11, 12), "iuv": slice(12, 15), "part": slice(15, 16), "person": slice(16, 17),
    "costume": slice(17, 18), "tilt": slice(18, 20),
}  # fmt: skip
FACING, PIECE, DEPTH, PART, LIT, COUNT = 5, 10, 11, 15, 12, 20
HERE = 4  # the pixel itself among the nine around it


@dataclass
class Nearby:
    """What is known of R rays that run close to pixel centres: all they can meet is what is seen around these.

    around: [B, 9, R], pieces seen there; same: bool [B, R], whether the ray meets the pixel's piece for certain;
    depth: [B, R], about where.
    """

    around: Array
    same: Array
    depth: Array


@dataclass
class Piece:
    """One group of those scenes of a batch that have it (``scenes``: [S]), with what its material needs."""

    scenes: Array
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
        rows: dict[tuple, dict[int, tuple[Group, np.ndarray]]] = {}
        inside: list[list[Group]] = []
        for number, scene in enumerate(scenes):
            found = [
                (who, group)
                for who, (person, place) in enumerate(zip(scene.people, scene.places, strict=True))
                for group in person_groups(person, place)
            ]
            corners = boxes([group for _, group in found])
            seen = [scene.camera.sees(*box, aspect) for box in corners]
            inside.append([group for (_, group), shows in zip(found, seen, strict=True) if shows])
            for (who, group), box, shows in zip(found, corners, seen, strict=True):
                if shows:
                    rows.setdefault((who, *_likeness(group)), {})[number] = (group, box)
        # Faces, then what is in front, come first: rays behind them, or through a hood's window, need not be walked.
        front = sorted(rows.items(), key=lambda row: (row[0][1] != "head", -_foremost(row[1])))
        self.pieces = [_piece(members, key[0], device) for key, members in front]
        self.occluders = Occluders(inside, device)

    def trace(self, x: Array, y: Array, tolerance: float) -> Array:
        """What rays through world positions ``x``, ``y`` [B, R] meet first: [B, COUNT, R], see ``CHANNELS``."""
        return self._trace(x, y, tolerance, None, COUNT)

    def trace_nearby(self, x: Array, y: Array, tolerance: float, nearby: Nearby) -> Array:
        """The same for rays close to traced ones, as far as light needs it: [B, LIT, R]."""
        return self._trace(x, y, tolerance, nearby, LIT)

    def _trace(self, x, y, tolerance, nearby, channels):
        found = filled((x.shape[0], channels, x.shape[1]), 0, self.device)
        found[:, DEPTH] = MISS
        for number, piece in enumerate(self.pieces):
            some, mine = piece.scenes, found
            rays = [x, y] + ([] if nearby is None else [nearby.around, nearby.same, nearby.depth])
            if len(some) < len(self.scenes):
                mine, *rays = (values[some] for values in (found, *rays))
            hits = self._hits(mine, piece, number, tolerance, *rays)
            if hits is not None:
                self._write(mine, piece, number, hits)
            if mine is not found:
                found[some] = mine
        return found

    def _hits(self, found, piece, number, tolerance, x, y, around=None, same=None, depth=None):
        if around is None:
            return piece.caster.cast(x, y, found[:, DEPTH], tolerance)
        here = around == number + 1
        cast = piece.caster.cast(x, y, found[:, DEPTH], tolerance, here.any(1) & ~same)
        touched = piece.caster.touch(x, y, depth, same & here[:, HERE])
        return cast.joined(touched) if cast and touched else cast or touched

    def _write(self, found, piece, number, hits):
        xp = space(found)
        nearer = hits.hit & (hits.depth > take(found[:, DEPTH], hits.index))
        keep = rows_of(nearer)
        if not keep.shape[1]:
            return
        index, nearer, point, depth, gradient, weights = (
            take(values, keep)
            for values in (hits.index, nearer, hits.point, hits.depth, hits.sample.gradient, hits.sample.weights)
        )
        new = self._describe(piece, number, point, gradient, weights, depth, found.shape[1] > LIT)
        if len(found) > 1:
            new = xp.where(nearer[:, None], new, take(found, index))
        put(found, index, new)

    def _describe(self, piece, number, point, gradient, weights, depth, truth):
        def constant(value):
            return filled((len(point), 1, point.shape[2]), float(value), self.device)

        made = MATERIALS[piece.group.material](
            point, unit(gradient), matmul(piece.colors, weights), piece.group.part, piece.texture
        )
        new = [clip(made.albedo, 0, 1), piece.caster.normal_to_world(made.normal), made.reflect, constant(number + 1)]
        new.append(depth[:, None])
        if truth:
            up = matmul(piece.caster.turn, gradient)
            new += [chart(piece.group.iuv, point), made.part[:, None]]
            new += [constant(piece.person + 1), constant(piece.group.costume), up[:, :2] / -clip(up[:, 2:], 1e-3)]
        return space(point).concatenate(new, 1)


def _likeness(group: Group) -> tuple:
    """Only groups that are painted alike can share a piece; a batch may mix costumes and hair."""
    kind = (group.name, group.material, group.melt, int(group.part), group.costume, group.mirrored)
    return (*kind, bool(group.carves), bool(group.bumps))


def _foremost(members: dict[int, tuple[Group, np.ndarray]]) -> float:
    return max(box[1][2] for _, box in members.values())


def _piece(members: dict[int, tuple[Group, np.ndarray]], person: int, device) -> Piece:
    groups, corners = zip(*members.values(), strict=True)
    count = max(len(group.shapes) for group in groups)
    colors = [[shape.color for shape in group.shapes] for group in groups]
    colors = array([row + [(0.0, 0.0, 0.0)] * (count - len(row)) for row in colors], device).swapaxes(1, 2)
    texture = {}
    for key in groups[0].texture:
        values = array([group.texture[key] for group in groups], device)
        texture[key] = values[:, None] if values.ndim == 1 else values[..., None]
    caster = Caster(list(groups), device, np.array(corners))
    return Piece(array(list(members), device, np.int64), caster, colors, texture, person, list(groups))
