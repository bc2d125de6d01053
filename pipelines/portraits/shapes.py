"""Ellipsoids and capsules, and the groups in which they melt into one surface.

A shape is an affine map from its bone's space to a space where it is a unit sphere, or a unit sphere swept along y. So
one small piece of algebra serves eyes, noses, hair and arms alike.
"""

import math
from dataclasses import dataclass, field

import numpy as np

Vector = tuple[float, float, float]
AXES = np.eye(3)


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
    axes = AXES if turn is None else turn.T
    matrix = axes / np.array([[radius] for radius in radii])
    return Shape(matrix, -matrix @ np.array(center, float), 0.0, color)


def capsule(start, end, radius: float, color: Vector = (0, 0, 0), depth: float | None = None) -> Shape:
    """A round rod between two points; ``depth`` is its radius towards the camera where it is not round."""
    way = [float(to - at) for at, to in zip(start, end, strict=True)]
    length = math.hypot(*way)
    x, y, z = along = [part / length for part in way]
    u, v, w = (y, -x, 0.0) if abs(z) < 0.9 else (0.0, z, -y)
    wide = math.hypot(u, v, w)
    u, v, w = side = (u / wide, v / wide, w / wide)
    axes = np.array([side, along, (v * z - w * y, w * x - u * z, u * y - v * x)])
    matrix = axes / np.array([[radius], [radius], [depth or radius]])
    middle = np.array([(at + to) / 2 for at, to in zip(start, end, strict=True)])
    return Shape(matrix, -matrix @ middle, length / 2 / radius, color)


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


@dataclass(frozen=True)
class Stack:
    """N shapes as arrays: matrix [N, 3, 3], offset [N, 3], sweep [N]."""

    matrix: np.ndarray
    offset: np.ndarray
    sweep: np.ndarray

    @staticmethod
    def of(shapes: list[Shape]) -> "Stack":
        """The shapes in their order."""
        numbers = np.array([shape.matrix for shape in shapes]), np.array([shape.offset for shape in shapes])
        return Stack(*numbers, np.array([shape.sweep for shape in shapes]))


def boxes(groups: list[Group]) -> np.ndarray:
    """Lowest and highest corners [G, 2, 3] of boxes around groups in the world, with room for blending."""
    counts = [len(group.shapes) for group in groups]
    stack = Stack.of([shape for group in groups for shape in group.shapes])
    turn = np.repeat([group.bone.turn for group in groups], counts, 0)
    inverse = np.linalg.inv(stack.matrix)
    centers = -(inverse @ stack.offset[..., None])[..., 0]
    halves = np.sqrt((inverse**2).sum(2)) + stack.sweep[:, None] * np.abs(inverse[:, :, 1])
    halves = (np.abs(turn) @ halves[..., None])[..., 0]
    other = centers * np.repeat([(-1 if group.mirrored else 1, 1, 1) for group in groups], counts, 0)
    centers, other = ((turn @ middle[..., None])[..., 0] for middle in (centers, other))
    first = np.cumsum([0, *counts[:-1]])
    low = np.minimum.reduceat(np.minimum(centers, other) - halves, first)
    high = np.maximum.reduceat(np.maximum(centers, other) + halves, first)
    origin, room = np.array([group.bone.origin for group in groups]), np.array([[group.melt] for group in groups])
    return np.stack([low + origin - room, high + origin + room], 1)
