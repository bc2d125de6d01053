"""What IDetail trains on: takes of people, and the pairs that are made of them.

Every data set of this method (``world.py``, ``photo_data.py``) holds one picture an item: ``png``, its foreground
``mask.png``, its prompt ``txt``, and a ``json`` with ``person`` (who), ``role`` and ``prompt`` (its name).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..generation.reader import DatasetReader
from ..generation.recipe import decode

ORIGINAL, INPUT, TARGET = "original", "input", "target"
# "outputs": the paper's, a person's generated input against its generated target; "direct": the photo against the
# generated target, the baseline that fails (figure 9), because the generator does not quite know the person.
PAIRINGS = ("outputs", "direct")


@dataclass(frozen=True)
class Take:
    """One picture of a data set: its place there, a name that stays, who is on it and what was asked for."""

    place: int
    key: str
    person: str
    role: str
    caption: str


class Takes:
    """The takes of a data set, by number."""

    def __init__(self, folder: Path):
        """Raises ``ValueError`` where the folder holds no data set, or one of another kind."""
        self.folder, self.reader = folder, DatasetReader(folder)
        self.list: list[Take] = []

    @property
    def fingerprint(self) -> str:
        """What tells this data set from all others."""
        return self.reader.dataset.fingerprint

    def read(self, progress: Callable[[int, int], None] = lambda done, total: None) -> "Takes":
        """Read captions and truth; ``progress(done, total)`` may raise to stop."""
        for place in range(len(self.list), len(self.reader)):
            key, files = self.reader.read_bytes(place)
            lacking = [name for name in ("png", "mask.png", "txt", "json") if name not in files]
            if lacking:
                raise ValueError(
                    f"{self.folder}: item {key} has no {lacking[0]}: give a data set that `dataset_cli.py generate "
                    "idetail` or `generate idetail_portraits` made."
                )
            truth = decode("json", files["json"])
            self.list.append(Take(place, key, str(truth["person"]), truth["role"], decode("txt", files["txt"])))
            progress(place + 1, len(self.reader))
        return self

    def files(self, take: Take) -> dict:
        """The decoded files of a take by extension."""
        _, files = self.reader.read_bytes(take.place)
        return {name: decode(name, data) for name, data in files.items()}

    def pairs(self, pairing: str = PAIRINGS[0], people: int | None = None) -> list[tuple[Take, Take]]:
        """(input, target) of the first ``people`` persons (None: of all), see ``pairs_of``."""
        of_person: dict[str, list[Take]] = {}
        for take in self.list:
            of_person.setdefault(take.person, []).append(take)
        if people is not None and people > len(of_person):
            raise ValueError(f"{self.folder} shows {len(of_person)} people, {people} were asked for: generate more.")
        chosen = list(of_person.values())[:people]
        return [pair for takes in chosen for pair in pairs_of(takes, pairing)]


def pairs_of(takes: Iterable[Take], pairing: str) -> list[tuple[Take, Take]]:
    """All (input, target) of one person's takes: 60 x 7 of the paper's 67 prompts, or 1 x 7 of the direct pairing."""
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing is {pairing!r}: use one of {', '.join(PAIRINGS)}.")
    takes = list(takes)
    role = INPUT if pairing == "outputs" else ORIGINAL
    inputs, targets = ([take for take in takes if take.role == wanted] for wanted in (role, TARGET))
    return list(product(inputs, targets))
