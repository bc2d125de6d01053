"""The scores of a batch of pictures: what each needs, what it gives, and why it is absent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from ..images import check_image, check_mask, match_pair
from ..metrics import clip_directional, clip_score, clothing_distance, face_distance, fsim, gmsd, psnr, ssim
from .backbones import EMBEDDED, Backbone

CHUNK = 8  # pictures that are scored at once
MIN_SIDE = 16
GROUPS = ("structure", "identity", "prompt", "clothing")


class Absent(Exception):
    """A score cannot be given here; the message says why and what to do."""


@dataclass(frozen=True)
class Subject:
    """What is scored. Whatever is None makes the scores that need it absent.

    image, source: [B, 3, H, W] in 0..1, the source of one picture or B. prompts, source_prompts: one or B.
    mask, source_mask: the clothes (foreground minus face), [B, H, W], [B, 1, H, W] or [H, W] in 0..1; without
    ``source_mask`` the first serves both. faces: embeddings [B, D] of the face in each picture; identity: those of whom
    they should show, [1, D] or [B, D], by the same embedder; NaN where there is no face.
    """

    image: Tensor
    source: Tensor | None = None
    prompts: tuple[str, ...] | None = None
    source_prompts: tuple[str, ...] | None = None
    mask: Tensor | None = None
    source_mask: Tensor | None = None
    faces: Tensor | None = None
    identity: Tensor | None = None

    def part(self, start: int, stop: int) -> "Subject":
        """The pictures ``start`` to ``stop``; what stands for all of them stays."""
        count = len(self.image)
        cut = {
            name: value[start:stop]
            for name, value in vars(self).items()
            if value is not None and (name == "image" or len(value) == count)
        }
        return replace(self, **cut)


@dataclass(frozen=True)
class Score:
    """One score: its name with unit, its group of ``GROUPS``, and ``measure(subject)`` -> [B], NaN where a picture has
    none, or ``Absent``. ``nowhere``: what it means when no picture has one."""

    name: str
    group: str
    higher: bool
    measure: Callable[[Subject], Tensor] = field(repr=False)
    nowhere: str = "no picture has one."


@dataclass(frozen=True)
class ScoreTable:
    """values: scores [B] by name, in float64; absent: why there is none, by name; higher: whether higher is better."""

    values: dict[str, Tensor]
    absent: dict[str, str]
    higher: dict[str, bool]
    groups: dict[str, str]

    def text(self, names: Sequence[str] | None = None) -> str:
        """A line each picture, then their means, then what is absent."""
        count = len(next(iter(self.values.values()), ()))
        names = list(names or map(str, range(1, count + 1)))
        heads = [f"{name} {'↑' if self.higher[name] else '↓'}" for name in self.values]
        rows = [(name, [column[place] for column in self.values.values()]) for place, name in enumerate(names)]
        if count > 1:
            rows.append(("mean", [mean_of(column) for column in self.values.values()]))
        first = max(len("picture"), *(len(name) for name, _ in rows)) if rows else 0
        lines = [f"{'picture':>{first}}  " + "  ".join(heads)] if self.values else []
        for name, row in rows if self.values else ():
            cells = (f"{number(value):>{len(head)}}" for value, head in zip(row, heads, strict=True))
            lines.append(f"{name:>{first}}  " + "  ".join(cells))
        return "\n".join([*lines, *(f"no {name}: {reason}" for name, reason in self.absent.items())])


def number(value) -> str:
    """A score as people read it; "-" where there is none."""
    value = float(value)
    return "-" if value != value else f"{value:.4f}"


def mean_of(values: Tensor) -> float:
    """Mean of those that are numbers; NaN where none is."""
    return values[~values.isnan()].mean().item()


def score_pictures(
    subject: Subject, scores: Sequence[Score], on_step: Callable[[int, int], None] = lambda done, total: None
) -> ScoreTable:
    """All ``scores`` of ``subject``. ``on_step(done, total)`` counts pictures and may raise to stop.

    A score that lacks something, or whose input does not fit, is absent with its reason. Raises ``ValueError`` for
    pictures that are none, and for a source, prompts or masks in a number that fits no batch.
    """
    subject = checked(subject)
    found: dict[str, list[Tensor]] = {score.name: [] for score in scores}
    absent: dict[str, str] = {}
    for start in range(0, len(subject.image), CHUNK):
        part = subject.part(start, min(start + CHUNK, len(subject.image)))
        for score in scores:
            if score.name not in absent:
                try:
                    found[score.name].append(score.measure(part).cpu().double())
                except (Absent, ValueError, ImportError) as reason:
                    absent[score.name] = str(reason)
        on_step(start + len(part.image), len(subject.image))
    values = {name: torch.cat(parts) for name, parts in found.items() if name not in absent}
    for score in scores:
        if score.name in values and values[score.name].isnan().all():
            absent[score.name] = score.nowhere
            del values[score.name]
    return ScoreTable(
        values, absent, {score.name: score.higher for score in scores}, {score.name: score.group for score in scores}
    )


def checked(subject: Subject) -> Subject:
    """The subject with everything at the batch of its pictures, or at one; ``ValueError`` where that cannot be."""
    image = check_image(subject.image, "image")
    count, changed = len(image), {"image": image}
    if subject.source is not None:
        changed["source"] = _one_or(check_image(subject.source, "source"), count, "source")
    for name in ("prompts", "source_prompts", "faces", "identity"):
        value = getattr(subject, name)
        if value is not None and len(value) not in (1, count):
            told = {"identity": "identities"}.get(name, name.replace("_", " "))
            raise ValueError(f"{len(value)} {told} for {count} pictures: give 1 or {count}.")
    for name, picture in (("mask", image), ("source_mask", changed.get("source", image))):
        value = getattr(subject, name)
        if value is not None:
            value = value.reshape(-1, *value.shape[-2:])
            mask = check_mask(value, picture.shape[-2:], len(value), name.replace("_", " "))
            changed[name] = _one_or(mask, count, name.replace("_", " "))
    return replace(subject, **changed)


def _one_or(batch: Tensor, count: int, name: str) -> Tensor:
    # Not repeated where it merely divides: which picture belongs to which is anybody's guess then.
    if len(batch) not in (1, count):
        raise ValueError(
            f"{name} is a batch of {len(batch)}, which does not fit a batch of {count}: connect 1 or {count}."
        )
    return batch


# ---- what there is to measure


Compare = Callable[[Tensor, Tensor], Tensor]


def pixel_scores(
    lpips: Callable[[], Compare] | None = None, more: dict[str, tuple[Compare, bool]] | None = None
) -> tuple[Score, ...]:
    """Scores of picture against source, pixel by pixel: functions of both, [B, 3, H, W], that give [B].

    lpips: loads LPIPS when it is first asked for; its errors become the reason of its absence. more: a method's own
    scores by name, with whether higher is better; they come first.
    """
    scores = {
        **(more or {}), "SSIM": (ssim, True), "FSIM": (fsim, True), "GMSD": (gmsd, False), "PSNR (dB)": (psnr, True),
    }  # fmt: skip
    if lpips is not None:
        load = cache(lpips)
        scores["LPIPS"] = (lambda image, source: load()(image, source), False)
    return tuple(Score(name, "structure", higher, _against_source(function))
                 for name, (function, higher) in scores.items())  # fmt: skip


def _against_source(function: Compare) -> Callable[[Subject], Tensor]:
    def measure(subject: Subject) -> Tensor:
        if subject.source is None:
            raise Absent("there is no source picture to compare with.")
        return function(*match_pair(subject.image, subject.source, MIN_SIDE))

    return measure


def prompt_scores(backbone: Backbone) -> tuple[Score, ...]:
    """CLIP score and CLIP directional similarity, by the towers of ``backbone``."""
    suffix = f" ({'embedded' if backbone.name == EMBEDDED else backbone.name})"

    def follows(subject: Subject) -> Tensor:
        texts = _prompts(subject)  # before any network: none is loaded for nothing
        return clip_score(backbone.embed(subject.image), backbone.embed_text(texts))

    def direction(subject: Subject) -> Tensor:
        prompts = _prompts(subject)
        if subject.source is None or not _all_told(subject.source_prompts):
            lacking = "source picture" if subject.source is None else "prompt of the source picture"
            raise Absent(f"there is no {lacking}: the direction of a change needs both ends.")
        pictures = [backbone.embed(picture) for picture in (subject.source, subject.image)]
        return clip_directional(*pictures, *map(backbone.embed_text, (subject.source_prompts, prompts)))

    return (
        Score(f"CLIP score{suffix}", "prompt", True, follows),
        Score(f"CLIP directional{suffix}", "prompt", True, direction, "picture or prompt is that of the source."),
    )


def _prompts(subject: Subject) -> tuple[str, ...]:
    if not _all_told(subject.prompts):
        raise Absent("there is no prompt to compare with.")
    return subject.prompts


def _all_told(texts: tuple[str, ...] | None) -> bool:
    return bool(texts) and all(text.strip() for text in texts)


def face_score(embedder: str) -> Score:
    """Face ID score of embeddings that ``embedder`` made."""

    def measure(subject: Subject) -> Tensor:
        if subject.faces is None or subject.identity is None:
            lacking = "face of the picture" if subject.faces is None else "face of the person to compare with"
            raise Absent(f"there is no {lacking}.")
        if subject.faces.isnan().all() or subject.identity.isnan().all():
            return torch.full((len(subject.image),), torch.nan)
        return face_distance(subject.faces, subject.identity)

    nowhere = f"{embedder} found no face, or none to compare it with, in any of the pictures."
    return Score(f"Face ID score ({embedder})", "identity", False, measure, nowhere)


def clothing_score(backbone: Backbone) -> Score:
    """Clothing score on the feature maps of ``backbone``, below the mask of the subject."""

    def measure(subject: Subject) -> Tensor:
        if subject.source is None or subject.mask is None:
            lacking = "source picture" if subject.source is None else "mask of the clothes"
            raise Absent(f"there is no {lacking}.")
        source_mask = subject.mask if subject.source_mask is None else subject.source_mask
        maps = [_below(backbone, picture, mask)
                for picture, mask in ((subject.image, subject.mask), (subject.source, source_mask))]  # fmt: skip
        return clothing_distance(*maps, subject.mask, source_mask)

    return Score(f"Clothing score ({backbone.name})", "clothing", False, measure, "the mask of the clothes is empty.")


def _below(backbone: Backbone, picture: Tensor, mask: Tensor) -> Tensor:
    """Feature map of what the mask shows, on grey: a network's cells see far beyond their own place."""
    if mask.shape[-2:] != picture.shape[-2:]:
        mask = torch.nn.functional.interpolate(mask, size=picture.shape[-2:], mode="bilinear", antialias=True)
    return backbone.maps(0.5 + (picture - 0.5) * mask)


def absent_score(name: str, group: str, reason: str, higher: bool = True) -> Score:
    """A score whose network is not there, so that it is told of and not left out."""

    def measure(subject: Subject) -> Tensor:
        raise Absent(reason)

    return Score(name, group, higher, measure)
