"""What IDetail trains on: takes of people, and the pairs that are made of them.

Every data set of this method (``world.py``, ``photo_data.py``) holds one picture an item: ``png``, its foreground
``mask.png``, its prompt ``txt``, and a ``json`` with ``person`` (who), ``role`` and ``prompt`` (its name).
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..generation.dataset import DatasetError
from ..generation.reader import DatasetReader
from ..images import load_image
from ..training.image_folder import cover_crop, scan_folder

ORIGINAL, INPUT, TARGET = "original", "input", "target"
# "outputs": the paper's, a person's generated input against its generated target; "direct": the photo against the
# generated target, the baseline that fails (figure 9), because the generator does not quite know the person.
PAIRINGS = ("outputs", "direct")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEAD = 24  # bytes, which end with the picture's size


@dataclass(frozen=True)
class Take:
    """One picture of a data set: its place there, a name that stays, who is on it, what was asked for, ``(H, W)``."""

    place: int
    key: str
    person: str
    role: str
    caption: str
    size: tuple[int, int]


class Takes:
    """The takes of a data set, by number."""

    def __init__(self, folder: Path, partial: bool = False):
        """Raises ``ValueError`` where the folder holds no data set, or, unless ``partial``, an unfinished one."""
        self.folder, self.reader = folder, DatasetReader(folder, partial)
        self.list: list[Take] = []
        self.licences: set[str] = set()

    @property
    def fingerprint(self) -> str:
        """What tells this data set from all others."""
        return self.reader.dataset.fingerprint

    def made_by(self) -> str:
        """The recipe and its settings, which hold no paths, in words for a file."""
        made = json.loads((self.folder / "dataset.json").read_text(encoding="utf-8"))["settings"]
        told = ", ".join(f"{name} {value}" for name, value in made.items())
        return f" ({self.reader.dataset.recipe}: {told})"

    def read(self, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[list[str], list[str]]:
        """Read captions and truth, of pictures the head; returns what is wrong, and what is to be noted.

        ``progress(done, total)`` may raise to stop. Raises ``ValueError`` for a data set of another kind.
        """
        self.list, errors = [], []
        for place in range(len(self.reader)):
            try:
                self.list.append(self._take(place))
            except DatasetError as damage:
                errors.append(str(damage))
            progress(place + 1, len(self.reader))
        return errors, []

    def _take(self, place: int) -> Take:
        files = self.reader.files(place, only=("txt", "json"))
        key, heads = self.reader.read_bytes(place, only=("png", "mask.png"), most=PNG_HEAD)
        lacking = [name for name in ("png", "mask.png", "txt", "json") if name not in {**files, **heads}]
        if lacking:
            raise ValueError(
                f"{self.folder}: item {key} has no {lacking[0]}: give a data set that `dataset_cli.py generate "
                "idetail` or `generate idetail_portraits` made."
            )
        for name, head in heads.items():
            if len(head) < PNG_HEAD or not head.startswith(PNG_SIGNATURE):
                raise self.reader.damage(key, name, "it does not begin as a PNG")
        truth = files["json"]
        if "licence" in truth:
            self.licences.add(truth["licence"])
        return Take(place, key, str(truth["person"]), truth["role"], files["txt"], picture_size(heads["png"]))

    def files(self, take: Take) -> dict:
        """The decoded files of a take by extension. Raises ``ValueError`` for one that is damaged."""
        return self.reader.files(take.place)

    def pairs(self, pairing: str = PAIRINGS[0], people: int | None = None) -> list[tuple[Take, Take]]:
        """(input, target) of the first ``people`` persons (None: of all), see ``pairs_of``."""
        of_person: dict[str, list[Take]] = {}
        for take in self.list:
            of_person.setdefault(take.person, []).append(take)
        if people is not None and people > len(of_person):
            raise ValueError(f"{self.folder} shows {len(of_person)} people, {people} were asked for: generate more.")
        chosen = list(of_person.values())[:people]
        pairs = [pair for takes in chosen for pair in pairs_of(takes, pairing)]
        if not pairs and pairing == "direct":
            raise ValueError(f"{self.folder} holds no photos themselves: generate it with --direct.")
        return pairs


class CaptionedFolder:
    """A folder of pictures with captions as takes of nobody in particular, for stage 1."""

    def __init__(self, folder: Path):
        self.folder, self.fingerprint = folder, "folder"
        self.list: list[Take] = []
        self.licences: set[str] = set()

    def read(self, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[list[str], list[str]]:
        """Look at every picture; returns what is wrong, and what is to be noted. ``progress`` may raise to stop."""
        found = scan_folder(self.folder, progress)
        errors, self._paths = list(found.errors), []
        for picture in found.pictures:
            if picture.caption is None:
                errors.append(f"{picture.path} has no caption: write {picture.path.with_suffix('.txt').name}.")
                continue
            self._paths.append(picture.path)
            place, name = len(self.list), picture.path.name
            self.list.append(Take(place, picture.checksum, name, TARGET, picture.caption, picture.size))
        return errors, found.warnings

    def made_by(self) -> str:
        """Nothing is known of it."""
        return ""

    def files(self, take: Take) -> dict[str, Tensor]:
        """The picture, and the empty mask that stage 1 knows."""
        picture = load_image(self._paths[take.place])[0]
        return {"png": picture, "mask.png": torch.zeros_like(picture[:1])}


def picture_size(data: bytes) -> tuple[int, int]:
    """``(H, W)`` from the head of a PNG."""
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def fitted(image: Tensor, bucket: tuple[int, int]) -> Tensor:
    """A picture or mask ``[C, H, W]`` in 0..1, resized to cover ``bucket`` ``(H, W)`` and cropped around its centre."""
    if tuple(image.shape[1:]) == tuple(bucket):
        return image
    resized, (top, left) = cover_crop(tuple(image.shape[1:]), bucket)
    image = interpolate(image[None], size=resized, mode="bicubic", antialias=True)[0].clamp(0, 1)
    return image[:, top : top + bucket[0], left : left + bucket[1]]


def pairs_of(takes: Iterable[Take], pairing: str) -> list[tuple[Take, Take]]:
    """All (input, target) of one person's takes: 60 x 7 of the paper's 67 prompts, or 1 x 7 of the direct pairing."""
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing is {pairing!r}: use one of {', '.join(PAIRINGS)}.")
    takes = list(takes)
    role = INPUT if pairing == "outputs" else ORIGINAL
    inputs, targets = ([take for take in takes if take.role == wanted] for wanted in (role, TARGET))
    return list(product(inputs, targets))
