"""Recipes that cost nothing, for the tests of the data engine; `dataset_cli.py generate tile_recipes.py:Tiles`."""

# As recipes of others may have it: the types of their settings are texts then.
from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from likeness.pipelines.configuration import option
from likeness.pipelines.generation import Absent, Rejected

FLAWS = ("none", "reject", "absent", "raise", "full", "kill", "hang")
COLORS, SHAPES = ("red", "green", "blue"), ("plain", "striped")


@dataclass(frozen=True)
class TilesSettings:
    """Noisy tiles."""

    side: int = option(6, "side of a tile in pixels")
    rejects: float = option(0.3, "part of the attempts that is rejected", minimum=0, maximum=1)
    seconds: float = option(0.0, "time an attempt takes")
    bulk: int = option(0, "bytes of padding in every item")
    flaw: str = option("none", "what goes wrong at item 5", choices=FLAWS)
    notes: Path | None = option(None, "a path, which does not count")
    places: tuple[Path, ...] = option((), "paths, which do not count")


class Tiles:
    name = "tiles"
    summary = "noisy tiles"
    version = 1
    Settings = TilesSettings
    count = None
    inputs = ""

    def __init__(self, settings: TilesSettings, device: str = "cpu"):
        if settings.side < 1:
            raise ValueError(f"--side is {settings.side}: it must be at least 1.")
        self.settings = settings

    def parameters(self, item: int, seed: int) -> dict:
        return {"item": item, "level": (seed % 1000) / 1000}

    def make(self, parameters: dict, seed: int) -> dict:
        time.sleep(self.settings.seconds)
        if parameters["item"] == 5:
            self._show_flaw()
        if parameters["level"] < self.settings.rejects:
            raise Rejected("level too low (--rejects)" if seed % 2 else "odd one out")
        noise = torch.rand(3, self.settings.side, self.settings.side, generator=torch.Generator().manual_seed(seed))
        files = {"png": noise, "mask.png": noise[:1], "txt": f"tile of level {parameters['level']}, größer"}
        files["npz"] = {"noise": noise, "level": torch.tensor(parameters["level"])}
        return {**files, "bin": bytes(self.settings.bulk), "json": {"mean": round(noise.mean().item(), 4)}}

    def _show_flaw(self) -> None:
        if self.settings.flaw == "reject":
            raise Rejected("never good enough (--flaw)")
        if self.settings.flaw == "absent":
            raise Absent("no such tile (--flaw)")
        if self.settings.flaw == "raise":
            raise RuntimeError("item 5 is beyond me")
        if self.settings.flaw == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.settings.flaw == "hang":
            time.sleep(1000)
        if self.settings.flaw == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


class Grid(Tiles):
    """A recipe of a fixed number of items: every colour with every shape."""

    name = "grid"
    count = len(COLORS) * len(SHAPES)

    def parameters(self, item: int, seed: int) -> dict:
        return {**super().parameters(item, seed), "color": COLORS[item // 2], "shape": SHAPES[item % 2]}
