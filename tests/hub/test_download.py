"""Downloads from a hub on loopback, without a process around it: what is resumed, found, and said."""

import errno
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mflux_api.hub.cache import Marker
from mflux_api.hub.protocol import DownloadFailure
from tests.support.disk_calls import record_disk_calls
from tests.support.hub_downloads import REPO, TRANSFORMER, Downloads, download_request, needed
from tests.support.hub_server import COMMIT, Hub

Run = Callable[..., Marker | DownloadFailure]


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Downloads:
    return Downloads(tmp_path / "models", hub.url)


def test_a_download_is_complete_marked_and_the_same_bytes(hub: Hub, client: Downloads) -> None:
    marker = client.succeed()
    found = client.cache.snapshot(REPO, None)
    assert found is not None
    folder, kept = found
    assert kept == marker
    assert {name: (folder / name).read_bytes() for name in marker.files} == needed(hub)
    assert (marker.commit, folder.name, marker.revision) == (COMMIT, COMMIT, "main")
    assert hub.total_sent() == sum(map(len, needed(hub).values()))
    assert client.cache.is_ours(REPO)
    assert not list(client.folder.rglob("*.incomplete"))


def test_downloaded_file_is_on_disk_before_it_has_its_name(
    hub: Hub, client: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has its name is taken for whole by the next download, and by other programs on that cache."""
    calls = record_disk_calls(monkeypatch)
    marker = client.succeed()
    found = client.cache.snapshot(REPO, None)
    assert found is not None
    for name in marker.files:
        calls.check_synced_before_named((found[0] / name).resolve(), folder_too=True)


def test_a_pinned_commit_is_asked_for_and_kept_apart_from_main(hub: Hub, client: Downloads) -> None:
    assert isinstance(client.download(revision=COMMIT), Marker)
    assert client.cache.snapshot(REPO, COMMIT) is not None
    assert client.cache.snapshot(REPO, None) is None
    hub.sent.clear()
    client.succeed()
    assert hub.sent == {}


def test_a_partial_file_goes_on_with_the_byte_after_the_last(hub: Hub, client: Downloads) -> None:
    data = hub.repositories[REPO][TRANSFORMER]
    client.leave_partial(hub, data[:50_001])
    client.succeed()
    assert hub.ranges == ["bytes=50001-"]
    assert hub.sent[TRANSFORMER] == len(data) - 50_001


def test_a_hub_without_ranges_is_asked_for_the_whole_file_again(hub: Hub, client: Downloads) -> None:
    client.leave_partial(hub, hub.repositories[REPO][TRANSFORMER][:50_000])
    hub.faults.without_ranges = True
    client.succeed()
    assert hub.sent[TRANSFORMER] == len(hub.repositories[REPO][TRANSFORMER])


def test_a_partial_file_longer_than_the_real_one_is_begun_again(hub: Hub, client: Downloads) -> None:
    client.leave_partial(hub, bytes(len(hub.repositories[REPO][TRANSFORMER]) + 1))
    client.succeed()
    assert hub.sent[TRANSFORMER] == len(hub.repositories[REPO][TRANSFORMER])


def test_a_partial_file_of_other_bytes_is_found_and_the_next_try_succeeds(hub: Hub, client: Downloads) -> None:
    client.leave_partial(hub, bytes(50_000))
    assert "is not what the hub says it is" in client.fail().message
    client.succeed()


def test_files_on_another_host_are_followed_resumed_and_get_no_token(
    hub: Hub, client: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    hub.faults.redirected = True
    client.leave_partial(hub, hub.repositories[REPO][TRANSFORMER][:50_001])
    client.succeed()
    assert hub.ranges == ["bytes=50001-"]
    assert any(request.startswith("GET /elsewhere/") for request in hub.requests)


def test_gated_names_the_licence_its_page_and_the_variable(hub: Hub, client: Downloads) -> None:
    hub.faults.gated = True
    failed = client.fail("MODEL_GATED", licence="FLUX non-commercial")
    for part in ("FLUX non-commercial", f"{hub.url}/{REPO}", "HF_TOKEN"):
        assert part in failed.message
    assert failed.details["variable"] == "HF_TOKEN"


def test_a_token_opens_a_gated_repository_and_is_in_no_message(
    hub: Hub, client: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    client.succeed()
    assert "Bearer hf_a_secret" in hub.tokens
    hub.faults.forbidden = True
    failed = client.fail("MODEL_GATED", repo="owner/other")
    assert "the account of your HF_TOKEN" in failed.message
    assert "secret" not in failed.message


def test_token_that_is_not_valid_is_not_called_a_licence(
    hub: Hub, client: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.wrong_token = True
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret")
    failed = client.fail()
    assert "does not accept the token of HF_TOKEN" in failed.message
    assert "secret" not in failed.message
    assert "licence" not in failed.message


def test_connection_that_is_not_made_is_told_in_words(client: Downloads) -> None:
    import httpx

    from mflux_api.hub.failures import explain

    def said(cause: OSError) -> str:
        error = httpx.ConnectError("of a library")
        error.__cause__ = cause
        return explain(error, download_request(client.folder), "https://hub.example").message

    untrusted = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]")
    untrusted.verify_message = "self-signed certificate in certificate chain"
    assert "certificate of the model hub (hub.example)" in said(untrusted)
    assert "(self-signed certificate in certificate chain): put" in said(untrusted)
    assert "name that in SSL_CERT_FILE" in said(untrusted)
    assert "fell silent (connection refused); check the network" in said(
        OSError(errno.ECONNREFUSED, "Connection refused")
    )


@pytest.mark.parametrize("repository", [False, True])
def test_file_in_the_place_of_a_folder_is_not_to_be_tried_again(client: Downloads, repository: bool) -> None:
    folder = client.cache.repository(REPO) if repository else client.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_bytes(b"")
    failed = client.fail()
    assert "models.cache_dir, or a folder in it, is a file or a link that leads nowhere; remove that" in failed.message
    assert "try again" not in failed.message


def test_hub_that_accepts_and_says_nothing_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from mflux_api.hub import timeouts

    for owner, name in ((timeouts, "SILENCE_SECONDS"), (constants, "HF_HUB_ETAG_TIMEOUT")):
        monkeypatch.setattr(owner, name, 0.2)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        failed = Downloads(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}").fail()
    assert "cannot be reached, or fell silent (no answer in time); check the network" in failed.message


def test_refusal_without_a_reason_is_not_called_gated_but_may_be(hub: Hub, client: Downloads) -> None:
    hub.faults.forbidden = True
    failed = client.fail("MODEL_GATED")
    assert f"{REPO} is refused (403), by 127.0.0.1 or a proxy of your network. If it is gated, accept" in failed.message


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"200 OK\r\n\r\n<html>log in</html>", "is not a model hub; check HF_ENDPOINT"),
        (b"200 OK\r\n\r\n{}", "is not a model hub; check HF_ENDPOINT"),
        (b"404 Not Found\r\n\r\n<html>", "is not a model hub; check HF_ENDPOINT"),
        (b"302 Found\r\nLocation: /again\r\n\r\n", "is not a model hub; check HF_ENDPOINT"),
        (b"407 Proxy\r\n\r\n", "asks for a name and a password: write http://name:password@host:port"),
    ],
)
def test_answer_that_is_not_a_hubs_is_told(tmp_path: Path, answer: bytes, says: str) -> None:
    class Answering(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.connection.recv(65536)
            self.wfile.write(b"HTTP/1.1 " + answer.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))

    with socketserver.TCPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        failed = Downloads(tmp_path, f"http://127.0.0.1:{server.server_address[1]}").fail()
        server.shutdown()
        thread.join()
    assert says in failed.message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"repo": "owner/other"}, "not on the model hub, or is private"),
        ({"revision": "v9"}, "has no revision 'v9'"),
        ({"repo": "no-owner/a/b"}, "not a repository name"),
        ({"files": ("nothing/*",)}, "none of the files of a model"),
    ],
)
def test_missing_repository_revision_or_files_are_named(client: Downloads, changes: dict[str, Any], says: str) -> None:
    assert says in client.fail(**changes).message


def test_a_file_that_comes_short_fails_and_comes_whole_the_next_time(hub: Hub, client: Downloads) -> None:
    hub.faults.short_by = 1000
    assert "shorter" in client.fail().message
    hub.faults.short_by = 0
    client.succeed()


def test_a_changed_byte_is_found(hub: Hub, client: Downloads) -> None:
    hub.faults.flipped = True
    assert "is not what the hub says it is" in client.fail().message


def test_a_disk_that_is_too_small_is_reported_before_anything_is_downloaded(hub: Hub, client: Downloads) -> None:
    hub.faults.claimed_size = 10**15
    failed = client.fail("DISK_FULL")
    assert "more are needed" in failed.message
    assert failed.details["needed_bytes"] >= 10**15 > failed.details["free_bytes"] > 0
    assert hub.total_sent() == 0


def test_a_hub_that_is_down_is_named(client: Downloads) -> None:
    client.endpoint = "http://127.0.0.1:9"
    failed = client.fail()
    assert "127.0.0.1" in failed.message
    assert "network" in failed.message


def test_a_busy_hub_is_named_with_its_answer(hub: Hub, client: Downloads) -> None:
    hub.faults.busy = True
    assert "503" in client.fail().message


def test_a_folder_that_cannot_be_written_is_reported(hub: Hub, client: Downloads) -> None:
    client.folder.write_text("a file")
    failed = client.download()
    assert isinstance(failed, DownloadFailure)
    assert failed.code == "DOWNLOAD_FAILED"


def test_a_file_that_goes_from_a_complete_download_makes_it_incomplete(hub: Hub, client: Downloads) -> None:
    client.succeed()
    found = client.cache.snapshot(REPO, None)
    assert found is not None
    (found[0] / TRANSFORMER).resolve().unlink()
    assert client.cache.snapshot(REPO, None) is None
    hub.sent.clear()
    client.succeed()
    assert set(hub.sent) == {TRANSFORMER}


def test_a_file_that_was_cut_after_its_download_is_downloaded_again(hub: Hub, client: Downloads) -> None:
    client.succeed()
    found = client.cache.snapshot(REPO, None)
    assert found is not None
    with (found[0] / TRANSFORMER).resolve().open("r+b") as file:
        file.truncate(1000)
    assert client.cache.snapshot(REPO, None) is None
    hub.sent.clear()
    client.succeed()
    assert set(hub.sent) == {TRANSFORMER}


def test_an_existing_cache_is_used_and_stays_with_its_owner(hub: Hub, client: Downloads) -> None:
    client.succeed()
    marks = client.cache.repository(REPO) / ".mflux-api"
    for path in marks.iterdir():
        path.unlink()
    marks.rmdir()
    hub.sent.clear()
    client.succeed()
    assert hub.sent == {}
    assert not client.cache.is_ours(REPO)


def test_removing_leaves_nothing_and_what_a_kill_left_of_it_goes_too(client: Downloads) -> None:
    client.succeed()
    assert client.cache.remove(REPO)
    assert not client.cache.remove(REPO)
    assert client.cache.snapshot(REPO, None) is None
    (client.folder / ".deleted-abcd" / "blobs").mkdir(parents=True)
    client.cache.empty_trash()
    assert {path.name for path in client.folder.iterdir()} <= {".locks", "CACHEDIR.TAG"}
