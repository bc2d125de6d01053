"""Quickstart as a person starts it, in our own pipeline."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from likeness.pipelines.images import load_image, save_image
from likeness.pipelines.spl import structure_loss
from likeness.pipelines.spl.damage import Damage, lossy_edit

SCRIPT = Path(__file__).resolve().parents[1] / "nodes" / "quickstart.py"


def quickstart(*arguments, home):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COMFYUI_")}
    environment.update(HOME=str(home), USERPROFILE=str(home))
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=300)


def test_a_portrait_is_edited_by_text_with_and_without_structure_preservation(tmp_path):
    done = quickstart(home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "No ComfyUI found" in done.stdout and "our own pipeline" in done.stdout
    output = tmp_path / "output"
    portrait = load_image(output / "portrait.png")
    for name in ("red_and_blue_light", "golden_hour", "laughing"):
        plain, kept = (load_image(output / f"{name}{ending}.png") for ending in ("", "_structure"))
        assert structure_loss(kept, portrait) < 0.3 * structure_loss(plain, portrait)
        assert (kept - portrait).abs().mean() > 0.01  # it is an edit, not the portrait again
    assert load_image(output / "comparison.png").shape == (1, 3, 256, 512)
    assert (output / "scores.txt").read_text() in done.stdout
    shown = load_image(output / "relit.png")
    assert shown.shape == (1, 3, 128, 5 * 128) and torch.equal(shown[..., :128], portrait)
    pantone = load_image(output / "relit_pantone.png")
    sides = pantone[..., 8:24].mean((0, 2, 3)) - pantone[..., -24:-8].mean((0, 2, 3))
    assert sides[0] > 0.1 and sides[2] < -0.1  # red light from the left, blue from the right


def test_the_default_photo_is_refined(tmp_path):
    done = quickstart("--job", "refine", home=tmp_path)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "output"
    photo, edit, refined = (load_image(output / f"{name}.png") for name in ("photo", "edit", "refined"))
    assert photo.shape == (1, 3, 512, 512)
    assert structure_loss(refined, photo) < 0.1 * structure_loss(edit, photo)
    assert load_image(output / "comparison.png").shape == (1, 3, 1024, 1536)
    table = (output / "scores.txt").read_text()
    assert table in done.stdout
    assert f"{100 * structure_loss(refined, photo).item():.4f}" in table


def test_a_photo_of_ones_own(tmp_path):
    photo = torch.rand(3, 90, 61, generator=torch.Generator().manual_seed(0))
    save_image(photo, tmp_path / "mine.png")
    done = quickstart(tmp_path / "mine.png", "--output", tmp_path / "out", "--host", "pipeline", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_image(tmp_path / "out" / "refined.png").shape == (1, 3, 90, 61)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jpg"], "missing.jpg: no such file"),
        (["note.txt"], "note.txt is not an image file"),
        (["tiny.png"], "tiny.png is 9x9.*at least 16"),
        (["--host", "comfyui"], "No ComfyUI found"),
    ],
)
def test_bad_input_ends_with_one_line_and_no_output(tmp_path, arguments, message):
    (tmp_path / "note.txt").write_text("no picture")
    save_image(torch.zeros(3, 9, 9), tmp_path / "tiny.png")
    done = quickstart(*arguments, home=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(message, done.stderr)
    assert not (tmp_path / "output").exists()


def test_damage_is_repeatable_and_real():
    photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lossy_edit(photo), lossy_edit(photo))
    assert not torch.equal(lossy_edit(photo), lossy_edit(photo, Damage(seed=1)))
    graded = lossy_edit(photo, Damage(warp=0, blur=0.01, noise=0))
    assert structure_loss(lossy_edit(photo), photo) > 3 * structure_loss(graded, photo)
