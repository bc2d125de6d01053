"""The paper's claims, re-run in miniature on the portrait world, where the truth about every edit is known.

Every person is edited by every ``EDITS`` under every ``ROWS``. The rows of one edit see the same noise, and share the
steps before structure preservation begins, so a difference between two rows is that of their losses alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..embedded.family import EmbeddedFamily
from ..embedded.measure import image_features, text_features
from ..evaluation.claims import claims_table, verdict
from ..files import atomic_file
from ..filters import box_mean
from ..metrics import clip_directional, clip_score
from ..portraits import LIGHTINGS, Person, edited, render, sample_person
from ..randomness import generator
from ..weights.checks import model_hash
from .edit_pipeline import EditSettings, TextEditPipeline
from .embedded import pipeline_of
from .guidance import StructureGuidance, first_refined_step
from .losses import intensity, local_linear_error
from .optimise import preserve_structure
from .score import score_structure
from .settings import REFERENCE_PIXELS, StructureSettings

SOURCE_PROMPT = "a portrait of a calm person in studio light"
SHARPNESS = 0.01**2, 0.03**2  # the constants of SSIM


@dataclass(frozen=True)
class Edit:
    """One edit: what the target prompt says, and the change of parameters that it asks for."""

    name: str
    target: str
    light: str | None = None
    expression: str | None = None

    def truth(self, person: Person) -> Person:
        """The exact counterfactual: the same person, pose and background, with nothing but the edit changed."""
        if self.expression is not None:
            return edited(person, expression=self.expression)
        return replace(person, lighting=LIGHTINGS[self.light].lighting)


EDITS = (
    Edit("red and blue light", "a portrait of a calm person in red and blue light", light="pantone"),
    Edit("golden hour", "a portrait of a calm person at golden hour", light="golden hour"),
    Edit("dark shadow", "a portrait of a calm person in dark shadow before a black background", light="dark shadow"),
    Edit("daylight", "a portrait of a calm person in soft daylight", light="daylight"),
    Edit("laughing", "a portrait of a laughing person in studio light", expression="laughing"),
)


@dataclass(frozen=True)
class Row:
    """One variant of the method. loss: "spl", one of ``RIVALS``, or None for the plain edit."""

    name: str
    loss: str | None = "spl"
    color: bool = False
    refine: bool = False


ROWS = (
    Row("baseline", None),
    Row("+ SPL"),
    Row("+ SPL + CPL", color=True),
    Row("+ SPL + CPL + post-processing", color=True, refine=True),
    Row("+ SPL + post-processing", refine=True),
    Row("MSE instead, + post-processing", "mse", refine=True),
    Row("SSIM instead, + post-processing", "ssim", refine=True),
    Row("one direction only, + post-processing", "one direction", refine=True),
)
# name: (heading, whether higher is better)
COLUMNS = {
    "spl": ("SPL x100", False), "ssim": ("SSIM", True), "fsim": ("FSIM", True), "gmsd": ("GMSD", False),
    "perceptual": ("perceptual distance, embedded CLIP", False), "clip": ("CLIP score, embedded", True),
    "direction": ("CLIP directional, embedded", True), "error": ("true edit error (RMSE x100)", False),
}  # fmt: skip


@dataclass(frozen=True)
class ClaimsSettings:
    """How much is measured. ``population``: seed of the people; keep it apart from those of training."""

    people: int = 100
    population: int = 2
    batch: int = 20
    size: int = 128
    structure: StructureSettings = field(default_factory=StructureSettings)
    edit: EditSettings = field(default_factory=EditSettings)
    start: float = 0.8


@torch.no_grad()
def measure_claims(
    family: EmbeddedFamily, settings: ClaimsSettings, progress: Callable[[int, int], None] = lambda done, total: None,
    kept: Path | None = None,
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Scores by row and column, each [people, edits]. ``progress(done, total)`` may raise to stop.

    kept: folder that keeps the scores of every batch of people, so that a run that was stopped, or is repeated with
    more people, goes on; scores of other models or settings are measured anew. Empty it when the code changes.
    """
    parts, pictures = [], len(EDITS) * len(ROWS)
    total, maker = settings.people * pictures, made_by(family, settings) if kept else ""
    for start in range(0, settings.people, settings.batch):
        numbers = range(start, min(start + settings.batch, settings.people))
        file = kept / f"people_{numbers.start}_{numbers.stop}.safetensors" if kept else None
        scores = read_scores(file, maker) if kept else None
        if scores is not None:
            progress(numbers.stop * pictures, total)
        else:
            step = lambda done, before=start * pictures: progress(before + done, total)  # noqa: E731
            scores = measure_people(family, settings, numbers, step)
            if kept:
                write_scores(file, maker, scores)
        parts.append(scores)
    return {row.name: {name: torch.cat([part[row.name][name] for part in parts]) for name in COLUMNS} for row in ROWS}


def measure_people(
    family: EmbeddedFamily, settings: ClaimsSettings, numbers: range, progress: Callable[[int], None]
) -> dict[str, dict[str, Tensor]]:
    """The scores of these people, edited together."""
    pipeline, done = pipeline_of(family), 0
    people = [plain_person(settings.population, number) for number in numbers]
    source = render(people, settings.size).image
    scores: dict[str, list[dict[str, Tensor]]] = {row.name: [] for row in ROWS}
    for edit in EDITS:
        truth = render([edit.truth(person) for person in people], settings.size).image
        for row, picture in edited_by_rows(pipeline, source, edit, settings, numbers.start):
            scores[row.name].append(score_edit(family, picture, source, truth, edit))
            done += len(people)
            progress(done)
    return {
        row: {name: torch.stack([each[name] for each in of_edits], 1) for name in COLUMNS}
        for row, of_edits in scores.items()
    }


# ---- scores that were measured before


def made_by(family: EmbeddedFamily, settings: ClaimsSettings) -> str:
    """What decides about a person's scores, but for this code: the weights, all settings but the number of people."""
    base = family.base
    models = (base.vae, base.unet, *base.text_encoders, family.text_tower, family.image_encoder)
    return " ".join([repr(replace(settings, people=0)), *map(model_hash, models)])


def write_scores(file: Path, maker: str, scores: dict[str, dict[str, Tensor]]) -> None:
    """Keep the scores of some people."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{row}/{name}": each.contiguous() for row, columns in scores.items() for name, each in columns.items()}
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, metadata={"made_by": maker})


def read_scores(file: Path, maker: str) -> dict[str, dict[str, Tensor]] | None:
    """The scores in ``file``; None where there are none, or of other models or settings."""
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("made_by") != maker:
                return None
            return {row.name: {name: opened.get_tensor(f"{row.name}/{name}") for name in COLUMNS} for row in ROWS}
    except (OSError, SafetensorError):
        return None


def plain_person(population: int, index: int) -> Person:
    """Person ``index`` as the source prompt says: calm, everyday clothes, studio light and wall."""
    return edited(sample_person(population, index), expression="neutral", costume="everyday", lighting="studio")


def edited_by_rows(pipeline: TextEditPipeline, source: Tensor, edit: Edit, settings: ClaimsSettings, seed: int):
    """(row, edited pictures [B, 3, H, W]) for every row."""
    clean = pipeline.encode(source)
    plan = pipeline.plan_of_texts(settings.edit, SOURCE_PROMPT, edit.target, "", clean)
    steps = len(plan.levels) - 1
    noise = torch.stack([
        torch.randn((steps, *clean.shape[1:]), generator=generator("claims", edit.name, seed + number))
        for number in range(len(clean))
    ], 1)  # fmt: skip
    shared = replace(plan, model=Remembering(plan.model, first_refined_step(steps, settings.start)))
    reference = pipeline.decode(clean)
    for row in ROWS:
        structure = settings.structure if row.color else replace(settings.structure, color_weight=0.0)
        preserve = preserver(row.loss)
        guidance = None
        if preserve is not None:
            guidance = StructureGuidance(reference, plan.sigmas, structure, settings.start, preserve=preserve)
        picture = pipeline.decode(pipeline.edit(clean, shared, settings.edit, guidance, noise=noise))
        yield row, preserve(picture, source, None, structure, None) if row.refine else picture


class Remembering:
    """The model of a plan, whose first ``steps`` steps are computed once: rows do not differ in them."""

    def __init__(self, model, steps: int):
        self.model, self.steps, self.memory = model, steps, {}
        self.run, self.denoise_source = model.run, model.denoise_source

    def denoise(self, step: int, latents: list[Tensor]) -> list[Tensor]:
        """As the model's."""
        if step >= self.steps:
            return self.model.denoise(step, latents)
        if step not in self.memory:
            self.memory[step] = self.model.denoise(step, latents)
        return list(self.memory[step])


# ---- losses in SPL's place


def squared_error(image: Tensor, source: Tensor, settings: StructureSettings) -> Tensor:
    """Mean squared error of the intensity, [B]."""
    return (intensity(image) - intensity(source)).square().mean((1, 2, 3))


def dissimilarity(image: Tensor, source: Tensor, settings: StructureSettings) -> Tensor:
    """1 - SSIM of the intensity, on SPL's windows (Wang et al. 2004, equation 13), [B]."""
    one, other = intensity(image), intensity(source)
    mean_one, mean_other = box_mean(one, settings.radius), box_mean(other, settings.radius)
    mixed = box_mean(one * other, settings.radius) - mean_one * mean_other
    spread = box_mean(one**2, settings.radius) - mean_one**2 + box_mean(other**2, settings.radius) - mean_other**2
    low, high = SHARPNESS
    alike = (2 * mean_one * mean_other + low) * (2 * mixed + high)
    return 1 - (alike / ((mean_one**2 + mean_other**2 + low) * (spread + high))).mean((1, 2, 3))


def one_direction(image: Tensor, source: Tensor, settings: StructureSettings) -> Tensor:
    """Half of SPL: how badly the source follows from the edit, [B]. Blind to texture that the edit invents."""
    error = local_linear_error(intensity(image), intensity(source), settings.radius, settings.epsilon)
    return error.mean((1, 2, 3))


RIVALS = {"mse": squared_error, "ssim": dissimilarity, "one direction": one_direction}


def preserver(loss: str | None) -> Callable | None:
    """What pulls a picture to its source by this loss, with the arguments of ``preserve_structure``."""
    if loss in (None, "spl"):
        return preserve_structure if loss else None

    def preserve(image, source, mask, settings, on_iteration=None):
        return descend(image, source, RIVALS[loss], settings)

    return preserve


@torch.enable_grad()
def descend(image: Tensor, source: Tensor, loss: Callable, settings: StructureSettings) -> Tensor:
    """SPL's descent (notes 2.6) on another loss: same weight, rate, momentum and number of iterations."""
    x = (image.detach() * 2 - 1).requires_grad_(True)
    optimizer = torch.optim.SGD([x], lr=settings.learning_rate, momentum=settings.momentum)
    weight = settings.structure_weight * image.shape[-2] * image.shape[-1] / REFERENCE_PIXELS
    for _ in range(settings.iterations):
        optimizer.zero_grad()
        (weight * loss((x + 1) / 2, source, settings).sum()).backward()
        x.grad.nan_to_num_(nan=0.0)
        optimizer.step()
    return ((x.detach() + 1) / 2).clamp(0, 1)


# ---- scores


@torch.no_grad()
def score_edit(family: EmbeddedFamily, picture: Tensor, source: Tensor, truth: Tensor, edit: Edit) -> dict[str, Tensor]:
    """Every column's score [B] of edited pictures [B, 3, 128, 128] in 0..1."""
    structure = score_structure(picture, source)
    after, before = image_features(family, picture * 2 - 1), image_features(family, source * 2 - 1)
    wanted, was = text_features(family, [edit.target]), text_features(family, [SOURCE_PROMPT])
    return {
        "spl": structure.spl, "ssim": structure.ssim, "fsim": structure.fsim, "gmsd": structure.gmsd,
        "perceptual": perceptual_distance(family, picture, source), "clip": clip_score(after, wanted),
        "direction": clip_directional(before, after, was, wanted),
        "error": 100 * (picture - truth).square().mean((1, 2, 3)).sqrt(),
    }  # fmt: skip


def perceptual_distance(family: EmbeddedFamily, one: Tensor, other: Tensor) -> Tensor:
    """LPIPS's formula (Zhang et al. 2018, equation 1, unweighted) on all layers of the embedded image tower, [B]."""
    layers = [
        family.image_encoder(picture * 2 - 1, output_hidden_states=True).hidden_states for picture in (one, other)
    ]
    distances = [
        (torch.nn.functional.normalize(a, dim=-1) - torch.nn.functional.normalize(b, dim=-1)).square().sum(-1).mean(1)
        for a, b in zip(*layers, strict=True)
    ]
    return torch.stack(distances).mean(0)


# ---- the table


def verdicts(found: dict[str, dict[str, Tensor]]) -> list[str]:
    """Each claim of the paper in one line, with whether it holds here: paired differences over people."""
    checks = (
        ("SPL in the loop keeps more structure than the plain edit (SPL)", "+ SPL", "baseline", "spl"),
        ("post-processing keeps yet more (SPL)", "+ SPL + CPL + post-processing", "+ SPL + CPL", "spl"),
        ("SSIM rises with it", "+ SPL + CPL + post-processing", "baseline", "ssim"),
        ("CPL costs no structure (SPL x100 higher by less than 0.01)", "+ SPL + CPL", "+ SPL", "spl", 0.01),
        ("SPL follows the prompt better than MSE in its place (CLIP directional)", "+ SPL + post-processing",
         "MSE instead, + post-processing", "direction"),
        ("SPL follows the prompt better than SSIM in its place (CLIP directional)", "+ SPL + post-processing",
         "SSIM instead, + post-processing", "direction"),
        ("both directions keep more structure than one (SPL)", "+ SPL + post-processing",
         "one direction only, + post-processing", "spl"),
        ("the edit comes nearer to the exact truth than the plain edit", "+ SPL + post-processing", "baseline",
         "error"),
        ("the edit comes nearer to the exact truth than with MSE in SPL's place", "+ SPL + post-processing",
         "MSE instead, + post-processing", "error"),
    )  # fmt: skip
    return [verdict(found, COLUMNS, *check) for check in checks]


def claims_report(found: dict[str, dict[str, Tensor]], settings: ClaimsSettings, edits: Sequence[Edit] = EDITS) -> str:
    """Table, verdicts and what was measured, in Markdown."""
    names = ", ".join(edit.name for edit in edits)
    note = (
        f"{settings.people} held-out people x {len(edits)} edits ({names}), {settings.size}x{settings.size}, "
        f"{settings.edit.steps} steps; mean ± 95 % interval over people. The truth keeps pose and background and "
        "changes the light or the expression alone. MSE, SSIM and the one-directional loss run at SPL's own weight, "
        "rate and number of steps, not tuned for each."
    )
    return "\n".join([note, "", claims_table(found, COLUMNS), "", *verdicts(found)])
