"""Everything there is to measure with, put together from what is installed."""

from collections.abc import Sequence
from pathlib import Path

from ..metrics import LPIPS
from .backbones import NETWORKS, Backbone, embedded_clip, load_network, place_of, where_it_belongs
from .scores import Compare, Score, absent_score, clothing_score, face_score, pixel_scores, prompt_scores

LPIPS_WEIGHTS = "lpips-alexnet"  # group of the manifest


def portrait_scores(
    models: Sequence[Path], words: Backbone, embedder: str | None, own: dict[str, tuple[Compare, bool]],
    clothes: Backbone | None = None,
) -> tuple[Score, ...]:  # fmt: skip
    """All scores of pictures. What lacks its files stays in, to say that it is absent and what to do.

    models: folders laid out as ComfyUI's ``models``; words: the network of the scores of prompts, and of clothes where
    ``clothes`` is None; embedder: what made the face embeddings; own: a method's scores, see ``pixel_scores``.
    """
    no_faces = "there are no faces: connect them, or choose what finds and embeds them."
    return (
        *pixel_scores(lambda: _lpips(models), own), *prompt_scores(words),
        face_score(embedder) if embedder else absent_score("Face ID score", "identity", no_faces, False),
        clothing_score(clothes or words),
    )  # fmt: skip


def _lpips(models: Sequence[Path]) -> LPIPS:
    place = place_of(LPIPS_WEIGHTS, models)
    if place is None:
        raise ValueError(f"its weights are not there; {where_it_belongs(LPIPS_WEIGHTS, models)}")
    return LPIPS(place)


def words_network(models: Sequence[Path], place: Path | None = None) -> Backbone:
    """CLIP from ``place``, or where it lies below ``models``, else the embedded one."""
    there = place or any(place_of(group, models) for group in NETWORKS["clip"].groups)
    return load_network("clip", models, place) if there else embedded_clip()
