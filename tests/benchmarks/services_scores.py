"""How fast the scores are: rows for the table of services, or alone: python tests/benchmarks/services_scores.py."""

from collections.abc import Iterator

import torch
from report import best_seconds, load_pack

SIZE = 512
PICTURES = 4
SAMPLES, WIDTH = 5000, 768  # of sets of features: DINOv2 of the base size


def scores_rows() -> Iterator[tuple[str, str]]:
    """(service, throughput) of every score; the pack must be loaded."""
    from likeness.pipelines.evaluation.backbones import embedded_clip
    from likeness.pipelines.evaluation.scores import Subject, clothing_score, pixel_scores, prompt_scores
    from likeness.pipelines.metrics import (
        class_similarities,
        density_coverage,
        frechet_distance,
        kernel_distance,
        tsne_divergence,
    )
    from likeness.pipelines.spl.score import SCORES

    draw = torch.Generator().manual_seed(0)
    images, source = (torch.rand(PICTURES, 3, SIZE, SIZE, generator=draw) for _ in range(2))
    words = embedded_clip()
    subject = Subject(images, source, ("a portrait",), ("a person",), torch.ones(1, 1, SIZE, SIZE))
    for score in (*pixel_scores(more=SCORES), *prompt_scores(words), clothing_score(words)):
        rate = PICTURES / best_seconds(lambda score=score: score.measure(subject))
        yield score.name, f"{rate:.3g} pictures of {SIZE}x{SIZE} a second"
    one, other = (torch.randn(SAMPLES, WIDTH, generator=draw) for _ in range(2))
    people = torch.arange(SAMPLES) // 10
    sets = {
        "Fréchet distance": lambda: frechet_distance(one, other), "MMD": lambda: kernel_distance(one, other),
        "density and coverage": lambda: density_coverage(one, other),
        "identity similarity within and between": lambda: class_similarities(one, people),
    }  # fmt: skip
    for name, measure in sets.items():
        yield name, f"{best_seconds(measure, 1):.3g} s for 2 x {SAMPLES} features of {WIDTH}"
    yield "t-SNE divergence", f"{best_seconds(lambda: tsne_divergence(one[:500], other[:500]), 1):.3g} s for 2 x 500"


if __name__ == "__main__":
    load_pack()
    for service, throughput in scores_rows():
        print(f"{service:42} {throughput}")
