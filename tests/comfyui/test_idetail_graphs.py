"""The shipped graphs of IDetail with the embedded model, as they are, in a running ComfyUI."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from likeness.pipelines.images import from_uint8, load_image
from likeness.pipelines.spl import structure_loss
from PIL import Image

WORKFLOWS = Path(__file__).resolve().parents[2] / "examples_workflows"
PHOTO = load_image(WORKFLOWS / "input" / "likeness_portrait.png")
SHADE = 1.01 / 255


class Run:
    """What a graph gave, by the titles of its nodes."""

    def __init__(self, server, name: str):
        self.server = server
        self.graph = json.loads((WORKFLOWS / f"{name}_api.json").read_text(encoding="utf-8"))
        self.outputs = server.run(self.graph)

    def pictures(self, title: str) -> torch.Tensor:
        """All pictures of a node ``[N, 3, H, W]``."""
        (node,) = [number for number, content in self.graph.items() if content["_meta"]["title"] == title]
        files = [self.server.fetch_image(**image) for image in self.outputs[node]["images"]]
        return torch.cat([from_uint8(np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))) for file in files])


@pytest.fixture(scope="module")
def run(server):
    for path in sorted((WORKFLOWS / "input").glob("likeness_portrait*.png")):
        server.upload_image(path)
    return lambda name: Run(server, name)


@pytest.fixture(scope="module")
def relit(run):
    return run("relight_embedded")


def test_a_portrait_is_relit(relit):
    mask, picture = relit.pictures("Who stays")[0, 0], relit.pictures("Relit")
    # The forehead and the wall beside it, as a person reads them off the photo.
    assert mask[40, 66] > 0.9 and mask[20, 10] < 0.1
    assert picture.shape == PHOTO.shape
    # Red light comes from one side, blue light from the other.
    left, right = picture[0, :, :, :30].mean((1, 2)), picture[0, :, :, 98:].mean((1, 2))
    assert left[0] > 2 * left[2] and right[2] > 2 * right[0]


def test_light_and_background_change_alone_or_together(run):
    ran = run("studio_effect_embedded")
    both, light, background = (
        ran.pictures(title) for title in
        ("Studio effect and virtual background", "Studio effect alone", "Virtual background alone")
    )  # fmt: skip
    assert len(both) == len(light) == len(background) == 7
    mask = ran.pictures("Who stays")[0, 0]
    person, wall = mask > 0.999, mask < 0.001
    assert person.float().mean() > 0.2 and wall.float().mean() > 0.4
    for changed, kept in ((light, wall), (background, person)):
        assert (changed - PHOTO)[..., kept].abs().max() <= SHADE
        assert (changed - both)[..., person if kept is wall else wall].abs().max() <= SHADE
    apart = [(both[i] - both[j]).abs().mean() for i in range(7) for j in range(i)]
    assert min(apart) > 0.01, "each prompt gives a picture of its own"


def test_the_best_of_four_keeps_the_structure(run, relit):
    ran = run("relight_keep_structure_embedded")
    four, best = ran.pictures("All four"), ran.pictures("Relit, the best one")
    (text,) = (shown["text"][0] for shown in ran.outputs.values() if "CLIP score" in str(shown.get("text")))
    values = [float(line.split()[1]) for line in text.splitlines()[1:5]]
    assert (best - four[values.index(max(values))]).abs().max() <= SHADE
    head = (..., slice(24, 100), slice(44, 92))
    kept, plain = (
        structure_loss(picture[head], PHOTO[head]).mean() for picture in (best, relit.pictures("Relit"))
    )  # fmt: skip
    assert kept < 0.3 * plain
