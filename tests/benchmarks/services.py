"""Throughput of the shared services, on one core.

    python tests/benchmarks/services.py [SECTION ...] [--readme]

A section is a file services_<section>.py beside this one, with a function <section>_rows that yields pairs of a
service and its throughput. --readme writes each section's table into README, between the marks of
benchmark:services-<section>; those of other sections stay.
"""

import argparse
import importlib
import platform
from pathlib import Path

import torch
from report import load_pack, write_into_readme


def sections() -> list[str]:
    return sorted(file.stem.removeprefix("services_") for file in Path(__file__).parent.glob("services_*.py"))


def table(rows: list[tuple[str, str]]) -> str:
    lines = ["| service | throughput |", "|---|---|", *(f"| {service} | {text} |" for service, text in rows)]
    return "\n".join([*lines, "", f"One core ({platform.machine()}), no GPU; torch {torch.__version__}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("section", nargs="*", default=sections(), help=f"of {', '.join(sections())} (default: all)")
    parser.add_argument("--readme", action="store_true", help="write the tables into README.md")
    options = parser.parse_args()
    unknown = set(options.section) - set(sections())
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}: choose from {', '.join(sections())}")
    torch.set_num_threads(1)
    load_pack()
    for section in options.section:
        rows = []
        for row in getattr(importlib.import_module(f"services_{section}"), f"{section}_rows")():
            print(f"{row[0]:55} {row[1]}", flush=True)
            rows.append(row)
        if options.readme:
            write_into_readme(f"services-{section}", table(rows))


if __name__ == "__main__":
    main()
