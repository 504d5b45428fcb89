"""The folder of downloaded repositories: what says that one of them is complete."""

from pathlib import Path

import pytest

from mflux_api.hub.cache import HubCache, Marker
from tests.support.disk_calls import record_disk_calls

MARKER = Marker(repo="owner/model", revision="main", commit="c0ffee", files={"model_index.json": 2})


def test_marker_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = HubCache(tmp_path)
    cache.claim(MARKER.repo)
    file = _download(cache)
    calls = record_disk_calls(monkeypatch)
    cache.complete(MARKER)
    [marker] = (cache.repository(MARKER.repo) / ".mflux-api").glob("complete@*.json")
    calls.check_synced_before_named(marker, folder_too=True)
    named = calls.calls.index(("rename", marker.stat().st_ino))
    for path in (file.resolve(), file.parent, file.resolve().parent, file.parent.parent, cache.repository(MARKER.repo)):
        assert ("fsync", path.stat().st_ino) in calls.calls[:named], f"{path.name} may be lost and its mark not"


def test_repositorys_folder_and_our_mark_in_it_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_disk_calls(monkeypatch)
    cache = HubCache(tmp_path)
    cache.claim(MARKER.repo)
    repository = cache.repository(MARKER.repo)
    named = calls.calls.index(("rename", repository.stat().st_ino))
    assert ("fsync", (repository / ".mflux-api").stat().st_ino) in calls.calls[:named]
    assert ("fsync", tmp_path.stat().st_ino) in calls.calls[named:]


def _download(cache: HubCache) -> Path:
    """The one file of the marker, as huggingface_hub lays it down: a link to a blob."""
    repository = cache.repository(MARKER.repo)
    blob = repository / "blobs" / "etag"
    pointer = repository / "snapshots" / MARKER.commit / "model_index.json"
    for path in (blob, pointer):
        path.parent.mkdir(parents=True)
    blob.write_bytes(b"{}")
    pointer.symlink_to(blob)
    return pointer


def test_marker_without_the_files_it_names_is_not_complete(tmp_path: Path) -> None:
    cache = HubCache(tmp_path)
    cache.claim(MARKER.repo)
    file = _download(cache)
    cache.complete(MARKER)
    assert cache.snapshot(MARKER.repo, None) == (file.parent, MARKER)
    file.unlink()
    assert cache.snapshot(MARKER.repo, None) is None


def test_mark_is_not_made_for_files_that_are_not_there(tmp_path: Path) -> None:
    cache = HubCache(tmp_path)
    cache.claim(MARKER.repo)
    with pytest.raises(FileNotFoundError):
        cache.complete(MARKER)
    assert not list((cache.repository(MARKER.repo) / ".mflux-api").glob("*complete@*"))
