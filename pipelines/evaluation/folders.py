"""One folder of pictures against another: what is read, scored and embedded, picture by picture."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..faces import FaceBackend
from ..images import IMAGE_EXTENSIONS, load_image
from ..stop import Stopped
from .backbones import Backbone
from .faces import face_vectors
from .scores import Score, ScoreTable, Subject, score_pictures

Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Panel:
    """What measures: the scores of pictures, the network whose features compare sets, and what finds faces, if any."""

    scores: tuple[Score, ...]
    features: Backbone
    faces: FaceBackend | None = None


@dataclass(frozen=True)
class Seen:
    """What one picture gave: its features [D], and its face's embedding [E], which is NaN [E] or [1] without a face."""

    path: Path
    features: Tensor
    face: Tensor | None


@dataclass
class Comparison:
    """What was found so far, by the pictures' names; ``complete`` is False where it was stopped before its end.

    scores: by picture and score, NaN where a picture lacks one; why_absent: by score, how many pictures lack it and
    why; bad: files that could not be read or measured, and why.
    """

    folder: Path
    reference: Path
    made: dict[str, Seen] = field(default_factory=dict)
    real: dict[str, Seen] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    higher: dict[str, bool] = field(default_factory=dict)
    absent: dict[str, dict[str, int]] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    @property
    def pairs(self) -> list[str]:
        """Names that both folders have."""
        return [name for name in self.made if name in self.real]


def pictures_of(folder: Path) -> dict[str, Path]:
    """The pictures below ``folder`` by their path in it without extension, in order; hidden files do not count.

    Raises ``ValueError`` where it is no folder, holds none, or two of one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that holds pictures.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix.lower() not in IMAGE_EXTENSIONS or any(part.startswith(".") for part in inside.parts):
            continue
        name = inside.with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name: rename one, pictures are told by it.")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(IMAGE_EXTENSIONS)}).")
    return found


def compare_folders(
    folder: Path, reference: Path, panel: Panel, prompt: str | None = None, masks: Path | None = None,
    on_step: Step = lambda what, done, total: None,
) -> Comparison:  # fmt: skip
    """Score every picture of ``folder`` against the one of the same name in ``reference``, and look at all of both.

    prompt: what the pictures should show; a text file beside a picture, of its name with .txt, says it for that one,
    also for a reference.
    masks: folder of masks of the clothes by the pictures' names. ``on_step(what, done, total)`` may raise ``Stopped``:
    then what was found so far is returned. Raises ``ValueError`` for a folder without pictures; a bad picture is
    listed instead.
    """
    files, references = pictures_of(folder), pictures_of(reference)
    mask_files = pictures_of(masks) if masks is not None else {}
    found = Comparison(Path(folder), Path(reference), higher={score.name: score.higher for score in panel.scores})
    names = sorted({*files, *references})
    try:
        for done, name in enumerate(names):
            on_step("pictures", done, len(names))
            picture, source = (
                _look(name, places.get(name), panel, seen, found)
                for places, seen in ((files, found.made), (references, found.real))
            )
            if picture is not None:
                mask = _read(mask_files.get(name), found)
                subject = Subject(
                    picture, source, prompt_of(files[name], prompt),
                    None if source is None else prompt_of(references[name], None),
                    None if mask is None else mask.mean(1), faces=_row(found.made[name].face),
                    identity=None if source is None else _row(found.real[name].face),
                )  # fmt: skip
                _note(found, name, _scored(subject, panel, files[name], found))
        on_step("pictures", len(names), len(names))
        found.complete = True
    except Stopped:
        pass
    return found


def _read(path: Path | None, found: Comparison) -> Tensor | None:
    if path is None:
        return None
    try:
        return load_image(path)
    except ValueError as error:
        found.bad[str(path)] = str(error)
        return None


def _look(name: str, path: Path | None, panel: Panel, seen: dict[str, Seen], found: Comparison) -> Tensor | None:
    """The picture, noted in ``seen`` with what it gave; None where there is none or it gives nothing."""
    image = _read(path, found)
    if image is None:
        return None
    try:
        seen[name] = Seen(path, panel.features.embed(image)[0], _face(panel, image))
    except (ValueError, RuntimeError) as error:
        found.bad[str(path)] = f"{path}: {error}"
        return None
    return image


def _scored(subject: Subject, panel: Panel, path: Path, found: Comparison) -> ScoreTable | None:
    try:
        return score_pictures(subject, panel.scores)
    except ValueError as error:
        found.bad[str(path)] = str(error)
        return None


def _note(found: Comparison, name: str, table: ScoreTable | None) -> None:
    if table is None:
        return
    found.scores[name] = {score: float(values[0]) for score, values in table.values.items()}
    for score, reason in table.absent.items():
        reasons = found.absent.setdefault(score, {})
        reasons[reason] = reasons.get(reason, 0) + 1


def _face(panel: Panel, image: Tensor) -> Tensor | None:
    return None if panel.faces is None else face_vectors(panel.faces, image)[0]


def _row(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector[None]


def prompt_of(path: Path, prompt: str | None) -> tuple[str, ...] | None:
    """What the picture should show: the text file beside it, or ``prompt``, or None."""
    beside = path.with_suffix(".txt")
    if beside.is_file():
        prompt = beside.read_text(encoding="utf-8", errors="replace").strip()
    return (prompt,) if prompt else None


def people_of(seen: dict[str, Seen]) -> Tensor | None:
    """The number of each picture's person, [N], where the folder has a folder each person; else None."""
    if not all("/" in name for name in seen):
        return None
    people = [name.rsplit("/", 1)[0] for name in seen]
    numbers = {person: number for number, person in enumerate(sorted(set(people)))}
    return torch.tensor([numbers[person] for person in people])
