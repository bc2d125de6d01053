"""Ellipsoids and capsules, and the groups in which they melt into one surface.

A shape is an affine map from its bone's space to a space where it is a unit sphere, or a unit sphere swept along y. So
one small piece of algebra serves eyes, noses, hair and arms alike.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

Vector = tuple[float, float, float]


def rotation(yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
    """Turn matrix [3, 3], angles in degrees: positive yaw looks to +x, positive pitch up, positive roll to +x."""
    (cy, sy), (cp, sp), (cr, sr) = (
        (math.cos(math.radians(angle)), math.sin(math.radians(angle))) for angle in (yaw, -pitch, -roll)
    )
    around_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    around_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    around_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return around_y @ around_x @ around_z


@dataclass(frozen=True)
class Bone:
    """Where a rigid piece of the body is: world = turn @ local + origin."""

    turn: np.ndarray
    origin: np.ndarray

    def to_world(self, point) -> np.ndarray:
        return self.turn @ np.asarray(point, float) + self.origin

    def to_local(self, point) -> np.ndarray:
        return self.turn.T @ (np.asarray(point, float) - self.origin)


@dataclass(frozen=True)
class Shape:
    """``matrix @ p + offset`` maps a point into the unit space; ``sweep`` is half the swept axis' length there."""

    matrix: np.ndarray
    offset: np.ndarray
    sweep: float
    color: Vector


def ellipsoid(center: Vector, radii: Vector, color: Vector = (0, 0, 0), turn: np.ndarray | None = None) -> Shape:
    """An ellipsoid with these radii along its own axes, turned by ``turn``."""
    axes = np.eye(3) if turn is None else turn.T
    matrix = axes / np.asarray(radii, float)[:, None]
    return Shape(matrix, -matrix @ np.asarray(center, float), 0.0, color)


def capsule(start, end, radius: float, color: Vector = (0, 0, 0), depth: float | None = None) -> Shape:
    """A round rod between two points; ``depth`` is its radius towards the camera where it is not round."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    length = float(np.linalg.norm(end - start))
    along = (end - start) / length
    x, y, z = along
    side = np.array((y, -x, 0.0) if abs(z) < 0.9 else (0.0, z, -y))
    side /= np.linalg.norm(side)
    u, v, w = side
    axes = np.array([side, along, (v * z - w * y, w * x - u * z, u * y - v * x)])
    matrix = axes / np.array([radius, radius, depth or radius])[:, None]
    return Shape(matrix, -matrix @ (start + end) / 2, length / 2 / radius, color)


@dataclass
class Group:
    """Shapes on one bone that melt into one surface.

    melt: width in head units over which they blend; bumps: (shape, height) Gaussian reliefs that are added to the
    surface; carves: shapes that are cut away, with edges rounded by ``carve_melt``; texture: numbers for the material;
    mirrored: the shapes are those of the side x > 0 and of the middle, the other side is like it; shadow: the first so
    many shapes cast shadows, enough to tell the form.
    """

    name: str
    bone: Bone
    material: str
    part: int
    shapes: list[Shape]
    melt: float = 0.01
    bumps: list[tuple[Shape, float]] = field(default_factory=list)
    carves: list[Shape] = field(default_factory=list)
    carve_melt: float = 0.03
    texture: dict[str, float] = field(default_factory=dict)
    iuv: str = "torso"
    costume: bool = False
    mirrored: bool = False
    shadow: int = 4

    @cached_property
    def box(self) -> np.ndarray:
        """Lowest and highest corner [2, 3] of a box around the group in the world, with room for blending."""
        inverse = np.linalg.inv(np.stack([shape.matrix for shape in self.shapes]))
        sweep = np.array([shape.sweep for shape in self.shapes])
        centers = -np.einsum("pij,pj->pi", inverse, np.stack([shape.offset for shape in self.shapes]))
        halves = np.sqrt((inverse**2).sum(2)) + sweep[:, None] * np.abs(inverse[:, :, 1])
        if self.mirrored:
            centers, halves = np.concatenate([centers, centers * (-1, 1, 1)]), np.concatenate([halves, halves])
        centers, halves = centers @ self.bone.turn.T + self.bone.origin, halves @ np.abs(self.bone.turn).T
        room = self.melt
        return np.stack([(centers - halves).min(0) - room, (centers + halves).max(0) + room])
