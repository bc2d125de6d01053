"""The pack loads cleanly in a real ComfyUI, and its client reports what happens there."""

import io
from pathlib import Path

import numpy as np
import pytest
from comfyui_server import PACK_NAME, ComfyRunError, ComfyServer, ComfyServerError, find_comfyui, find_python
from PIL import Image

WIDTH, HEIGHT, COLOR = 48, 40, 0x336699


def saved_color(**changes):
    """A stock graph in API format: one image of one colour, saved."""
    image = {"width": WIDTH, "height": HEIGHT, "batch_size": 1, "color": COLOR, **changes}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "color"}},
    }


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_object_info_describes_nodes(server):
    assert "SaveImage" in server.object_info()
    assert "color" in server.object_info("EmptyImage")["input"]["required"]


def test_object_info_of_an_unknown_node_names_it(server):
    with pytest.raises(KeyError, match="NoSuchNode"):
        server.object_info("NoSuchNode")


def test_pack_loads_without_failure_or_warning(server):
    log = server.log().partition("To see the GUI")[0]
    assert PACK_NAME in log
    assert "IMPORT FAILED" not in log
    ours = [line for line in log.splitlines() if PACK_NAME in line or "Likeness" in line]
    assert [line for line in ours if "WARNING" in line or "ERROR" in line] == []


def test_stock_graph_returns_its_image_exactly(server):
    outputs = server.run(saved_color())
    picture = pixels(server.fetch_image(**outputs["2"]["images"][0]))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert (picture == (0x33, 0x66, 0x99)).all()


def test_uploaded_image_comes_back_exactly(server, tmp_path):
    original = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(original).save(tmp_path / "noise.png")
    name = server.upload_image(tmp_path / "noise.png", "uploaded.png")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copy"}},
    }
    outputs = server.run(graph)
    assert np.array_equal(pixels(server.fetch_image(**outputs["2"]["images"][0])), original)


def test_progress_names_the_nodes_that_run(server):
    seen = []
    server.run(saved_color(color=1), on_progress=lambda node, done, total: seen.append((node, done, total)))
    assert {node for node, _, _ in seen} == {"1", "2"}
    assert all(0 <= done <= total for _, done, total in seen)


@pytest.mark.parametrize(
    ("graph", "node"),
    [
        (saved_color(width=-1), "1"),
        ({**saved_color(), "1": {"class_type": "NoSuchNode", "inputs": {}}}, "1"),
        ({"7": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}, "7"),
    ],
    ids=["value out of range", "unknown node", "missing input"],
)
def test_invalid_graph_is_refused_by_node(server, graph, node):
    with pytest.raises(ComfyRunError, match="refused") as caught:
        server.run(graph)
    assert caught.value.node == node


def test_half_valid_graph_is_refused(server):
    graph = {**saved_color(color=2), "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}}
    with pytest.raises(ComfyRunError, match=r"node 3 \(SaveImage\)"):
        server.run(graph)


def test_failing_node_is_named_and_the_server_serves_on(server, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    graph = saved_color()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": server.upload_image(tmp_path / "broken.png")}}
    with pytest.raises(ComfyRunError, match=r"node 1 \(LoadImage\) failed: .*UnidentifiedImageError") as caught:
        server.run(graph)
    assert caught.value.node == "1"
    assert server.run(saved_color(color=3))["2"]["images"]


def slow_graph(color):
    """Twenty blurs in a row, to have time to stop it: ComfyUI looks for an interrupt before each node."""
    graph = saved_color(width=1024, height=1024, color=color)
    blur = {"blur_radius": 31, "sigma": 9.0}
    for index in range(20):
        source = str(9 + index) if index else "1"
        graph[str(10 + index)] = {"class_type": "ImageBlur", "inputs": {"image": [source, 0], **blur}}
    graph["2"]["inputs"]["images"] = ["29", 0]
    return graph


def test_interrupt_from_the_progress_callback_ends_the_run(server):
    def stop_at_first_blur(node, done, total):
        if node == "10":
            server.interrupt()

    with pytest.raises(ComfyRunError, match="interrupted"):
        server.run(slow_graph(color=4), on_progress=stop_at_first_blur)
    assert server.run(saved_color(color=5))["2"]["images"]


def test_time_limit_stops_the_graph(server):
    with pytest.raises(ComfyRunError, match=r"longer than 0\.01 s"):
        server.run(slow_graph(color=6), limit=0.01)
    assert server.run(saved_color(color=7))["2"]["images"]


def test_start_that_fails_shows_the_log_and_leaves_nothing(comfyui_dir, server, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(ComfyServerError, match="no-such-option"),
        ComfyServer(comfyui_dir, server.python, arguments=["--no-such-option"]),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    assert (server.pack / "__init__.py").exists()


def test_comfyui_is_found_around_the_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    checkout = tmp_path / "comfy-host" / "custom_nodes" / "pack"
    (tmp_path / "comfy-host" / "comfy").mkdir(parents=True)
    assert find_comfyui(checkout) is None
    (tmp_path / "comfy-host" / "main.py").touch()
    assert find_comfyui(checkout) == tmp_path / "comfy-host"
    assert find_comfyui(tmp_path / "elsewhere") is None


def test_wrong_settings_are_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="COMFYUI_DIR"):
        find_comfyui(tmp_path)
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "python"))
    with pytest.raises(ValueError, match="COMFYUI_PYTHON"):
        find_python(tmp_path)
