"""How fast and how good finding faces is: rows for the table of services.

Alone: python tests/benchmarks/services_faces.py [--photo FILE ...] [--drawn FOLDER], which also finds the faces of the
astronaut, of InsightFace's group photo and of others, and draws them.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from report import best_seconds, load_pack

PORTRAITS, SIDE, CROPS = 32, 256, 64


def faces_rows() -> Iterator[tuple[str, str]]:
    """(service, throughput or quality) of the backend that needs no download; the pack must be loaded."""
    from likeness.pipelines.embedded import SHIPPED
    from likeness.pipelines.embedded.face_detector import load_face_detector
    from likeness.pipelines.faces import align_faces
    from likeness.pipelines.faces.cascade import Cascade
    from likeness.pipelines.faces.portrait_world import find_portrait_faces
    from likeness.pipelines.images import example_photo
    from likeness.pipelines.portraits import render, sample_person

    network = load_face_detector(SHIPPED / "face_detector")
    detectors = {"cascade": Cascade().detect, "detector": lambda image: find_portrait_faces(network, image)}
    photo, truth = example_photo()[0], render([sample_person(31, number) for number in range(PORTRAITS)], SIDE)
    for name, detect in detectors.items():
        rate = 1 / best_seconds(lambda detect=detect: detect(photo), 1, time.process_time)
        yield f"faces: {name}, 512x512 photo", f"{rate:.2g} pictures a second"
        found = [detect(image) for image in truth.image]
        for least in (0.5, 0.3):
            yield f"faces: {name}, portrait world, score {least} and more", quality(found, truth, least)
    points = truth.landmarks[:1, 0, :5].expand(CROPS, -1, -1)
    images = truth.image[:1].expand(CROPS, -1, -1, -1)
    for size in (112, 224):
        rate = CROPS / best_seconds(lambda size=size: align_faces(images, points, size), 3, time.process_time)
        yield f"faces: aligned crops of {size}x{size}", f"{rate:.3g} a second"
    yield from embedder_rows()


def embedder_rows() -> Iterator[tuple[str, str]]:
    """The embedded embedder, where its weights are."""
    from likeness.pipelines.faces import BackendSettings, Face, load_backend

    backend = load_backend("embedded", BackendSettings(Path(), device="cpu"))
    images, face = torch.rand(1, 3, 128, 128), Face((40, 30, 90, 100), 1).with_landmarks()
    try:
        taken = best_seconds(lambda: backend.embed(images, [[face] * CROPS]), 1, time.process_time)
    except ValueError:
        yield "faces: embedded embedder", "not measured: its weights are not there"
    else:
        yield "faces: embedded embedder", f"{CROPS / taken:.3g} faces a second"


def quality(detected, truth, least: float) -> str:
    """What was detected in rendered portraits, one face each, against the exact box and landmarks."""
    from likeness.pipelines.faces.cascade import box_overlap

    overlaps, errors, others = [], [], 0
    for every, box, points in zip(detected, truth.face_box[:, 0], truth.landmarks[:, 0, :5], strict=True):
        found = [face for face in every if face.score >= least]
        hits = [face for face in found if box_overlap(face.box, box.tolist()) > 0.4]
        others += len(found) - len(hits[:1])
        if hits:
            overlaps.append(box_overlap(hits[0].box, box.tolist()))
            error = (hits[0].with_landmarks().landmarks - points).norm(dim=1).mean()
            errors.append(float(error / (points[1] - points[0]).norm()))
    count = len(overlaps)
    text = f"{count} of {len(truth.image)} found, {others} places that are none"
    if not count:
        return text
    return (
        f"{text}; overlap with the true box {sum(overlaps) / count:.2f}, landmarks off by {sum(errors) / count:.2f} of "
        "the eyes' distance"
    )


def photos(files: list[Path], drawn: Path | None) -> Iterator[tuple[str, str]]:
    """What is found in photographs, which have no truth to compare with: look at the drawings."""
    import insightface
    from likeness.pipelines.faces import BackendSettings, find_faces, load_backend
    from likeness.pipelines.faces.draw import draw_faces
    from likeness.pipelines.images import example_photo, load_image, save_image

    group = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    pictures = {"astronaut": example_photo()} | {file.stem: load_image(file) for file in (group, *files)}
    backend = load_backend("embedded", BackendSettings(Path(), device="cpu"))
    for name, picture in pictures.items():
        faces = find_faces(backend, picture, embed=False)
        if drawn:
            drawn.mkdir(parents=True, exist_ok=True)
            save_image(draw_faces(picture, faces)[0], drawn / f"{name}.png")
        yield f"faces found in {name}", str(faces.count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photo", type=Path, nargs="*", default=[], help="more photos")
    parser.add_argument("--drawn", type=Path, help="folder for the photos with the faces drawn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_pack()
    for service, result in (*photos(options.photo, options.drawn), *faces_rows()):
        print(f"{service:55} {result}")


if __name__ == "__main__":
    main()
