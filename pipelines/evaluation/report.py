"""What a comparison of folders found, as CSV, JSON and one HTML page that needs no other file."""

import base64
import csv
import io
import math
from collections.abc import Callable
from html import escape
from pathlib import Path

import torch

from ..files import write_json, write_text
from ..images import open_picture
from ..metrics.verification import EDGES
from .claims import half_interval
from .files import finite
from .folders import Comparison
from .plots import bins_of, histogram, scatter
from .scores import number
from .sets import BETTER, SetScores

SHOWN = 12  # pictures from either end of the order
THUMBNAIL = 160  # pixels
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --faint: #767676; --line: #d8d8d8; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #17181a; --faint: #9a9a9a; --line: #3a3c40; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 1100px; padding: 24px; }
h1 { font-size: 24px; } h2 { font-size: 18px; margin-top: 36px; } p.note { color: var(--faint); }
table { border-collapse: collapse; } td, th { padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line);
  text-align: left; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } .plots, .pictures { display: flex; flex-wrap: wrap; gap: 16px; }
svg { width: 420px; max-width: 100%; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg text.title { font-weight: 600; font-size: 13px; } svg .axis { stroke: var(--faint); }
figure { margin: 0; } figure img { width: 160px; } figcaption { font-size: 12px; max-width: 324px;
  overflow-wrap: anywhere; }
"""


def write_report(
    output: Path, found: Comparison, sets: SetScores, on_step: Callable[[str, int, int], None]
) -> dict[str, Path]:
    """Write pictures.csv, scores.json and report.html below ``output``; each appears whole or not at all."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    files = {name: output / name for name in ("pictures.csv", "scores.json", "report.html")}
    write_text(files["pictures.csv"], table_csv(found))
    write_json(files["scores.json"], as_json(found, sets))
    write_text(files["report.html"], page(found, sets, on_step))
    return files


def table_csv(found: Comparison) -> str:
    """A row each picture; an empty cell where it lacks a score."""
    text, columns = io.StringIO(), columns_of(found)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "has reference", *columns])
    for name, values in found.scores.items():
        cells = [values.get(column, math.nan) for column in columns]
        writer.writerow([_no_formula(name), name in found.real, *("" if math.isnan(x) else repr(x) for x in cells)])
    return text.getvalue()


def _no_formula(name: str) -> str:
    """Spreadsheets would run a name that begins like a formula."""
    return f"'{name}" if name[:1] in "=+-@" else name


def as_json(found: Comparison, sets: SetScores) -> dict:
    """Everything that was found, as JSON knows it: null for no number, "inf" for infinity."""
    summaries = {
        name: {key: finite(value) for key, value in summary(found, name).items()} for name in columns_of(found)
    }
    return {
        "folder": str(found.folder), "reference": str(found.reference), "complete": found.complete,
        "count": {"folder": len(found.made), "reference": len(found.real), "pairs": len(found.pairs)},
        "sets": {name: finite(value) for name, value in sets.values.items()},
        "summary": summaries,
        "pictures": {name: {key: finite(v) for key, v in values.items()} for name, values in found.scores.items()},
        "absent": {"pictures": found.absent, "sets": sets.absent}, "warnings": sets.warnings, "bad": found.bad,
    }  # fmt: skip


def columns_of(found: Comparison) -> list[str]:
    """The scores that at least one picture has, in their order."""
    had = {name for values in found.scores.values() for name in values}
    return [name for name in found.higher if name in had]


def summary(found: Comparison, column: str) -> dict[str, float]:
    """count, mean, half of its 95 % interval over pictures, median, and how many are infinite and left out of these."""
    values = torch.tensor([values[column] for values in found.scores.values() if column in values]).double()
    values = values[~values.isnan()]
    known = values[values.isfinite()]
    half = half_interval(known) if len(known) > 1 else math.nan
    # torch's own median is the lower one of the two in the middle.
    mean, median = (known.mean().item(), known.quantile(0.5).item()) if len(known) else (math.nan, math.nan)
    return {"count": len(values), "mean": mean, "interval": half, "median": median,
            "infinite": len(values) - len(known)}  # fmt: skip


# ---- the page


def page(found: Comparison, sets: SetScores, on_step: Callable[[str, int, int], None]) -> str:
    """The whole page; pictures are embedded small."""
    counts = f"{len(found.made)} pictures against {len(found.real)}, {len(found.pairs)} of them of equal names"
    unfinished = "" if found.complete else "<p><strong>Stopped before its end: this is what was done.</strong></p>"
    body = [
        "<h1>Likeness: folder against folder</h1>",
        f"<p>{_text(found.folder)} against {_text(found.reference)}: {counts}.</p>", unfinished,
        "<h2>The folders as wholes</h2>", _set_table(sets), _notes(sets.warnings),
        "<h2>Pictures against those of the same name</h2>", _picture_table(found), _absent(found, sets),
        "<h2>How they are distributed</h2>", f'<div class="plots">{"".join(plots(found, sets))}</div>',
        _pictures(found, on_step), _bad(found),
    ]  # fmt: skip
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Likeness: scores</title>'
    head = f"<head>{head}<style>{STYLE}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body>{"".join(body)}</body></html>\n'


def plots(found: Comparison, sets: SetScores) -> list[str]:
    """Every drawing of the page."""
    drawn = []
    for column in columns_of(found):
        edges, counts = bins_of([values[column] for values in found.scores.values() if column in values])
        better = "higher is better" if found.higher[column] else "lower is better"
        drawn.append(histogram(column, better, edges, {column: counts}))
    for which, (same, different) in sets.similarities.items():
        title = f"Identity similarity, {which}"
        series = {"same person": same.counts, "different people": different.counts}
        drawn.append(histogram(title, "cosine", EDGES, series))
    if sets.projection is not None:
        places = {"folder": sets.projection.one.tolist(), "reference": sets.projection.other.tolist()}
        drawn.append(scatter(f"t-SNE of {sets.projected}", places))
    return drawn


def _text(value) -> str:
    return escape(str(value))


def _set_table(sets: SetScores) -> str:
    rows = []
    for name, value in sets.values.items():
        better = next((better for start, better in BETTER.items() if name.startswith(start)), "")
        rows.append(f'<tr><td>{_text(name)}</td><td>{better}</td><td class="number">{number(value)}</td></tr>')
    head = '<tr><th>score</th><th>better</th><th class="number">value</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>" if rows else "<p>No score of the wholes.</p>"


def _picture_table(found: Comparison) -> str:
    heads, number_class = ("score", "better", "pictures", "mean", "± 95 %", "median"), ' class="number"'
    rows = []
    for column in columns_of(found):
        figures = summary(found, column)
        cells = [number(figures[key]) for key in ("mean", "interval", "median")]
        better = "higher" if found.higher[column] else "lower"
        infinite = f" ({figures['infinite']} infinite)" if figures["infinite"] else ""
        row = "".join(f'<td class="number">{cell}</td>' for cell in (f"{figures['count']}{infinite}", *cells))
        rows.append(f"<tr><td>{_text(column)}</td><td>{better}</td>{row}</tr>")
    head = "".join(f'<th{"" if text in heads[:2] else number_class}>{text}</th>' for text in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _notes(lines: list[str]) -> str:
    return "".join(f'<p class="note">{_text(line)}</p>' for line in lines)


def _absent(found: Comparison, sets: SetScores) -> str:
    lines = [f"No {name} for {count} of {len(found.made)} pictures: {reason}"
             for name, reasons in found.absent.items() for reason, count in reasons.items()]  # fmt: skip
    return _notes(lines + [f"No {name}: {reason}" for name, reason in sets.absent.items()])


def _bad(found: Comparison) -> str:
    rows = "".join(f"<tr><td>{_text(reason)}</td></tr>" for reason in found.bad.values())
    return f"<h2>Files that were left out</h2><table>{rows}</table>" if rows else ""


def _pictures(found: Comparison, on_step: Callable[[str, int, int], None]) -> str:
    """The pairs at both ends of the first score, or the first pictures where there is none."""
    column = next(iter(columns_of(found)), None)
    if column is None:
        groups = {"Pictures": list(found.made)[:SHOWN]}
    else:
        names = [name for name in found.scores if not math.isnan(found.scores[name].get(column, math.nan))]
        order = sorted(names, key=lambda name: found.scores[name][column], reverse=found.higher[column])
        best, rest = order[:SHOWN], order[SHOWN:]
        groups = {f"Best by {column}": best, f"Worst by {column}": rest[-SHOWN:][::-1]}
    total, done, parts = sum(map(len, groups.values())), 0, []
    for title, names in groups.items():
        figures = []
        for name in names:
            on_step("page", done, total)
            figures.append(_figure(found, name))
            done += 1
        if figures:
            parts.append(f'<h2>{_text(title)}</h2><div class="pictures">{"".join(figures)}</div>')
    on_step("page", total, total)
    return "".join(parts)


def _figure(found: Comparison, name: str) -> str:
    images = [f'<img alt="{title}" title="{title}" src="{_thumbnail(seen[name].path)}">'
              for title, seen in (("reference", found.real), ("picture", found.made)) if name in seen]  # fmt: skip
    scores = ", ".join(f"{_text(key)} {number(value)}" for key, value in found.scores.get(name, {}).items())
    return f"<figure>{' '.join(images)}<figcaption><strong>{_text(name)}</strong><br>{scores}</figcaption></figure>"


def _thumbnail(path: Path) -> str:
    picture = open_picture(path)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
