"""Scores of single picture files, each of its own size."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..images import load_image
from ..stop import Stopped
from .faces import face_vectors
from .folders import Panel, prompt_of
from .scores import ScoreTable, Subject, score_pictures


class FileScores:
    """scores: tables of one picture each, by file; bad: files that could not be scored, and why; ``complete`` is False
    where it was stopped before its end."""

    def __init__(self):
        self.scores: dict[str, ScoreTable] = {}
        self.bad: dict[str, str] = {}
        self.complete = False

    def text(self) -> str:
        """One table of all pictures; where a picture lacks a score that others have, "-"."""
        if not self.scores:
            return "No picture could be scored."
        tables = list(self.scores.values())
        missing = torch.tensor([torch.nan], dtype=torch.float64)
        names = [name for name in tables[0].higher if any(name in table.values for table in tables)]
        values = {name: torch.cat([table.values.get(name, missing) for table in tables]) for name in names}
        absent = {name: reason for name, reason in tables[0].absent.items() if name not in values}
        return ScoreTable(values, absent, tables[0].higher, tables[0].groups).text(list(self.scores))

    def as_json(self) -> dict:
        """By picture its scores and why it lacks others, the files that were left out, and whether this is all."""
        pictures = {
            name: {"scores": {key: finite(value[0]) for key, value in table.values.items()}, "absent": table.absent}
            for name, table in self.scores.items()
        }
        return {"pictures": pictures, "bad": self.bad, "complete": self.complete}


def finite(value) -> float | str | None:
    """A number as JSON knows it: None for none, "inf" for infinity."""
    value = float(value)
    return value if abs(value) < float("inf") else None if value != value else str(value)


def score_files(
    files: Sequence[Path], panel: Panel, source: Path | None = None, prompt: str | None = None,
    source_prompt: str | None = None, mask: Path | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> FileScores:  # fmt: skip
    """Score every picture file. A bad one is listed and left out; ``ValueError`` for a bad source or mask.

    source, source_prompt, mask (of the clothes): the same for all pictures. ``on_step(done, total)`` may raise
    ``Stopped``: then what was found so far is returned.
    """
    before = None if source is None else load_image(source)
    clothes = None if mask is None else load_image(mask).mean(1)
    identity = face_vectors(panel.faces, before) if panel.faces and before is not None else None
    found = FileScores()
    for done, file in enumerate(files):
        try:
            on_step(done, len(files))
            picture = load_image(file)
            faces = face_vectors(panel.faces, picture) if panel.faces else None
            subject = Subject(picture, before, prompt_of(file, prompt), (source_prompt,) if source_prompt else None,
                              clothes, faces=faces, identity=identity)  # fmt: skip
            found.scores[str(file)] = score_pictures(subject, panel.scores)
        except ValueError as error:
            found.bad[str(file)] = str(error)
        except Stopped:
            return found
    found.complete = True
    return found
