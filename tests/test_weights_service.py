"""External weights: the manifest, downloads from a hub on loopback with every fault, what is on the disk."""

import hashlib
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from likeness.pipelines.files import DiskFullError
from likeness.pipelines.weights import download as downloads
from likeness.pipelines.weights.download import DownloadError, download
from likeness.pipelines.weights.manifest import State, WeightFile, find, read_manifest, select, state
from loopback_hub import Hub

CONTENT = np.random.default_rng(0).bytes(700_001)
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()
WEIGHT = WeightFile(
    name="thing/part", purpose="For tests.", repository="owner/name", url=None, file="deep/thing.bin", revision="main",
    sha256=CHECKSUM, size=len(CONTENT), licence="MIT", commercial_use=True, methods=(), nodes=(), folder="likeness/x",
    save_as="thing.bin", unpack=(), source="",
)  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # what is not a whole chunk is lost at a break
    with Hub({"deep/thing.bin": CONTENT}) as served:
        yield served


def left_over(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", ["plain", "redirect", "small", "slow", "no size known"])
def test_a_file_arrives_whole_under_its_name(hub, tmp_path, way):
    hub.redirect, hub.small, hub.delay = way == "redirect", way == "small", 0.02 * (way == "slow")
    weight = replace(WEIGHT, size=None, sha256=None) if way == "no size known" else WEIGHT
    seen = []
    paths = download(weight, tmp_path, lambda done, total: seen.append((done, total)), hub.address)
    assert paths == [tmp_path / "likeness/x/thing.bin"]
    assert paths[0].read_bytes() == CONTENT
    assert left_over(tmp_path) == ["thing.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    before = len(hub.requests)
    assert download(weight, tmp_path, endpoint=hub.address) == paths
    assert len(hub.requests) == before


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, tmp_path):
    hub.cut_after = [200_000, 150_000]
    download(WEIGHT, tmp_path, endpoint=hub.address)
    ranges = [wanted for method, _, wanted in hub.requests if method == "GET"]
    assert ranges[0] is None
    assert 0 < int(ranges[1][6:-1]) <= 200_000 < int(ranges[2][6:-1]) <= 350_000


@pytest.mark.parametrize("ignore_ranges", [False, True])
def test_a_stopped_download_goes_on_in_another_run(hub, tmp_path, ignore_ranges):
    class Enough(Exception):
        pass

    def stop(done, total):
        if done >= 100_000:
            raise Enough

    with pytest.raises(Enough):
        download(WEIGHT, tmp_path, stop, hub.address)
    (partial,) = (tmp_path / "likeness/x").iterdir()
    kept = partial.stat().st_size
    assert 100_000 <= kept < len(CONTENT)
    assert state(WEIGHT, [tmp_path]) is State.MISSING
    hub.ignore_ranges = ignore_ranges
    seen = []
    (path,) = download(WEIGHT, tmp_path, lambda done, total: seen.append(done), hub.address)
    assert path.read_bytes() == CONTENT
    assert left_over(tmp_path) == ["thing.bin"]
    assert hub.requests[-1][2] == f"bytes={kept}-"
    assert seen[0] > kept or ignore_ranges


def test_the_beginning_of_an_older_version_is_not_continued(hub, tmp_path):
    weight = replace(WEIGHT, sha256=None, size=None)
    hub.cut_after = [100_000] * 20
    folder = tmp_path / "likeness/x"
    folder.mkdir(parents=True)
    (folder / ".thing.bin.0123456789ab.partial").write_bytes(b"older" * 1000)
    hub.cut_after = []
    (path,) = download(weight, tmp_path, endpoint=hub.address)
    assert path.read_bytes() == CONTENT
    assert left_over(tmp_path) == ["thing.bin"]


def test_an_address_that_says_nothing_of_its_content_is_loaded_anew(tmp_path):
    with Hub({"thing.bin": CONTENT}) as hub:
        facts = {"repository": None, "revision": None, "sha256": None, "size": None}
        weight = replace(WEIGHT, url=f"{hub.address}/cdn/thing.bin", **facts)

        def stop(done, total):
            raise InterruptedError

        with pytest.raises(InterruptedError):
            download(weight, tmp_path, stop)
        hub.files["thing.bin"] = CONTENT[::-1]
        (path,) = download(weight, tmp_path)
        assert path.read_bytes() == CONTENT[::-1]


def test_an_error_without_text_is_told_by_its_kind(hub, tmp_path, monkeypatch):
    def fail(*arguments):
        raise TimeoutError

    monkeypatch.setattr(downloads, "_get", fail)
    with pytest.raises(DownloadError, match="thing/part: TimeoutError"):
        download(WEIGHT, tmp_path, endpoint=hub.address)


def test_wrong_content_never_gets_the_name(hub, tmp_path):
    hub.lie = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(ValueError, match=f"checksum .* should have {CHECKSUM}.*removed"):
        download(WEIGHT, tmp_path, endpoint=hub.address)
    assert left_over(tmp_path) == []


def test_a_file_that_was_changed_upstream_is_not_loaded(hub, tmp_path):
    with pytest.raises(ValueError, match="is now another file .sha256 .*Update the pack"):
        download(replace(WEIGHT, sha256="f" * 64), tmp_path, endpoint=hub.address)
    with pytest.raises(ValueError, match="is now another file .size 700001, the manifest says 5"):
        download(replace(WEIGHT, size=5), tmp_path, endpoint=hub.address)
    assert [method for method, *_ in hub.requests] == ["HEAD", "HEAD"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ((404, "EntryNotFound"), "not there any more"),
        ((404, "RepoNotFound"), "not there any more"),
        ((403, "GatedRepo"), "licence accepted: do so at https://huggingface.co/owner/name"),
        ((500, ""), "server answered 500"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_way_by_hand(hub, tmp_path, status, message):
    hub.status = status
    place = tmp_path / "likeness/x/thing.bin"
    with pytest.raises(DownloadError, match=message) as caught:
        download(WEIGHT, tmp_path, endpoint=hub.address)
    assert f"save it as {place}" in str(caught.value)
    assert "https://huggingface.co/owner/name/resolve/main/deep/thing.bin" in str(caught.value)
    assert left_over(tmp_path) == []


def test_offline_says_which_file_goes_where(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="offline mode is on.*save it as .*thing.bin"):
        download(WEIGHT, tmp_path, endpoint=hub.address)
    assert hub.requests == []


def test_no_server_at_all(tmp_path):
    with Hub({}) as gone:
        pass
    with pytest.raises(DownloadError, match="thing/part: .*By hand"):
        download(WEIGHT, tmp_path, endpoint=gone.address)


def test_a_full_disk_is_known_before_anything_is_loaded(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(DiskFullError, match="thing/part needs .* free some space"):
        download(WEIGHT, tmp_path, endpoint=hub.address)
    assert [method for method, *_ in hub.requests] == ["HEAD"]


def test_two_at_once_do_not_mix(hub, tmp_path):
    errors = []

    def second(done, total):
        try:
            download(WEIGHT, tmp_path, endpoint=hub.address)
        except BlockingIOError as error:
            errors.append(str(error))

    (path,) = download(WEIGHT, tmp_path, second, hub.address)
    assert errors and all("in use by another process" in error for error in errors)
    assert path.read_bytes() == CONTENT


def archive_of(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def test_an_archive_becomes_its_members_flat_and_nothing_else(tmp_path):
    content = archive_of({"pack/pack/a.onnx": b"one", "../../evil.onnx": b"two", "b.onnx": b"three", "c.txt": b""})
    with Hub({"pack.zip": content}) as hub:
        weight = replace(
            WEIGHT, url=f"{hub.address}/cdn/pack.zip", repository=None, file="pack.zip", revision=None, sha256=None,
            size=len(content), save_as="pack.zip", unpack=("a.onnx", "b.onnx"),
        )  # fmt: skip
        paths = download(weight, tmp_path)
        assert [path.read_bytes() for path in paths] == [b"one", b"three"]
        assert left_over(tmp_path) == ["a.onnx", "b.onnx"]
        assert not list(tmp_path.parent.glob("evil*"))
        with pytest.raises(ValueError, match="the archive lacks d.onnx"):
            download(replace(weight, unpack=("a.onnx", "d.onnx")), tmp_path / "other")
        hub.files["pack.zip"] = content[:-30]
        with pytest.raises(ValueError, match="archive is damaged"):
            download(replace(weight, size=None), tmp_path / "third")


def test_state_tells_missing_damaged_and_right(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    place = second / "likeness/x/thing.bin"
    place.parent.mkdir(parents=True)
    assert state(WEIGHT, [first, second]) is State.MISSING
    place.write_bytes(CONTENT)
    assert find(WEIGHT, [first, second]) == [place]
    assert state(WEIGHT, [first, second]) is State.PRESENT
    assert state(WEIGHT, [first, second], checksums=True) is State.VERIFIED
    place.write_bytes(CONTENT[:-1] + b"x")
    assert state(WEIGHT, [first, second], checksums=True) is State.DAMAGED
    place.write_bytes(CONTENT[:9])
    assert state(WEIGHT, [first, second]) is State.DAMAGED


def test_a_damaged_file_is_replaced(hub, tmp_path):
    place = tmp_path / "likeness/x/thing.bin"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"0" * len(CONTENT))
    download(WEIGHT, tmp_path, endpoint=hub.address)
    assert place.read_bytes() == CONTENT


def test_the_manifest_reads_and_selects(tmp_path):
    weights = read_manifest()
    assert select(weights, []) == weights
    group = weights[0].group
    assert {weight.group for weight in select(weights, [group])} == {group}
    with pytest.raises(ValueError, match="no weights are called 'sdxll': did you mean"):
        select(weights, ["sdxll"])
    places = [(weight.folder, name) for weight in weights for name in weight.names]
    assert len(set(places)) == len(places)


def test_a_manifest_that_points_outside_is_refused(tmp_path):
    entry = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(WEIGHT).items()}
    file = tmp_path / "manifest.json"
    for change in ({"folder": "../up"}, {"save_as": "/etc/x"}, {"unpack": ["a/../../b"]}, {"folder": "C:x"}):
        file.write_text(json.dumps({"weights": [{**entry, **change}]}))
        with pytest.raises(ValueError, match="points outside of the models folder"):
            read_manifest(file)
    file.write_text(json.dumps({"weights": [{"name": "a"}]}))
    with pytest.raises(ValueError, match="entry 'a' has missing or unknown fields"):
        read_manifest(file)
