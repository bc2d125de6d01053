"""Tables of claims: rows of a method against each other, means over people with intervals, and what holds."""

import math
from collections.abc import Mapping

from torch import Tensor

from ..optional import need

# Scores by row and column, each [people, edits].
Found = Mapping[str, Mapping[str, Tensor]]
# name: (heading, whether higher is better)
Columns = Mapping[str, tuple[str, bool]]


def interval(values: Tensor) -> tuple[float, float]:
    """Mean of [people, edits] and half of its 95 % interval; edits of one person count as one observation."""
    people = values.mean(1)
    return people.mean().item(), half_interval(people)


def half_interval(values: Tensor) -> float:
    """Half of the 95 % interval of the mean of independent ``values`` [N], by Student's t; infinite for less than 2."""
    count = len(values)
    if count < 2:
        return math.inf
    quantile = need("scipy.stats", "scipy").t.ppf(0.975, count - 1).item()
    return quantile * values.std().item() / math.sqrt(count)


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
