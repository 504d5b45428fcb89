"""The folder of downloaded repositories: what says that one of them is complete."""

from pathlib import Path

import pytest

from mflux_api.hub.cache import HubCache, Marker
from tests.support.disk_calls import record_disk_calls

MARKER = Marker(repo="owner/model", revision="main", commit="c0ffee", files={"model_index.json": 2})


def test_marker_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = HubCache(tmp_path)
    cache.claim(MARKER.repo)
    calls = record_disk_calls(monkeypatch)
    cache.complete(MARKER)
    [marker] = (cache.repository(MARKER.repo) / ".mflux-api").glob("complete@*.json")
    calls.check_synced_before_named(marker, folder_too=False)


def test_marker_without_the_files_it_names_is_not_complete(tmp_path: Path) -> None:
    cache = HubCache(tmp_path)
    cache.claim(MARKER.repo)
    cache.complete(MARKER)
    assert cache.snapshot(MARKER.repo, None) is None
    folder = cache.repository(MARKER.repo) / "snapshots" / MARKER.commit
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_bytes(b"{}")
    assert cache.snapshot(MARKER.repo, None) == (folder, MARKER)
