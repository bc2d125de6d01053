"""Weight files of every kind: read as data, converted once, refused where they would run something."""

import logging
import os
import pickle
import zipfile

import pytest
import torch
from likeness.pipelines.weights import tensors
from likeness.pipelines.weights.tensors import load_tensors
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def equal(found, wanted=TENSORS):
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("suffix", [".bin", ".pth", ".ckpt"])
def test_a_pickle_is_converted_once_and_anew_when_it_changes(tmp_path, suffix, new_format, monkeypatch):
    path = tmp_path / f"model{suffix}"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=new_format)
    equal(load_tensors(path))
    converted = tmp_path / f"model{suffix}.safetensors"
    equal(load_file(converted))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", None)
        equal(load_tensors(path))
    changed = {"c": torch.ones(3)}
    torch.save(changed, path)
    os.utime(path, ns=(1, 1))
    equal(load_tensors(path), changed)
    equal(load_file(converted), changed)


def test_nested_dictionaries_and_shared_memory(tmp_path):
    whole = torch.arange(8.0)
    content = {"image_proj": {"latents": whole[:4], "same": whole}, "ip_adapter": {"1.to_k": whole.reshape(2, 4).T},
               "best_accuracy": 0.5, "names": ["x"], "list": [whole[:2]]}  # fmt: skip
    torch.save(content, tmp_path / "adapter.bin")
    wanted = {"image_proj.latents": whole[:4], "image_proj.same": whole, "ip_adapter.1.to_k": whole.reshape(2, 4).T,
              "list.0": whole[:2]}  # fmt: skip
    equal(load_tensors(tmp_path / "adapter.bin"), wanted)
    equal(load_tensors(tmp_path / "adapter.bin"), wanted)  # now from the conversion


class Hostile:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("way", ["zip", "old torch", "bare pickle"])
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, way):
    path, place = tmp_path / "evil.pth", tmp_path / "it_ran"
    if way == "bare pickle":
        path.write_bytes(pickle.dumps({"a": Hostile(place)}))
    else:
        torch.save({"a": torch.ones(1), "b": Hostile(place)}, path, _use_new_zipfile_serialization=way == "zip")
    said = "evil.pth (holds more than tensors .*mkdir.* refused|is damaged or)"
    with pytest.raises(ValueError, match=said) as caught:
        load_tensors(path)
    assert "weights_only" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["evil.pth"]
    torch.load(path, weights_only=False) if way != "bare pickle" else pickle.loads(path.read_bytes())
    assert place.is_dir()  # it is hostile indeed


def test_what_is_no_weight_file_is_said(tmp_path):
    cases = {"cut.safetensors": "damaged", "cut.pth": "damaged", "text.txt": "no weight file", "list.pt": "no tensors"}
    save_file(TENSORS, tmp_path / "cut.safetensors")
    torch.save(TENSORS, tmp_path / "cut.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    (tmp_path / "text.txt").write_text("x")
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    for name, message in cases.items():
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            load_tensors(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(ValueError, match="zip.pt is damaged"):
        load_tensors(tmp_path / "zip.pt")
    torch.save(TENSORS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "old.bin").write_bytes((tmp_path / "old.bin").read_bytes()[:200])
    (tmp_path / "page.bin").write_text("<html>not found</html>")
    for name in ("old.bin", "page.bin"):
        with pytest.raises(ValueError, match=f"{name} is damaged or no file of torch"):
            load_tensors(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        load_tensors(tmp_path / "gone.pth")


def test_a_file_of_the_same_name_is_not_overwritten(tmp_path, caplog):
    torch.save(TENSORS, tmp_path / "model.pth")
    save_file({"mine": torch.ones(1)}, tmp_path / "model.pth.safetensors")
    with caplog.at_level(logging.WARNING):
        equal(load_tensors(tmp_path / "model.pth"))
    assert "it stays, and the pickle is read" in caplog.text
    equal(load_file(tmp_path / "model.pth.safetensors"), {"mine": torch.ones(1)})


def test_a_folder_that_cannot_be_written_costs_the_conversion_only(tmp_path, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise SafetensorError("I/O error: Permission denied")

    monkeypatch.setattr(tensors, "save_file", fail)
    torch.save(TENSORS, tmp_path / "model.pth")
    with caplog.at_level(logging.WARNING):
        equal(load_tensors(tmp_path / "model.pth"))
    assert "could not be kept as safetensors" in caplog.text
