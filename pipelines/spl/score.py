"""How much of a source's structure an edit kept, in the paper's measures."""

from dataclasses import dataclass

import torch

from ..images import match_pair
from ..metrics import fsim, gmsd, ssim
from .losses import structure_loss, structure_map

# Root-mean-square local-linear error that the difference picture shows as white: 25 of 255 grey levels.
_WHITE = 0.1
MIN_SIDE = 16


@dataclass(frozen=True)
class StructureScores:
    """Scores of a batch, each ``[B]``; ``difference`` ``[B, 3, H, W]`` in 0..1 shows where structure was lost.

    spl: L_SPL times 100, the unit of the paper's tables; lower is better. gmsd: lower is better. ssim, fsim: higher.
    """

    spl: torch.Tensor
    ssim: torch.Tensor
    gmsd: torch.Tensor
    fsim: torch.Tensor
    difference: torch.Tensor

    def table(self, names: tuple[str, ...] | None = None) -> str:
        """One line a picture; without ``names`` they are numbered and several are followed by their mean."""
        columns = torch.stack([value.cpu() for value in (self.spl, self.ssim, self.gmsd, self.fsim)], dim=1)
        rows = list(zip(names or map(str, range(1, len(columns) + 1)), columns, strict=True))
        if names is None and len(rows) > 1:
            rows.append(("mean", columns.mean(dim=0)))
        width = max(len("picture"), *(len(name) for name, _ in rows))
        lines = [f"{'picture':>{width}} {'SPL x100':>9} {'SSIM':>7} {'GMSD':>7} {'FSIM':>7}"]
        lines += [f"{name:>{width}} {row[0]:9.4f} {row[1]:7.4f} {row[2]:7.4f} {row[3]:7.4f}" for name, row in rows]
        return "\n".join(lines)


@torch.no_grad()
def score_structure(image: torch.Tensor, source: torch.Tensor) -> StructureScores:
    """Compare ``image`` with ``source``, both ``[B, 3, H, W]`` in 0..1 of one size, batches equal or 1 against many.

    Sides of at least 16 pixels. Raises ``ValueError`` for images that do not fit.
    """
    image, source = match_pair(image, source, MIN_SIDE)
    source = source.to(image.device)
    return StructureScores(
        spl=spl_x100(image, source),
        ssim=ssim(image, source),
        gmsd=gmsd(image, source),
        fsim=fsim(image, source),
        difference=_heat((structure_map(image, source) / 2).sqrt() / _WHITE),
    )


def spl_x100(image: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """L_SPL of two [B, 3, H, W] in 0..1 times 100, [B]; 0 is perfect."""
    return 100 * structure_loss(image, source).clamp(min=0)


# For ``evaluation``, which knows no method: the function by name, and whether higher is better.
SCORES = {"SPL x100": (spl_x100, False)}


def _heat(value: torch.Tensor) -> torch.Tensor:
    """``[B, 1, H, W]`` to black, red, yellow, white ``[B, 3, H, W]``."""
    return torch.cat([3 * value, 3 * value - 1, 3 * value - 2], dim=1).clamp(0, 1)
