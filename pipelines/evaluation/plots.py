"""Drawings as SVG text, to stand inside a page: histograms and maps of points."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 28, 40  # what titles and axes take
# Told apart in every kind of colour vision (Okabe and Ito), in the order they are used.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def histogram(title: str, unit: str, edges: Sequence[float], series: dict[str, Sequence[int]]) -> str:
    """Counts [K] by name between ``edges`` [K + 1], each series as shares of its own sum."""
    shares = {name: [count / max(sum(counts), 1) for count in counts] for name, counts in series.items()}
    highest = max((share for values in shares.values() for share in values), default=0) or 1
    low, high = edges[0], edges[-1]

    def place(value: float, share: float) -> tuple[float, float]:
        x = LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - share / highest * (HEIGHT - TOP - BOTTOM)

    shapes = []
    for (name, values), colour in zip(shares.items(), COLOURS, strict=False):
        corners = [place(low, 0)]
        for start, end, share in zip(edges, edges[1:], values, strict=False):
            corners += [place(start, share), place(end, share)]
        corners.append(place(high, 0))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        shapes.append(
            f'<polygon points="{points}" fill="{colour}" fill-opacity="0.35" stroke="{colour}" stroke-width="1">'
            f"<title>{escape(name)}</title></polygon>"
        )
    ticks = [_tick(place(value, 0)[0], f"{value:.3g}") for value in _round_values(low, high)]
    top = f'<text class="tick" x="{LEFT - 4}" y="{TOP + 4}" text-anchor="end">{highest:.0%}</text>'
    return _figure(title, unit, [*shapes, *ticks, top], list(series) if len(series) > 1 else [])


def bins_of(values: Sequence[float]) -> tuple[list[float], list[int]]:
    """Edges [K + 1] and counts [K] of the finite values, K by Rice's rule; a single value stands in the middle."""
    finite = [value for value in values if math.isfinite(value)]
    count = max(8, math.ceil(2 * len(finite) ** (1 / 3)))
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
        low, high = low - 0.5, high + 0.5
    edges = [low + (high - low) * place / count for place in range(count + 1)]
    counts = [0] * count
    for value in finite:
        counts[min(int((value - low) / (high - low) * count), count - 1)] += 1
    return edges, counts


def scatter(title: str, series: dict[str, Sequence[Sequence[float]]]) -> str:
    """Points (x, y) by name, in a square map without axes."""
    points = [point for places in series.values() for point in places]
    lows, highs = ([f(point[axis] for point in points) for axis in (0, 1)] for f in (min, max))
    span = max(highs[0] - lows[0], highs[1] - lows[1], 1e-9)
    side = HEIGHT - TOP - BOTTOM + 16
    shapes = []
    for (name, places), colour in zip(series.items(), COLOURS, strict=False):
        for x, y in places:
            at = LEFT + (x - lows[0]) / span * side, TOP + (y - lows[1]) / span * side
            shapes.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="2.2" fill="{colour}" fill-opacity="0.6">'
                          f"<title>{escape(name)}</title></circle>")  # fmt: skip
    return _figure(title, "", shapes, list(series), axis=False)


def _figure(title: str, unit: str, shapes: list[str], names: list[str], axis: bool = True) -> str:
    legend = []
    for number, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        x = LEFT + 130 * number
        legend.append(f'<rect x="{x}" y="{HEIGHT - 14}" width="9" height="9" fill="{colour}"/>'
                      f'<text class="tick" x="{x + 14}" y="{HEIGHT - 6}">{escape(name)}</text>')  # fmt: skip
    line = f'<line class="axis" x1="{LEFT}" y1="{HEIGHT - BOTTOM}" x2="{WIDTH - RIGHT}" y2="{HEIGHT - BOTTOM}"/>'
    label = f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(unit)}</text>'
    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>', *shapes, *([line] if axis else []), label]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join([*parts, *legend]) + "</svg>"
    )  # fmt: skip


def _tick(x: float, text: str) -> str:
    y = HEIGHT - BOTTOM
    return (
        f'<line class="axis" x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 4}"/>'
        f'<text class="tick" x="{x:.1f}" y="{y + 15}" text-anchor="middle">{text}</text>'
    )


def _round_values(low: float, high: float) -> list[float]:
    """Some four to eight round numbers between both."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 8)
    first = math.ceil(low / step - 1e-9)
    values = [round(number * step, 12) for number in range(first, first + 10)]
    return [value for value in values if value <= high * (1 + 1e-9) + 1e-12]
