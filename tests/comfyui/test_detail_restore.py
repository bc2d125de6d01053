"""Detail Restore inside ComfyUI: what it hands on, and the same through a running server."""

import io

import comfy.model_management
import numpy as np
import pytest
import torch
from comfyui_server import ComfyRunError
from likeness.nodes import detail_restore
from likeness.nodes.detail_restore import DetailRestore
from likeness.pipelines.idetail.restoration import METHODS, RestorationSettings, restore_detail
from likeness.pipelines.images import load_image, save_image, to_uint8
from PIL import Image


def pictures(batch=1, height=61, width=83):
    """A soft edit and its original, IMAGE ``[B, H, W, 3]``."""
    draw = torch.Generator().manual_seed(batch)
    original = torch.rand(batch, height, width, 3, generator=draw)
    smooth = torch.nn.functional.avg_pool2d(original.movedim(-1, 1), 5, 1, 2, count_include_pad=False).movedim(1, -1)
    return 0.7 * smooth + 0.1, original


def near(image, picture):
    """An IMAGE is the picture, up to the rounding of batches."""
    torch.testing.assert_close(image, picture.movedim(1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_hands_on_what_the_pipeline_makes(method):
    edited, original = pictures(3)
    mask = torch.zeros(1, 61, 83)
    mask[:, :30] = 1
    made = DetailRestore.execute(edited, original[:1], method, 0.8, 1.5, mask).result[0]
    chosen = RestorationSettings(method, 0.8, 1.5)
    wanted = restore_detail(edited.movedim(-1, 1), original[:1].movedim(-1, 1), mask, chosen)
    near(made, wanted)
    assert torch.equal(made[:, 30:], edited[:, 30:])
    assert (made - edited).abs().max() > 0.05
    assert torch.equal(DetailRestore.execute(edited, original[:1], method, 0.0, 1.5).result[0], edited)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"original": pictures(2)[1]}, "original image is a batch of 2, which does not fit a batch of 3"),
     ({"original": pictures(1, 80, 40)[1]}, "original image is 40x80, edited image is 83x61"),
     ({"original": torch.rand(1, 61, 83, 4)}, "original image has 4 channels"),
     ({"mask": torch.ones(1, 10, 50)}, "mask is 50x10, image is 83x61"),
     ({"image": torch.full((1, 61, 83, 3), float("nan"))}, "edited image has 15189 values that are NaN")],
    ids=["batch", "shape", "alpha", "mask", "nan"],
)  # fmt: skip
def test_errors_name_the_node_and_the_mend(change, message):
    edited, original = pictures(3)
    inputs = {"image": edited, "original": original, "method": METHODS[0], "strength": 1.0, "detail_size": 2.0}
    with pytest.raises(ValueError, match=f"Detail Restore: {message}"):
        DetailRestore.execute(**{**inputs, **change})


@pytest.mark.parametrize("cell", [8, 16, 32])
def test_original_and_mask_are_cut_as_vae_encode_cut_them(cell):
    edited, original = pictures(height=90, width=205)
    mask = torch.rand(1, 90, 205, generator=torch.Generator().manual_seed(4))
    top, left = 90 % cell // 2, 205 % cell // 2
    rows, columns = slice(top, top + 90 // cell * cell), slice(left, left + 205 // cell * cell)
    edited, cut = edited[:, rows, columns], original[:, rows, columns]
    made, wanted = (
        DetailRestore.execute(edited, source, METHODS[0], 1.0, 2.0, region).result[0]
        for source, region in ((original, mask), (cut, mask[:, rows, columns]))
    )
    assert torch.equal(made, wanted)


def test_one_picture_at_a_time_is_restored_and_an_interrupt_ends_it(monkeypatch):
    edited, original = pictures(3)
    seen = []

    def restore(picture, *rest, **more):
        seen.append(len(picture))
        if len(seen) > 3:
            comfy.model_management.interrupt_current_processing()
        return restore_detail(picture, *rest, **more)

    monkeypatch.setattr(detail_restore, "restore_detail", restore)
    made = DetailRestore.execute(edited, original, METHODS[0], 1.0, 2.0).result[0]
    wanted = restore_detail(edited.movedim(-1, 1), original.movedim(-1, 1))
    near(made, wanted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        DetailRestore.execute(edited, original, METHODS[0], 1.0, 2.0)
    assert seen == [1] * 4


def test_runs_in_a_real_comfyui(server, tmp_path):
    files = {"edit.png": pictures()[0], "photo.png": pictures()[1]}
    for name, image in files.items():
        save_image(image[0].movedim(-1, 0), tmp_path / name)
        server.upload_image(tmp_path / name, f"detail_{name}")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "detail_edit.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "detail_photo.png"}},
        "3": {"class_type": "LikenessDetailRestore",
              "inputs": {"image": ["1", 0], "original": ["2", 0], "method": METHODS[0], "strength": 1.0,
                         "detail_size": 2.0}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "detail"}},
    }  # fmt: skip
    outputs = server.run(graph)
    png = np.asarray(Image.open(io.BytesIO(server.fetch_image(**outputs["4"]["images"][0]))).convert("RGB")).astype(int)
    ours = restore_detail(load_image(tmp_path / "edit.png"), load_image(tmp_path / "photo.png"))
    assert np.abs(png - to_uint8(ours[0])).max() <= 1
    graph["3"]["inputs"]["strength"] = 3.0
    with pytest.raises(ComfyRunError, match="strength"):
        server.run(graph)
