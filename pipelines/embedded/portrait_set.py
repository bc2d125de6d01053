"""Portrait data sets as training data: what every task of this package does the same way."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from ..configuration import option
from ..files import atomic_folder, replace_folder
from ..generation.reader import DatasetReader
from ..training.task import Example, Scan, Source

SIDE = 128  # pixels of the portraits
# Landmarks between which an expression shows, and how far around them, in heights of the face.
FEATURES = (
    ("left eye", "left brow"), ("right eye", "right brow"),
    ("left mouth corner", "right mouth corner", "upper lip", "lower lip"),
)  # fmt: skip
AROUND = 0.08


@dataclass(frozen=True)
class DataSettings:
    """Where the portraits are; made by ``dataset_cli.py generate portraits``."""

    data: Path = option(help="data set of portraits to train on")
    held_out: Path = option(help="data set of another population, to validate on")


class PortraitSet:
    """A data set of the recipe ``portraits``: pictures, captions, truth."""

    def __init__(self, folder: Path):
        """Raises ``ValueError`` where the folder holds no such data set, or an unfinished one."""
        self.folder, self.reader = folder, DatasetReader(folder)
        if self.reader.dataset.recipe != "portraits":
            raise ValueError(f"{folder} was made by the recipe {self.reader.dataset.recipe!r}: give one of portraits.")
        made = self._settings()
        if (made["size"], made["view"]) != (SIDE, "portrait"):
            raise ValueError(
                f"{folder} holds pictures of {made['size']} pixels, view {made['view']!r}: the embedded models want "
                f"portraits of {SIDE}, which is what `generate portraits` makes unless told otherwise."
            )
        self.keys: list[str] = []
        self.captions: list[str] = []
        self.truth: list[dict] = []

    @property
    def population(self) -> int:
        """The seed of its people."""
        return self._settings()["population"]

    def _settings(self) -> dict:
        return json.loads((self.folder / "dataset.json").read_text(encoding="utf-8"))["settings"]

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, progress: Callable[[int, int], None] = lambda done, total: None) -> "PortraitSet":
        """Read all captions and truth; ``progress(done, total)`` may raise to stop."""
        for index in range(len(self.captions), len(self)):
            files = self.reader.files(index, only=("txt", "json"))
            self.keys.append(self.reader.key(index))
            self.captions.append(files["txt"])
            self.truth.append(files["json"])
            progress(index + 1, len(self))
        return self

    def picture(self, index: int) -> Tensor:
        """[3, H, W] in -1..1. Raises ``ValueError`` for one that is damaged."""
        return self.reader.files(index, only=("png",))["png"] * 2 - 1

    def pictures(self, indices) -> Tensor:
        """[B, 3, H, W] in -1..1."""
        return torch.stack([self.picture(index) for index in indices])


class PortraitTask:
    """The part of ``training.task.Task`` that is the same for all embedded models."""

    def __init__(self, settings, seed: int = 0):
        self.settings, self.seed = settings, seed

    def scan(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Scan:
        self.portraits = PortraitSet(self.settings.data).read(progress)
        self.held_out = PortraitSet(self.settings.held_out).read()
        if self.portraits.population == self.held_out.population:
            raise ValueError(
                f"--held-out {self.settings.held_out} shows the same people as --data (population "
                f"{self.held_out.population}): generate it with another --population."
            )
        return Scan([self._example(index) for index in range(len(self.portraits))], [], [])

    def _example(self, index: int) -> Example:
        return Example(f"portrait {index}", (SIDE, SIDE), self.sources(index), payload=index)

    def sources(self, index: int) -> dict[str, Source]:
        """What of this portrait is encoded beforehand."""
        return {}

    @contextmanager
    def encoders(self, kind: str) -> Iterator[None]:
        yield

    def encoder_hash(self, kind: str) -> str:
        raise KeyError(kind)

    def encode(self, source: Source) -> dict[str, Tensor]:
        raise KeyError(source.kind)

    def release_encoders(self) -> None:
        return

    def describe(self) -> dict[str, str]:
        return {
            "data": f"{len(self.portraits)} portraits of population {self.portraits.population}",
            "held_out": f"{len(self.held_out)} portraits of population {self.held_out.population}",
            "licence": "Apache-2.0",
        }

    def export(self, folder: Path, name: str, weights: dict[str, Tensor], facts: dict[str, str]) -> list[Path]:
        target, fresh = folder / name, folder / f".{name}.new"
        if target.exists() and not any(target.glob("*/config.json")):
            raise ValueError(f"{target} is there and is no export of a model: choose another --name.")
        shutil.rmtree(fresh, ignore_errors=True)
        with atomic_folder(fresh) as temporary:
            self.write(temporary, weights, facts)
        replace_folder(fresh, target)
        return [target]

    def write(self, folder: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
        """Write the components of the model into ``folder``."""
        raise NotImplementedError


def shifted(picture: Tensor, most: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A picture [3, H, W] moved by up to ``most`` pixels, its border repeated; and the move [2] as (x, y)."""
    top, left = torch.randint(0, 2 * most + 1, (2,), generator=draw).tolist()
    height, width = picture.shape[1:]
    padded = pad(picture[None], [most] * 4, mode="replicate")[0]
    return padded[:, top : top + height, left : left + width], torch.tensor([most - left, most - top])


def face_weights(truth: dict, face: float, features: float, cell: int = 1) -> Tensor:
    """How much cells of ``cell`` pixels count, [1, H, W]: 1, plus ``face`` in the face's box, plus ``features`` where
    eyes with their brows, and the mouth, are. A cell counts as its most important pixel does.
    """
    x0, y0, x1, y1 = (round(edge) for edge in truth["face_box"])
    weight, middles, around = torch.ones(SIDE, SIDE), torch.arange(SIDE) + 0.5, AROUND * (y1 - y0)
    weight[y0:y1, x0:x1] += face
    feature = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for names in FEATURES:
        points = torch.tensor([truth["landmarks"][name] for name in names])
        columns, rows = (
            (middles > along.min() - around) & (middles < along.max() + around) for along in points.unbind(1)
        )
        feature |= rows[:, None] & columns
    return max_pool2d(torch.where(feature, weight + features, weight)[None], cell)


def without_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def batches(count: int, size: int) -> Iterator[range]:
    """The numbers below ``count`` in runs of ``size``."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
