"""The Weights node: what is there, what is not, and a download into ComfyUI's own folders."""

import comfy.model_management
import folder_paths
import pytest
from likeness.nodes.weights import Weights
from likeness.pipelines.weights.manifest import read_manifest
from loopback_hub import Hub

WEIGHT = next(
    weight for weight in read_manifest() if weight.repository and weight.sha256 is None and weight.size is None
)
CONTENT = b"weights" * 50_000


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    with Hub({WEIGHT.file: CONTENT}) as hub:
        address = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        yield hub


def test_nothing_is_loaded_unasked_and_the_error_says_what_to_do(models, hub):
    with pytest.raises(ValueError, match="Weights: .* is missing. Switch download on. By hand: get https://"):
        Weights.execute(WEIGHT.name, download=False)
    assert hub.requests == []


def test_a_download_ends_in_comfyuis_folder_and_shows_its_licence(models, hub):
    before = Weights.fingerprint_inputs(WEIGHT.name, True)
    path, status = Weights.execute(WEIGHT.name, download=True).args
    assert path == str(models / WEIGHT.folder / WEIGHT.save_as)
    assert (models / WEIGHT.folder / WEIGHT.save_as).read_bytes() == CONTENT
    assert WEIGHT.licence in status
    assert Weights.fingerprint_inputs(WEIGHT.name, True) != before
    count = len(hub.requests)
    assert Weights.execute(WEIGHT.name, download=True).args[0] == path
    assert len(hub.requests) == count


def test_it_can_be_interrupted_and_goes_on(models, hub):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        Weights.execute(WEIGHT.name, download=True)
    assert Weights.execute(WEIGHT.name, download=True).args[0].endswith(WEIGHT.save_as)


def test_extra_model_paths_are_looked_through(models, tmp_path_factory, monkeypatch):
    kind = WEIGHT.folder.partition("/")[0]
    extra = tmp_path_factory.mktemp("extra")
    place = extra / WEIGHT.folder / WEIGHT.save_as
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(extra / kind)], {".safetensors"}))
    assert Weights.execute(WEIGHT.name, download=False).args[0] == str(place)
