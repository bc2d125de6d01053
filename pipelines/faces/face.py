"""What is known of faces: one face, the faces of a batch of pictures, and the identity that embeddings stand for."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

# The points in the face's box, as parts of its width and height: a frontal face between hairline and chin.
POINTS_IN_BOX = ((0.25, 0.345), (0.75, 0.345), (0.5, 0.55), (0.29, 0.695), (0.71, 0.695))


@dataclass(frozen=True, eq=False)
class Face:
    """One face in a picture.

    box: (x0, y0, x1, y1) in pixels, between hairline and chin; landmarks: [5, 2] in pixels (x, y), left eye, right
    eye, nose, left and right corner of the mouth as the picture shows them, or None; landmarks_estimated: they come
    from the box and no detector has seen them; score: 0..1, how sure the detector is (not a probability, and not
    comparable between detectors); embedding: unit vector [D] or None; turn: by how many degrees the head leans
    clockwise, where landmarks are estimated; length: of the embedder's own vector, before it became a unit vector
    (InstantID reads that one).
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: Tensor | None = None
    landmarks_estimated: bool = False
    embedding: Tensor | None = None
    turn: float = 0.0
    length: float = 1.0

    def __post_init__(self):
        x0, y0, x1, y1 = self.box
        if not (x1 > x0 and y1 > y0 and max(map(abs, self.box)) < float("inf")):
            raise ValueError(f"the box of a face is {self.box}: it must be (left, top, right, bottom) in pixels.")
        if self.landmarks is not None and (self.landmarks.shape != (5, 2) or not self.landmarks.isfinite().all()):
            raise ValueError(f"landmarks of a face are {self.landmarks.tolist()}: five finite points are needed.")
        if self.landmarks is not None and self.landmarks.std(0).max() < 1e-3:
            raise ValueError(f"the landmarks of a face all lie at {self.landmarks[0].tolist()}: it has no size.")

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def with_landmarks(self) -> "Face":
        """The face itself where it has landmarks, else one with landmarks estimated from its box and turn."""
        if self.landmarks is not None:
            return self
        size = torch.tensor([self.width, self.height])
        around = (torch.tensor(POINTS_IN_BOX) - 0.5) * size
        angle = torch.deg2rad(torch.tensor(self.turn))
        turned = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        points = around @ turned.T + torch.tensor(self.centre)
        return replace(self, landmarks=points, landmarks_estimated=True)

    def embedded(self, vector) -> "Face":
        """The face with its embedding, D numbers; ``ValueError`` where they are all zero, NaN or infinite."""
        vector = torch.as_tensor(vector).detach().float().cpu().flatten()
        length = float(vector.norm())
        if not 0 < length < float("inf"):
            raise ValueError(f"the embedder gave a vector of length {length}: get its weights again.")
        return replace(self, embedding=normalize(vector, dim=0), length=length)


CROP_MODES = ("aligned", "box")


@dataclass(frozen=True)
class CropSettings:
    """How faces are cut out: ``aligned`` turns each until its landmarks fit the template of face embedders, ``box``
    leaves it upright; margin is what is added on every side, as a part of the template's or box's side."""

    size: int = 224
    mode: str = "aligned"
    margin: float = 0.0

    def __post_init__(self):
        if self.mode not in CROP_MODES:
            raise ValueError(f"mode of a face crop is {self.mode!r}: choose aligned or box.")
        if self.size < 8 or not 0 <= self.margin <= 10:
            raise ValueError(f"a face crop of {self.size} pixels with margin {self.margin:g}: use 8 or more, 0..10.")


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of a batch of pictures.

    images: for each picture its faces, in order; size: (H, W) of the pictures in pixels; embedder: name of what made
    the embeddings, None where there are none; licence: what the embedder may be used for; crop: how the crops that
    belong to these faces were cut, None where there are none.
    """

    images: tuple[tuple[Face, ...], ...]
    size: tuple[int, int]
    embedder: str | None = None
    licence: str = ""
    crop: CropSettings | None = None

    @property
    def count(self) -> int:
        return sum(map(len, self.images))

    def cropped(self, crop: CropSettings) -> "Faces":
        """The same faces, saying how they are cut out."""
        return replace(self, crop=crop)

    def flat(self) -> list[tuple[int, Face]]:
        """(number of the picture, face) for every face."""
        return [(number, face) for number, faces in enumerate(self.images) for face in faces]

    def check_pictures(self, pictures: Tensor) -> None:
        """Raise ``ValueError`` unless pictures [B, C, H, W] are as many and as large as those the faces are of."""
        size = tuple(pictures.shape[-2:])
        if size != tuple(self.size) or len(pictures) != len(self.images):
            raise ValueError(
                f"the faces are of {len(self.images)} picture(s) of {self.size[1]}x{self.size[0]}, the image is "
                f"{len(pictures)} of {size[1]}x{size[0]}: connect the image that the faces were detected in."
            )

    def table(self) -> str:
        """Every face as a line of text."""
        lines = []
        for number, faces in enumerate(self.images, 1):
            lines.append(f"picture {number}: {_count_text(len(faces))}")
            lines += [f"  {index}: {_face_text(face)}" for index, face in enumerate(faces)]
        return "\n".join(lines)


def _count_text(count: int) -> str:
    return "no face" if count == 0 else "1 face" if count == 1 else f"{count} faces"


def _face_text(face: Face) -> str:
    x0, y0, x1, y1 = (round(value) for value in face.box)
    points = "none" if face.landmarks is None else "estimated" if face.landmarks_estimated else "found"
    known = "no embedding" if face.embedding is None else f"embedding of {len(face.embedding)} numbers"
    return f"box {x0}, {y0} to {x1}, {y1}; score {face.score:.2f}; landmarks {points}; {known}"


@dataclass(frozen=True, eq=False)
class Identity:
    """Who somebody is: embeddings [N, D] of N pictures, which become unit vectors here, and what made them.

    Raises ``ValueError`` for embeddings that are none, not finite, or zero.
    """

    embeddings: Tensor
    embedder: str
    licence: str = ""

    def __post_init__(self):
        rows = self.embeddings
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(f"embeddings of an identity are {tuple(rows.shape)}: [N, D] with N and D of 1 or more.")
        rows = rows.detach().float().cpu()
        if not rows.isfinite().all() or not (rows.norm(dim=1) > 0).all():
            raise ValueError("an embedding of the identity is zero, NaN or infinite: detect and embed the face again.")
        object.__setattr__(self, "embeddings", normalize(rows, dim=1))

    def mean(self) -> Tensor:
        """Unit vector [D] in the middle. Raises ``ValueError`` where embeddings cancel out."""
        mean = self.embeddings.mean(0)
        if mean.norm() < 1e-4:
            raise ValueError(f"the {len(self.embeddings)} embeddings cancel out: they are of different people.")
        return normalize(mean, dim=0)

    def averaged(self) -> "Identity":
        return replace(self, embeddings=self.mean()[None])

    def joined(self, other: "Identity") -> "Identity":
        """Both together. Raises ``ValueError`` for two embedders."""
        check_same_embedder(self.embedder, other.embedder)
        return replace(self, embeddings=torch.cat([self.embeddings, other.embeddings]))

    def report(self) -> str:
        """Count, embedder, licence, and how alike the embeddings are, as text."""
        count = len(self.embeddings)
        made = f"{count} embedding{'s' if count > 1 else ''} of {self.embedder}"
        lines = [made, f"licence: {self.licence or 'not said'}"]
        if count > 1:
            cosines = self.embeddings @ self.mean()
            lines.append(f"cosine with their mean: {float(cosines.min()):.3f} to {float(cosines.max()):.3f}")
        return "\n".join(lines)

    def similarity(self, embedding: Tensor, embedder: str) -> float:
        """Cosine between the mean and ``embedding`` [D] made by ``embedder``; ``ValueError`` for another embedder."""
        check_same_embedder(self.embedder, embedder)
        return float(self.mean() @ normalize(embedding.float().cpu(), dim=0))


def check_same_embedder(one: str | None, other: str | None) -> None:
    """Raise ``ValueError`` naming both unless they are the same: each embedder has a space of its own."""
    if one != other:
        raise ValueError(
            f"embeddings of {one or 'no embedder'} cannot be mixed with those of {other or 'no embedder'}: "
            "detect both with the same backend."
        )


def identity_of(faces: list[Face], embedder: str | None, licence: str = "") -> Identity:
    """The identity that ``faces`` show. Raises ``ValueError`` where there is no face, or one without embedding."""
    if not faces:
        raise ValueError("no face to take an identity from: lower min_score, or connect a picture that shows a face.")
    if embedder is None or any(face.embedding is None for face in faces):
        raise ValueError("the faces have no embeddings: switch embeddings on where they are detected.")
    return Identity(torch.stack([face.embedding for face in faces]), embedder, licence)
