"""Scores of two folders as wholes: how their features and faces are distributed."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..metrics import (
    ClassSimilarity,
    Projection,
    class_similarities,
    density_coverage,
    frechet_distance,
    kernel_distance,
    kernel_inception_distance,
    pair_similarities,
    tsne_divergence,
    verify,
)
from ..randomness import generator
from .folders import Comparison, Seen, Step, people_of

SUBSETS = 50  # of KID
SUBSET_SIZE = 1000  # of KID
PERPLEXITY = 30.0
PROJECTED = 2000  # samples of each folder in the t-SNE map, at most: its time grows faster than their number
# What is better, by how the score's name begins; the others have no better.
BETTER = {
    "Fréchet": "lower", "MMD": "lower", "KID": "lower", "density": "higher", "coverage": "higher",
    "same person": "higher", "different people": "lower", "verification accuracy": "higher", "Jensen": "lower",
}  # fmt: skip


@dataclass
class SetScores:
    """values: by name; absent: reason by name; warnings; similarities: same person and different people by folder;
    projection: both folders in one t-SNE map."""

    values: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    similarities: dict[str, tuple[ClassSimilarity, ClassSimilarity]] = field(default_factory=dict)
    projection: Projection | None = None
    projected: str = ""


def score_sets(found: Comparison, features: str, embedder: str | None, on_step: Step) -> SetScores:
    """All scores of the two folders. ``features``, ``embedder``: names of what made features and face embeddings.

    ``on_step(what, done, total)`` may raise to stop. What cannot be given is absent with its reason.
    """
    scores = SetScores()
    made, real = (_features(seen) for seen in (found.made, found.real))
    _distributions(scores, made, real, features, on_step)
    projected = (made, real, f"{features} features")
    if embedder is None:
        for name in ("identity similarity", "verification"):
            scores.absent[name] = "no face embedder was chosen."
    else:
        for which, seen in (("folder", found.made), ("reference", found.real)):
            _identities(scores, which, seen, on_step)
        faces = [_faces(seen)[0] for seen in (found.made, found.real)]
        if min(map(len, faces)) > 1:
            projected = (*faces, f"faces ({embedder})")
    _project(scores, *projected)
    return scores


def _try(scores: SetScores, name: str, measure: Callable[[], object]) -> object | None:
    try:
        value = measure()
    except (ValueError, ImportError) as reason:
        scores.absent[name] = str(reason)
        return None
    if isinstance(value, float):
        scores.values[name] = value
    return value


def _distributions(scores: SetScores, made: Tensor, real: Tensor, features: str, on_step: Step) -> None:
    _try(scores, f"Fréchet distance ({features})", lambda: frechet_distance(made, real))
    width, count = real.shape[-1], min(len(made), len(real))
    if count <= width:
        scores.warnings.append(
            f"{count} pictures, {width} features: with no more pictures than features the Fréchet distance comes out "
            "too large; compare it only with values of equally many pictures."
        )
    _try(scores, f"MMD ({features})", lambda: kernel_distance(made, real))
    # Of the whole of a smaller set KID would be the MMD again.
    name = f"KID ({features}, {SUBSETS} subsets of {SUBSET_SIZE})"
    kid = _try(scores, name, lambda: kernel_inception_distance(
        made, real, SUBSETS, SUBSET_SIZE, on_step=lambda done, total: on_step("KID", done, total)))  # fmt: skip
    if kid is not None:
        scores.values[name] = kid.mean
    found = _try(scores, f"density and coverage ({features})", lambda: density_coverage(
        real, made, on_step=lambda done, total: on_step("density and coverage", done, total)))  # fmt: skip
    if found is not None:
        scores.values |= {f"density ({features})": found.density, f"coverage ({features})": found.coverage}


def _identities(scores: SetScores, which: str, seen: dict[str, Seen], on_step: Step) -> None:
    vectors, kept = _faces(seen)
    people = people_of(seen)
    lost = len(seen) - len(vectors)
    if lost:
        scores.warnings.append(f"no face was found in {lost} of {len(seen)} pictures of the {which}.")
    if people is None or not len(vectors):
        reason = "no face was found" if not len(vectors) else "people are told by subfolders, one each, and it has none"
        scores.absent[f"identity similarity of the {which}"] = f"{reason}."
        return
    people = people[kept]
    similarities = _try(scores, f"identity similarity of the {which}", lambda: class_similarities(
        vectors, people, lambda done, total: on_step("identities", done, total)))  # fmt: skip
    if similarities is None:
        return
    scores.similarities[which] = similarities
    same, different = similarities
    scores.values |= {
        f"same person, mean cosine ({which})": same.mean, f"different people, mean cosine ({which})": different.mean,
    }  # fmt: skip
    name = f"verification accuracy ({which})"
    found = _try(scores, name, lambda: verify(*pair_similarities(vectors, people)))
    if found is not None:
        scores.values |= {name: found.accuracy, f"verification, standard error ({which})": found.standard_error}


def _project(scores: SetScores, made: Tensor, real: Tensor, what: str) -> None:
    made, real = (_some(vectors) for vectors in (made, real))
    perplexity = min(PERPLEXITY, (len(made) + len(real) - 1) // 3)
    name = f"Jensen-Shannon divergence in t-SNE of {what}"
    found = _try(scores, name, lambda: tsne_divergence(made, real, perplexity))
    if found is not None:
        scores.values[name], scores.projection, scores.projected = found.divergence, found, what


def _some(vectors: Tensor) -> Tensor:
    chosen = torch.randperm(len(vectors), generator=generator("projected"))[:PROJECTED]
    return vectors[chosen.sort().values]


def _features(seen: dict[str, Seen]) -> Tensor:
    return torch.stack([one.features for one in seen.values()]) if seen else torch.zeros(0, 1)


def _faces(seen: dict[str, Seen]) -> tuple[Tensor, list[int]]:
    """Embeddings [N, D] of the pictures with a face, and their places among all."""
    kept = [place for place, one in enumerate(seen.values()) if not one.face.isnan().any()]
    vectors = [one.face for one in seen.values() if not one.face.isnan().any()]
    return torch.stack(vectors) if vectors else torch.zeros(0, 1), kept
