"""How fast masks are made: rows for the table of services, or alone: python tests/benchmarks/services_masks.py."""

from collections.abc import Callable, Iterator

import torch
from report import best_seconds, load_pack

SIZES = (256, 1024)
PICTURES = 4


def masks_rows() -> Iterator[tuple[str, str]]:
    """(service, throughput) of every kind of mask on people of the portrait world; the pack must be loaded."""
    for size in SIZES:
        for name, (pictures, make) in services(size).items():
            yield name, f"{pictures / best_seconds(make):.3g} pictures of {size}x{size} a second"


def services(size: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """By name, how many pictures a call works on, and the call."""
    from likeness.pipelines import masks
    from likeness.pipelines.portraits import render, sample_person
    from likeness.pipelines.portraits.scene import group_scene

    people = render([sample_person(0, index) for index in range(PICTURES)], size)
    pair = render(group_scene([sample_person(0, 1), sample_person(0, 2)]), size)
    image, faces, alpha = people.image, list(people.face_box), people.alpha
    of_all = {
        "foreground mask from faces (GrabCut)": lambda: masks.foreground_masks(image, faces),
        "clothing mask (GrabCut twice)": lambda: masks.clothing_masks(image, faces),
        "clothing mask, foreground given": lambda: masks.clothing_masks(image, faces, alpha),
        "face mask": lambda: masks.face_masks(image, faces),
        "rough mask to its contour": lambda: masks.refine_mask(image, alpha),
        "soften mask to edges": lambda: masks.soften(alpha, image, 4),
        "fill holes and keep the largest piece": lambda: masks.keep_piece(masks.fill_holes(alpha)),
        "band along the edge": lambda: masks.edge_band(alpha, 8, 8),
    }
    calls = {name: (PICTURES, call) for name, call in of_all.items()}
    return calls | {
        "two people split": (1, lambda: masks.split_people(pair.image, pair.alpha, list(pair.face_box))),
    }


if __name__ == "__main__":
    load_pack()
    torch.set_num_threads(1)
    for service, throughput in masks_rows():
        print(f"{service}: {throughput}")
