"""Tables of claims: rows of a method against each other, means over people with intervals, and what holds."""

import math
from collections.abc import Mapping

from torch import Tensor

# Scores by row and column, each [people, edits].
Found = Mapping[str, Mapping[str, Tensor]]
# name: (heading, whether higher is better)
Columns = Mapping[str, tuple[str, bool]]


def interval(values: Tensor) -> tuple[float, float]:
    """Mean of [people, edits] and half of its 95 % interval; edits of one person count as one observation."""
    people = values.mean(1)
    half = 1.96 * people.std().item() / math.sqrt(len(people)) if len(people) > 1 else math.inf
    return people.mean().item(), half


def claims_table(found: Found, columns: Columns) -> str:
    """Markdown: a row each variant, mean and 95 % interval."""
    heads = [f"{heading} {'↑' if higher else '↓'}" for heading, higher in columns.values()]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for row, scores in found.items():
        cells = ["{:.3f} ± {:.3f}".format(*interval(scores[name])) for name in columns]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(
    found: Found, columns: Columns, claim: str, better: str, worse: str, column: str, margin: float = 0.0
) -> str:
    """The claim that ``better`` beats ``worse`` in a column, in one line, with whether it holds here.

    Paired differences over people; ``margin``: a loss that still counts as none.
    """
    sign = 1 if columns[column][1] else -1
    gain, half = interval(sign * (found[better][column] - found[worse][column]))
    word = "holds" if gain - half > -margin else "DOES NOT HOLD" if gain + half < -margin else "not decided"
    return f"- {word}: {claim}; gain {gain:.3f} ± {half:.3f}"
