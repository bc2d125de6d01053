"""Reading and writing of picture files, and bad files."""

import numpy as np
import pytest
import torch
from likeness.pipelines.images import check_image, check_mask, load_image, save_image, to_uint8
from PIL import Image


def picture(path, mode="RGB", size=(20, 30), **options):
    array = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(array)
    (image if mode == "RGBA" else image.convert("RGB").convert(mode)).save(path, **options)
    return path


def test_png_survives_reading_and_writing_exactly(tmp_path):
    loaded = load_image(picture(tmp_path / "a.png"))
    assert loaded.shape == (1, 3, 30, 20)
    save_image(loaded[0], tmp_path / "b.png")
    assert torch.equal(load_image(tmp_path / "b.png"), loaded)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_rounds_to_the_nearest_grey_level():
    levels = torch.tensor([0.0, 0.4, 0.6, 254.4, 254.6, 255.0]) / 255
    assert to_uint8(levels.expand(3, 1, 6))[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(picture(tmp_path / "a.jpg", exif=exif)).shape == (1, 3, 20, 30)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    assert load_image(picture(tmp_path / "a.png", mode)).shape == (1, 3, 30, 20)


def test_an_opaque_alpha_channel_is_dropped(tmp_path):
    array = np.full((30, 20, 4), 255, np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape == (1, 3, 30, 20)


def test_bad_files_are_named(tmp_path):
    text = tmp_path / "note.txt"
    text.write_text("no picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(picture(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()[:2000])
    transparent = picture(tmp_path / "transparent.png", "RGBA")
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(deep)
    for path, message in (
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "no such file"),
        (text, "is not an image file"),
        (empty, "is not an image file"),
        (cut, "cannot be read as an image"),
        (transparent, "transparent parts: flatten"),
        (deep, "more than 8 bits"),
    ):
        with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
            load_image(path)


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "missing" / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("side", [48, 200])
def test_the_overshoot_of_a_bicubic_resize_is_clamped(side):
    photo = torch.zeros(1, 3, 96, 96)
    photo[..., 30:60, 20:70] = 1
    resized = torch.nn.functional.interpolate(photo, size=(side, side), mode="bicubic")
    assert resized.min() < -0.02 and resized.max() > 1.02
    assert torch.equal(check_image(resized, "image"), resized.clamp(0, 1))
    assert torch.equal(check_mask(resized[:, 0], (side, side), 1), resized[:, :1].clamp(0, 1))
    with pytest.raises(ValueError, match="image has values from -1 to 1: expected 0 to 1"):
        check_image(photo * 2 - 1, "image")
    with pytest.raises(ValueError, match="image has values from 0 to 255"):
        check_image(photo * 255, "image")
