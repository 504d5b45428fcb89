"""Downloads on disks without links or locks: nothing lies there twice, nothing is lost, and what is wrong is said."""

import errno
import fcntl
import hashlib
import os
from pathlib import Path

import pytest

from mflux_api.hub.placing import locked, place
from tests.support.disk_calls import refuse_with
from tests.support.hub_downloads import REPO, TRANSFORMER, Downloads, needed
from tests.support.hub_server import COMMIT, Hub

pytestmark = pytest.mark.slow


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Downloads:
    return Downloads(tmp_path / "models", hub.url)


@pytest.fixture
def _without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "symlink", refuse_with(errno.EPERM))


def bytes_on_disk(client: Downloads) -> int:
    """What the repository's files take, without the notes beside them."""
    folders = (client.cache.repository(REPO) / name for name in ("blobs", "snapshots"))
    return sum(path.lstat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("_without_links")
def test_model_lies_once_on_a_disk_without_links(hub: Hub, client: Downloads) -> None:
    hub.repositories[REPO] = {**hub.repositories[REPO], "tokenizer/same.json": b"[1]", "vae/same.json": b"[1]"}
    client.succeed()
    assert bytes_on_disk(client) == sum(map(len, needed(hub).values()))
    snapshot = client.cache.repository(REPO) / "snapshots" / COMMIT
    assert {name: (snapshot / name).read_bytes() for name in needed(hub)} == needed(hub)
    hub.sent.clear()
    client.succeed()
    assert hub.sent == {}


@pytest.mark.usefixtures("_without_links")
def test_download_goes_on_where_files_have_moved(hub: Hub, client: Downloads) -> None:
    client.succeed()
    (client.cache.repository(REPO) / "snapshots" / COMMIT / TRANSFORMER).unlink()
    hub.sent.clear()
    client.leave_partial(hub, hub.repositories[REPO][TRANSFORMER][:50_001])
    client.succeed()
    assert hub.ranges == ["bytes=50001-"]
    assert set(hub.sent) == {TRANSFORMER}


def test_blob_that_another_snapshot_leads_to_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob, snapshots = tmp_path / "blobs" / "etag", tmp_path / "snapshots"
    for folder in (blob.parent, snapshots / "old", snapshots / "new"):
        folder.mkdir(parents=True)
    blob.write_bytes(b"weights")
    (snapshots / "old" / "file").symlink_to("../../blobs/etag")
    monkeypatch.setattr(os, "symlink", refuse_with(errno.EPERM))
    place(blob, [snapshots / "new" / "file"], snapshots)
    assert [path.read_bytes() for path in (blob, *sorted(snapshots.rglob("file")))] == [b"weights"] * 3


@pytest.mark.usefixtures("_without_links")
def test_copies_that_another_program_made_are_no_doubles_after_the_next_download(hub: Hub, client: Downloads) -> None:
    client.succeed()
    repository = client.cache.repository(REPO)
    weights = repository / "snapshots" / COMMIT / TRANSFORMER
    double = repository / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    double.write_bytes(weights.read_bytes())
    client.succeed()
    assert not double.exists()
    assert weights.read_bytes() == hub.repositories[REPO][TRANSFORMER]


def test_link_that_leads_nowhere_is_replaced(tmp_path: Path) -> None:
    blob, pointer = tmp_path / "blobs" / "etag", tmp_path / "snapshots" / "commit" / "file"
    for path in (blob, pointer):
        path.parent.mkdir(parents=True)
    blob.write_bytes(b"weights")
    pointer.symlink_to("../../blobs/gone")
    place(blob, [pointer], tmp_path / "snapshots")
    assert (pointer.is_symlink(), pointer.read_bytes()) == (True, b"weights")


def test_lock_of_another_program_is_respected_until_there_is_no_reason_to_wait(tmp_path: Path) -> None:
    path = tmp_path / ".locks" / "etag.lock"
    with locked(path) as first, locked(path, lambda: True) as second:
        assert (first, second) == (True, False)
    with locked(path, lambda: True) as again:
        assert again


def test_lock_whose_file_was_removed_meanwhile_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock, tries = tmp_path / "etag.lock", fcntl.flock, list[int]()

    def remove_once(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        tries.append(descriptor)
        if len(tries) == 1:
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", remove_once)
    with locked(path) as held:
        assert held
        assert path.exists()
    assert len(tries) == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_disk_without_locks_is_named_by_its_setting(
    client: Downloads, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_with(number))
    assert "models.cache_dir is on a file system without locks" in client.fail().message
