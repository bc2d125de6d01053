"""Training the embedded face embedder with an angular margin (Deng et al. 2019, ArcFace, equation 3)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, mse_loss, normalize

from ..configuration import option
from ..faces import align_faces
from ..metrics.verification import pair_similarities, verification_accuracy
from ..portraits import LANDMARKS, Identity
from ..portraits.sampling import sample_identity
from ..training.task import BatchRandom, Example, Validation
from .architectures import FACE_SIZE, build, face_convnext, seeded
from .components import TRANSFORMERS, plain_config, save_component
from .portrait_set import DataSettings, PortraitSet, PortraitTask, batches, without_prefix

FIVE = LANDMARKS[:5]


@dataclass(frozen=True)
class FaceEmbedderSettings(DataSettings):
    """Face embedder: data and margin."""

    margin: float = option(0.3, "angle added between a face and its own class, in radians", minimum=0, maximum=1)
    margin_warmup: int = option(600, "steps in which the margin and the weight of its loss grow from 0: from scratch, "
                                "full ones teach nothing", minimum=0)  # fmt: skip
    scale: float = option(16.0, "factor on the cosines", minimum=1)
    traits: float = option(20.0, "weight of the error in telling a person's parameters, which are known here: a few "
                           "pictures of each of thousands teach little else at first", minimum=0)  # fmt: skip
    jitter: float = option(0.01, "landmarks are moved by about this part of the picture", minimum=0)


class FaceClassifier(nn.Module):
    """The embedder, a direction for each person it is trained with, and what tells a person's traits."""

    def __init__(self, embedder, people: int, traits: int):
        super().__init__()
        self.embedder = embedder
        width = embedder.config.hidden_sizes[-1]
        # Small, because only their directions count: the optimiser's steps have to be able to turn them.
        self.people = nn.Parameter(0.01 * torch.randn(people, width))
        self.tell = nn.Linear(width, traits)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Of aligned faces [B, 3, 64, 64] in -1..1: cosines [B, people] with the people, and traits [B, T]."""
        vectors = embed(self.embedder, faces)
        with torch.autocast(faces.device.type, enabled=False):
            return linear(vectors, normalize(self.people, dim=1)), self.tell(math.sqrt(vectors.shape[1]) * vectors)


def traits_of(identities: list[Identity]) -> Tensor:
    """The parameters of people as numbers [people, T]: each trait of mean 0 and variance 1, a choice one of each."""
    rows = []
    for identity in identities:
        row = []
        for entry in fields(Identity):
            value = getattr(identity, entry.name)
            if "low" in entry.metadata:
                row.append(value)
            elif "choices" in entry.metadata:
                row += [float(value == choice) for choice in entry.metadata["choices"]]
            elif "color" in entry.metadata:
                row += value
        rows.append(row)
    found = torch.tensor(rows, dtype=torch.float64)
    deviation = found.std(0, correction=0)
    return ((found - found.mean(0)) / deviation)[:, deviation > 0].float()


def embed(embedder, faces: Tensor) -> Tensor:
    """Unit vectors [B, D] of aligned faces [B, 3, 64, 64] in -1..1."""
    return normalize(embedder(faces).pooler_output.float(), dim=1)


def with_margin(cosines: Tensor, labels: Tensor, margin: float) -> Tensor:
    """cos(angle + margin) in place of each face's cosine with its own class; labels [B].

    Beyond an angle of pi - margin, where that would rise again, the straight line cos(angle) - margin sin(margin), as
    in the authors' code.
    """
    own = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    sine = (1 - own.square()).sqrt()
    moved = own * math.cos(margin) - sine * math.sin(margin)
    moved = torch.where(own > -math.cos(margin), moved, own - margin * math.sin(margin))
    return cosines.scatter(1, labels[:, None], moved)


class TrainFaceEmbedder(PortraitTask):
    """The task; see ``training.task.Task`` for what each method is for."""

    name = "embedded-face-embedder"
    Settings = FaceEmbedderSettings
    summary = "the embedded model's face embedder (ArcFace), from a data set of portraits"

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        labels = sorted({truth["label"] for truth in self.portraits.truth})
        self.classes = {label: number for number, label in enumerate(labels)}
        embedder = build(face_convnext, seed=self.seed)
        self.traits = traits_of([sample_identity(self.portraits.population, label) for label in labels]).to(device)
        with seeded(self.seed, "people"):
            return FaceClassifier(embedder, *self.traits.shape).to(device)

    def sample(self, example: Example, load: Callable, draw: torch.Generator) -> dict[str, Tensor]:
        truth, picture = self.portraits.truth[example.payload], self.portraits.picture(example.payload)
        points = landmarks_of(truth)
        points = points + self.settings.jitter * picture.shape[-1] * torch.randn(points.shape, generator=draw)
        face = align_faces(picture[None], points[None], FACE_SIZE)[0]
        return {"face": face, "label": torch.tensor(self.classes[truth["label"]])}

    def losses(self, network: nn.Module, batch: dict[str, Tensor], random: BatchRandom) -> dict[str, Tensor]:
        grown = min(1.0, random.step / max(self.settings.margin_warmup, 1))
        cosines, told = network(batch["face"])
        known = self.traits[batch["label"]]
        cosines = with_margin(cosines, batch["label"], grown * self.settings.margin)
        return {
            "arcface": grown * cross_entropy(self.settings.scale * cosines, batch["label"]),
            "traits": self.settings.traits * mse_loss(told, known),
        }

    def validate(
        self, network: nn.Module, steps: int | None, seed: int, check_stop: Callable[..., None]
    ) -> Validation:
        label_of = [truth["label"] for truth in self.held_out.truth]
        # By person, so that a few pictures already hold pairs of the same one.
        chosen = sorted(range(len(label_of)), key=label_of.__getitem__)[: 1000 if steps is None else 32]
        vectors = embeddings_of(network.embedder, self.held_out, chosen, check_stop)
        labels = torch.tensor([label_of[index] for index in chosen])
        same, different = pair_similarities(vectors, labels)
        return Validation({}, {"verification": verification_accuracy(same, different)})

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        tensors = without_prefix(weights, "embedder.")
        save_component(folder / "face_embedder", TRANSFORMERS, plain_config(face_convnext()), tensors, facts)


def landmarks_of(truth: dict) -> Tensor:
    """The five landmarks [5, 2] in pixels."""
    return torch.tensor([truth["landmarks"][name] for name in FIVE])


def embeddings_of(embedder, portraits: PortraitSet, indices, check_stop: Callable[..., None] = lambda: None) -> Tensor:
    """Unit vectors [N, D] of the faces of these portraits."""
    device, vectors = next(embedder.parameters()).device, []
    for chosen in batches(len(indices), 64):
        check_stop()
        numbers = [indices[place] for place in chosen]
        points = torch.stack([landmarks_of(portraits.truth[index]) for index in numbers])
        faces = align_faces(portraits.pictures(numbers), points, FACE_SIZE)
        vectors.append(embed(embedder, faces.to(device)).cpu())
    return torch.cat(vectors)
