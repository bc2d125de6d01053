"""Sheets of the portrait world, to be looked at: python tests/contact_sheets.py [names] [--size 128] [--output DIR]

Whoever changes the renderer looks at them before and after; no test sees that a face is unpleasant.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from comfyui_environment import load_script

load_script("pack").load_pack()

import torch  # noqa: E402
from likeness.pipelines.images import save_image  # noqa: E402
from likeness.pipelines.portraits import edited, group_scene, render, sample_costume, sample_person  # noqa: E402
from likeness.pipelines.portraits.lightings import PAPER_LIGHTINGS  # noqa: E402
from likeness.pipelines.portraits.parameters import COSTUMES, EXPRESSIONS, Pose  # noqa: E402

TURNS = [(0, 0, 0), (-60, 0, 0), (-30, 5, 0), (30, -12, 8), (60, 0, 0), (0, 18, 0), (0, -18, -10)]


def plain(index: int):
    """A person in everyday clothes, neutral, in the studio."""
    person = sample_person(1, index)
    return edited(person, expression="neutral", costume=sample_costume(1, index, "everyday"), lighting="studio")


def people() -> list[list]:
    return [[plain(8 * row + column) for column in range(8)] for row in range(4)]


def poses() -> list[list]:
    return [[edited(plain(40 + row), pose=Pose(yaw=yaw, pitch=pitch, roll=roll, turn=0.3 * yaw))
             for yaw, pitch, roll in TURNS] for row in range(4)]  # fmt: skip


def costumes() -> list[list]:
    return [[edited(plain(20 + row), costume=sample_costume(1, row, costume), expression=expression)
             for costume, expression in zip(COSTUMES, EXPRESSIONS, strict=True)] for row in range(4)]  # fmt: skip


def expressions() -> list[list]:
    return [[edited(plain(60 + row), pose=Pose(), expression=name) for name in EXPRESSIONS] for row in range(4)]


def lights() -> list[list]:
    names = list(PAPER_LIGHTINGS)
    return [[edited(plain(7 * row + 3), lighting=name) for name in part]
            for row in range(2) for part in (names[:8], names[7:15])]  # fmt: skip


def bodies() -> list[list]:
    return [[edited(sample_person(3, 6 * row + column, "body"), lighting="studio") for column in range(6)]
            for row in range(2)]  # fmt: skip


def groups() -> list[list]:
    faces, bodies = [plain(index) for index in (1, 2, 3)], [sample_person(3, index, "body") for index in (1, 2, 4)]
    return [[group_scene([edited(person, lighting="golden hour") for person in faces]),
             group_scene([edited(person, lighting="ocean sunset") for person in bodies])]]  # fmt: skip


SHEETS: dict[str, Callable[[], list[list]]] = {
    function.__name__: function for function in (people, poses, costumes, expressions, lights, bodies, groups)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(SHEETS)} (default: all)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side of each picture (default: 128)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for the sheets (default: output)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names or SHEETS:
        if name not in SHEETS:
            parser.error(f"there is no sheet {name!r}: choose from {', '.join(SHEETS)}.")
        rows = [torch.cat(list(render(row, options.size).image), dim=2) for row in SHEETS[name]()]
        save_image(torch.cat(rows, dim=1), options.output / f"{name}.png")
        print(f"Wrote {options.output / name}.png", flush=True)


if __name__ == "__main__":
    main()
