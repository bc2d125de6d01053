"""IDetail's claims, re-run in miniature on the portrait world, where the true relit portrait is known.

Every row is a LoRA of its own, trained for the same number of steps from the same first convolution with one thing
changed; runs go on where they were. All rows relight the same held-out people from the same noise.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler
from safetensors import safe_open
from torch import Tensor

from ..embedded import SHIPPED
from ..embedded.architectures import FACE_SIZE
from ..embedded.face_embedder import FIVE, embed
from ..embedded.family import EmbeddedFamily
from ..embedded.measure import image_features, text_features
from ..evaluation.backbones import embedded_clip
from ..evaluation.claims import claims_table, interval, verdict
from ..faces import align_faces
from ..metrics import clip_score, clothing_distance, face_distance
from ..portraits import FACE_PARTS, LANDMARKS, LIGHTINGS, Person, Scene, group_scene, render
from ..portraits.sampling import sample_background
from ..randomness import generator
from ..stop import StopRequest
from ..training import Trainer, settings_class
from ..training.export import settings_facts
from ..training.settings import OptimizerSettings, ReportSettings, RunSettings
from .adapter import apply_adapter, read_adapter, train_conv_in
from .conditioning import ORDERS
from .pipeline import RelightPipeline
from .prompts import EFFECTS, PLACEHOLDER_PROMPT, TARGET_PROMPTS, relight_prompt
from .settings import RelightLoraSettings
from .task import TrainRelight
from .world import original


@dataclass(frozen=True)
class Row:
    """One variant: what it changes of the task's settings, and the seed of its training."""

    name: str
    changes: dict = field(default_factory=dict)
    seed: int = 0


FULL, AGAIN = "all four losses, pairs of outputs", "the same with another seed"
ROWS = (
    Row(FULL),
    Row(AGAIN, seed=1),
    Row("alpha 1 = 0 (identity)", {"identity_weight": 0.0}),
    Row("alpha 2 = 0 (foreground)", {"foreground_weight": 0.0}),
    Row("alpha 3 = 0 (background)", {"background_weight": 0.0}),
    Row("direct pairs, photo to output", {"pairing": "direct"}),
    Row("32 people", {"people": 32}),
    Row("128 people", {"people": 128}),
    Row("rank 4", {"rank": 4}),
    Row("rank 32", {"rank": 32}),
    Row("first convolution trained on", {"train_conv_in": True}),
    Row("losses as printed, not weighed by signal", {"signal_weighting": False}),
)
PHOTO, BASE, TRUTH = "the photo, unchanged", "base model without the photo", "exact truth through the autoencoder"
COLUMNS = {
    "clip": ("CLIP score, embedded", True), "face": ("Face ID, embedded", False),
    "clothing": ("Clothing, embedded CLIP", False), "error": ("true relighting error (RMSE x100)", False),
}  # fmt: skip


@dataclass(frozen=True)
class ClaimsSettings:
    """How much is trained and measured. ``population``: seed of the people; keep it apart from those of training.

    effects: names in ``EFFECTS``, half of them never trained on; rank: of all rows that do not say theirs.
    """

    data: Path
    conv_in: Path
    runs: Path
    models: Path = SHIPPED
    steps: int = 200
    batch: int = 16
    learning_rate: float = 2e-3
    rank: int = 16
    people: int = 20
    population: int = 2
    effects: tuple[str, ...] = ("pantone", "window grill", "dark shadow", "golden hour", "night sky", "garden")
    sampling_steps: int = 12
    guidance_scale: float = 2.0
    size: int = 128


# ---- training the rows


def train_row(
    row: Row, settings: ClaimsSettings, say: Callable[[str], None] = print, stop: StopRequest | None = None
) -> Path | None:
    """The row's exported file, trained first where it is not there yet; None where that was stopped.

    stop: not entered yet; by default it looks into the row's own folder.
    Raises ``ValueError`` where the file that is there was trained with other settings.
    """
    name = "".join(letter if letter.isalnum() else "_" for letter in row.name)
    output = settings.runs / name
    file = output / "relight.safetensors"
    task = RelightLoraSettings(
        model=settings.models, data=settings.data, conv_in=settings.conv_in, resolution=settings.size, bucket_step=8,
        validation_pairs=1, validation_steps=2,
        **{"rank": settings.rank, "signal_weighting": True, **row.changes},
    )  # fmt: skip
    run = settings_class(TrainRelight)(
        task=task,
        run=RunSettings(output=output, name="relight", seed=row.seed, steps=settings.steps, batch_size=settings.batch,
                        precision="fp32", save_every=50, keep=1, cache=settings.runs / "cache"),
        optimizer=OptimizerSettings(learning_rate=settings.learning_rate, warmup_steps=settings.steps // 20),
        report=ReportSettings(validate_every=0),
    )  # fmt: skip
    if file.exists():
        check_same(file, run, settings.conv_in)
        return file
    return file if Trainer(TrainRelight(task, run.run.seed), run, stop, say).run() else None


def check_same(file: Path, run, conv_in: Path) -> None:
    """Raise ``ValueError`` where ``file`` was not trained with the settings ``run`` on the first convolution given."""
    with safe_open(file, "pt") as opened:
        told = json.loads(opened.metadata()["likeness_settings"])
    tensors, first = read_adapter(file)[0], read_adapter(conv_in)[0]
    moved = not run.task.train_conv_in and any(not torch.equal(tensors[name], first[name]) for name in first)
    wanted = json.loads(json.dumps(settings_facts(run)))
    other = [f"{name} {told[section].get(name)!r}" for section in ("task", "run", "optimizer")
             for name, value in wanted[section].items() if told[section].get(name) != value]  # fmt: skip
    if moved or other:
        what = ", ".join(other) or f"another first convolution than {conv_in}"
        raise ValueError(f"{file} was trained with {what}: choose another --output, or remove {file.parent}.")


# ---- people, light and truth


def relit_truth(subject: Person | Scene, effect: str, number: int) -> Person | Scene:
    """The exact counterfactual: the same people and poses in the light of an effect, before its background."""
    return replace(subject, lighting=LIGHTINGS[effect].lighting, background=sample_background(0, number, effect))


@dataclass
class Subjects:
    """What is relit: pictures [B, 3, S, S] in 0..1, foregrounds and clothes [B, 1, S, S], landmarks [B, 5, 2]."""

    scenes: list[Person | Scene]
    pictures: Tensor
    foreground: Tensor
    clothes: Tensor
    landmarks: Tensor


def subjects_of(scenes: list[Person | Scene], size: int) -> Subjects:
    """Render the photos with all that is known of them; landmarks are the first person's."""
    made = render(scenes, size)
    face = made.mask(*FACE_PARTS)
    places = [LANDMARKS.index(name) for name in FIVE]
    return Subjects(scenes, made.image, made.alpha, (made.alpha - face).clamp(0, 1), made.landmarks[:, 0, places])


# ---- relighting and scores


class Relighter:
    """One row's model, or the base model without any adapter, as pictures of subjects under effects."""

    def __init__(self, family: EmbeddedFamily, adapter: Path | None, settings: ClaimsSettings):
        base = family.base
        unet = copy.deepcopy(base.unet)
        order = ORDERS[0]
        if adapter is not None:
            order = apply_adapter(unet, adapter)
        else:
            train_conv_in(unet)  # as it starts: blind to the photo
        scheduler = EulerDiscreteScheduler.from_config(base.scheduler.config)
        self.pipeline = RelightPipeline(
            base.vae, base.text_encoders[0], base.tokenizers[0], unet, scheduler, order=order
        )
        self.settings = settings

    @torch.no_grad()
    def __call__(self, subjects: Subjects, prompts: list[str], first: int) -> Tensor:
        """Relit pictures [B, 3, S, S]; the noise of a subject is that of its number, the same for all rows."""
        cells = self.settings.size // self.pipeline.vae_cell
        noise = torch.stack([
            torch.randn((4, cells, cells), generator=generator("relight", first + number))
            for number in range(len(prompts))
        ])  # fmt: skip
        return self.pipeline(
            subjects.pictures, prompts, subjects.foreground, steps=self.settings.sampling_steps,
            guidance_scale=self.settings.guidance_scale, noise=noise,
        )  # fmt: skip


class Scorer:
    """All columns of one picture against its photo, its prompt and its truth."""

    def __init__(self, family: EmbeddedFamily):
        self.family, self.clip = family, embedded_clip()

    @torch.no_grad()
    def __call__(self, made: Tensor, subjects: Subjects, truth: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Scores [B] by column."""
        squared = (made - truth).square() * subjects.foreground
        error = squared.sum((1, 2, 3)) / (3 * subjects.foreground.sum((1, 2, 3)))
        maps = [self.clip.maps(picture) for picture in (made, subjects.pictures)]
        return {
            "clip": clip_score(image_features(self.family, made * 2 - 1), text_features(self.family, prompts)),
            "face": face_distance(self.face(made, subjects), self.face(subjects.pictures, subjects)),
            "clothing": clothing_distance(*maps, subjects.clothes, subjects.clothes),
            "error": 100 * error.sqrt(),
        }

    def face(self, pictures: Tensor, subjects: Subjects) -> Tensor:
        """Embeddings of the faces where the photo has them."""
        return embed(self.family.face_embedder, align_faces(pictures * 2 - 1, subjects.landmarks, FACE_SIZE))


@torch.no_grad()
def measure(
    family: EmbeddedFamily, models: dict[str, Path | None], settings: ClaimsSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Scores by row and column, each [people, effects]; ``models``: the rows' files by name, None: the base model."""
    score = Scorer(family)
    subjects = subjects_of([original(settings.population, number) for number in range(settings.people)], settings.size)
    names = [PHOTO, TRUTH, *models]
    found = {name: {column: [] for column in COLUMNS} for name in names}
    done, total = 0, len(names) * len(settings.effects)
    truths = {effect: truth_of(subjects, effect, settings) for effect in settings.effects}
    for name in names:
        relight = Relighter(family, models[name], settings) if name in models else None
        for effect in settings.effects:
            prompts = [EFFECTS[effect].caption()] * settings.people
            if relight is not None:
                made = relight(subjects, prompts, 0)
            else:
                made = subjects.pictures if name == PHOTO else roundtrip(family, truths[effect])
            for column, values in score(made, subjects, truths[effect], prompts).items():
                found[name][column].append(values)
            done += 1
            progress(done, total)
    return {name: {column: torch.stack(parts, 1).float() for column, parts in columns.items()}
            for name, columns in found.items()}  # fmt: skip


def truth_of(subjects: Subjects, effect: str, settings: ClaimsSettings) -> Tensor:
    """The exact pictures of the subjects under an effect."""
    scenes = [relit_truth(scene, effect, number) for number, scene in enumerate(subjects.scenes)]
    return render(scenes, settings.size).image


def roundtrip(family: EmbeddedFamily, pictures: Tensor) -> Tensor:
    """Pictures through the autoencoder: nothing that it makes can be better."""
    vae = family.base.vae
    return vae.decode(vae.encode(pictures * 2 - 1).latent_dist.mode()).sample.clamp(-1, 1) / 2 + 0.5


@torch.no_grad()
def measure_more(
    family: EmbeddedFamily, adapter: Path, settings: ClaimsSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """The whole model on what it was not trained for: the placeholder alone, and pictures of two and three people."""
    score, relight = Scorer(family), Relighter(family, adapter, settings)
    plain = Relighter(family, None, settings)
    found: dict[str, dict[str, Tensor]] = {}
    alone = subjects_of([original(settings.population, number) for number in range(settings.people)], settings.size)
    prompts = [PLACEHOLDER_PROMPT] * settings.people
    for done, (name, model) in enumerate((("placeholder alone", relight), ("placeholder alone, base model", plain))):
        scores = score(model(alone, prompts, 0), alone, alone.pictures, prompts)
        found[name] = {column: values[:, None].float() for column, values in scores.items()}
        progress(done + 1, 2 + 2 * len(settings.effects))
    for count in (2, 3):
        groups = subjects_of([group_of(settings.population, number, count) for number in range(settings.people)],
                             settings.size)  # fmt: skip
        columns: dict[str, list[Tensor]] = {column: [] for column in COLUMNS}
        for effect in settings.effects:
            words = [relight_prompt(effect, count)] * settings.people
            truth = truth_of(groups, effect, settings)
            for column, values in score(relight(groups, words, 0), groups, truth, words).items():
                columns[column].append(values)
            done += 1
            progress(done + 1, 2 + 2 * len(settings.effects))
        found[f"{count} people in a picture"] = {name: torch.stack(parts, 1).float() for name, parts in columns.items()}
        still = [score(groups.pictures, groups, truth_of(groups, effect, settings),
                       [relight_prompt(effect, count)] * settings.people) for effect in settings.effects]  # fmt: skip
        found[f"{count} people, the photo unchanged"] = {
            name: torch.stack([scores[name] for scores in still], 1).float() for name in COLUMNS
        }
    return found


def group_of(population: int, number: int, count: int) -> Scene:
    """Several people in the light of the first one's photo."""
    return group_scene([original(population, 1000 + number * count + place) for place in range(count)])


# ---- the report


def split_by_training(
    found: dict[str, dict[str, Tensor]], row: str, effects: tuple[str, ...]
) -> dict[str, dict[str, Tensor]]:
    """A row's scores on trained and on unseen effects."""
    trained = [prompt.name for prompt in TARGET_PROMPTS]
    chosen = {
        "trained effects": [place for place, effect in enumerate(effects) if effect in trained],
        "unseen effects": [place for place, effect in enumerate(effects) if effect not in trained],
    }
    return {
        f"{row}: {name}": {column: values[:, places] for column, values in found[row].items()}
        for name, places in chosen.items() if places
    }  # fmt: skip


def verdicts(
    found: dict[str, dict[str, Tensor]], more: dict[str, dict[str, Tensor]], settings: ClaimsSettings
) -> list[str]:
    """Each claim of the paper in one line, with whether it holds here; then how much another seed moves the scores."""
    unseen = {f"{row}: unseen effects" for row in (FULL, PHOTO, BASE)}
    found = {**found, **{name: columns for row in (FULL, PHOTO, BASE) if row in found
                         for name, columns in split_by_training(found, row, settings.effects).items()
                         if name in unseen}}  # fmt: skip
    checks = (
        ("relit portraits are nearer to the truth than the photo (error)", FULL, PHOTO, "error"),
        ("they are nearer to it than what the base model draws (error)", FULL, BASE, "error"),
        ("they follow the prompt better than the photo (CLIP)", FULL, PHOTO, "clip"),
        ("effects that were never trained are nearer to the truth, too (error)", f"{FULL}: unseen effects",
         f"{PHOTO}: unseen effects", "error"),
        ("effects that were never trained follow the prompt better, too (CLIP)", f"{FULL}: unseen effects",
         f"{PHOTO}: unseen effects", "clip"),
        ("the photo's person stays, which the base model cannot know (Face ID)", FULL, BASE, "face"),
        ("without the identity loss the face is kept less (Face ID)", FULL, "alpha 1 = 0 (identity)", "face"),
        ("without the foreground loss the prompt is followed less (CLIP)", FULL, "alpha 2 = 0 (foreground)", "clip"),
        ("without the foreground loss the light is less true (error)", FULL, "alpha 2 = 0 (foreground)", "error"),
        ("without the background loss the prompt is followed less (CLIP)", FULL, "alpha 3 = 0 (background)", "clip"),
        ("without the background loss clothes are kept less (Clothing)", FULL, "alpha 3 = 0 (background)", "clothing"),
        ("pairs of outputs keep the face better than direct pairs (Face ID)", FULL, "direct pairs, photo to output",
         "face"),
        ("pairs of outputs are truer than direct pairs (error)", FULL, "direct pairs, photo to output", "error"),
        ("all people are better than 32 (Face ID)", FULL, "32 people", "face"),
        ("all people are better than 32 (error)", FULL, "32 people", "error"),
        (f"rank {settings.rank} is better than rank 4 (Face ID)", FULL, "rank 4", "face"),
        (f"rank 32 gains little over rank {settings.rank} (error higher by less than 0.5)", FULL, "rank 32", "error",
         0.5),
    )  # fmt: skip
    lines = [verdict(found, COLUMNS, *check) for check in checks if {check[1], check[2]} <= set(found)]
    groups = (
        ("the placeholder alone keeps the person (Face ID)", "placeholder alone", "placeholder alone, base model",
         "face"),
        *((f"{count} people are relit after training on single ones (error)", f"{count} people in a picture",
           f"{count} people, the photo unchanged", "error") for count in (2, 3)),
    )  # fmt: skip
    lines += [verdict(more, COLUMNS, *check) for check in groups if {check[1], check[2]} <= set(more)]
    if AGAIN in found:
        moved = ", ".join(f"{heading} {interval(found[AGAIN][name] - found[FULL][name])[0]:+.3f}"
                          for name, (heading, _) in COLUMNS.items())  # fmt: skip
        lines.append(f"- Intervals are over people, not over trainings: another seed alone moves the means by {moved}.")
    return lines


def claims_report(
    found: dict[str, dict[str, Tensor]], more: dict[str, dict[str, Tensor]], settings: ClaimsSettings
) -> str:
    """Tables, verdicts and what was measured, in Markdown."""
    names = ", ".join(settings.effects)
    note = (
        f"{settings.people} held-out people x {len(settings.effects)} effects ({names}), {settings.size}x"
        f"{settings.size}, {settings.sampling_steps} Euler steps, guidance {settings.guidance_scale:g}; mean ± 95 % "
        f"interval over people. Each row saw {settings.steps} x {settings.batch} pairs in training, rank "
        f"{settings.rank} where it does not say its own, the losses of the clean estimate weighed by the share of "
        "signal (the paper does not say; one row is without). The truth keeps person, pose and costume and changes "
        "light and background; the error counts in the foreground. Face ID and Clothing compare with the photo, so "
        "that light alone costs something too: the row of the exact truth says how much. With the placeholder alone "
        "nothing is asked for, so its error is against the photo."
    )
    rows = {**found, **split_by_training(found, FULL, settings.effects), **more}
    return "\n".join([note, "", claims_table(rows, COLUMNS), "", *verdicts(found, more, settings)])
