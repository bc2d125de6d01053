"""The best pictures of a batch by a score, and pictures with their scores written below."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..images import from_uint8

LETTERS = 1 / 16  # height of a line of text, as a part of the picture's shorter side
SMALLEST, LARGEST = 10, 40  # pixels


def best(values: Tensor, count: int, higher: bool) -> list[int]:
    """Places of the ``count`` best of scores [B], the best one first; equal ones in their order, NaN after all others.

    All of them where there are fewer. Raises ``ValueError`` where no score is a number or count is below 1.
    """
    if count < 1:
        raise ValueError(f"{count} pictures are asked for: give at least 1.")
    if values.ndim != 1 or values.isnan().all():
        raise ValueError(f"none of {values.numel()} scores is a number: there is nothing to choose by.")
    scores = [-value if higher else value for value in values.tolist()]
    return sorted(range(len(scores)), key=lambda place: (math.isnan(scores[place]), scores[place]))[:count]


def best_of_each(values: Tensor, lengths: Sequence[int], count: int, higher: bool) -> list[tuple[int, int]]:
    """(rank from 1, place) of the ``count`` best of each contest, contest after contest; scores as ``best`` has them.

    lengths: how many of ``values`` belong to each contest. One in which no score is a number keeps its first pictures.
    """
    order, found, start = best(values, len(values), higher), [], 0
    if count < 1:
        raise ValueError(f"{count} pictures are asked for: give at least 1.")
    for length in lengths:
        found += enumerate([place for place in order if start <= place < start + length][:count], 1)
        start += length
    return found


def labelled(pictures: Tensor, lines: Sequence[Sequence[str]]) -> Tensor:
    """Pictures [B, 3, H, W] in 0..1 with lines of text below each, [B, 3, H + strip, W]; the picture is untouched.
    A fourth channel is alpha: the text is opaque.

    What is too long for a line goes on in the next one, word by word.
    """
    from PIL import Image, ImageDraw, ImageFont

    width = pictures.shape[-1]
    size = round(min(max(SMALLEST, LETTERS * min(pictures.shape[-2:])), LARGEST))
    font, step = ImageFont.load_default(size), round(1.4 * size)
    wrapped = [[part for line in of_one for part in wrap(line, font.getlength, width - size)] for of_one in lines]
    height = step * max(map(len, wrapped), default=0) + step // 2
    made = []
    for picture, of_one in zip(pictures, wrapped, strict=True):
        strip = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(strip)
        for number, line in enumerate(of_one):
            draw.text((size // 2, step // 4 + number * step), line, fill="black", font=font)
        strip = from_uint8(np.asarray(strip.convert("RGBA")))[0, : len(picture)]
        made.append(torch.cat([picture, strip.to(picture)], dim=1))
    return torch.stack(made)


def wrap(text: str, length: Callable[[str], float], room: float) -> list[str]:
    """``text`` in lines of at most ``room`` by ``length``, broken between words; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and length(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
