"""One download child against a hub on loopback: the way there, and everything that can go wrong."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import trio

from mflux_api.errors import DiskFull, DownloadFailed
from mflux_api.hub.cache import HubCache
from mflux_api.hub.client import DownloadOptions, download_repository
from mflux_api.hub.protocol import DownloadProgress
from mflux_api.ipc import frames
from tests.support.hub_downloads import (
    REPO,
    TRANSFORMER,
    Downloads,
    command_line,
    download_children,
    download_in_child,
    download_request,
    needed,
)
from tests.support.hub_server import Hub, wait_until

pytestmark = pytest.mark.slow


async def test_the_total_is_known_first_and_bytes_only_grow(hub: Hub, tmp_path: Path) -> None:
    hub.faults.bytes_per_second = 2e6
    seen: list[DownloadProgress] = []
    await download_in_child(download_request(tmp_path), seen)
    known = [progress for progress in seen if progress.bytes_total is not None]
    total = sum(map(len, needed(hub).values()))
    assert {progress.bytes_total for progress in known} == {total}
    assert known[0].bytes_done < total
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(done)
    assert len(set(done)) >= 4


async def test_a_killed_child_goes_on_with_the_byte_after_the_last(hub: Hub, tmp_path: Path) -> None:
    hub.faults.bytes_per_second = 2e6
    async with trio.open_nursery() as nursery:

        async def kill_once() -> None:
            await trio.to_thread.run_sync(wait_until, lambda: hub.total_sent() > 2e6)
            os.kill(download_children()[0].pid, signal.SIGKILL)
            hub.faults.bytes_per_second = None

        nursery.start_soon(kill_once)
        await download_in_child(download_request(tmp_path))
    resumed = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in hub.ranges]
    assert sum(resumed) > 1e5
    assert HubCache(tmp_path).snapshot(REPO, None) is not None


async def test_cancelling_ends_the_child_and_the_next_call_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.faults.bytes_per_second = 2e6
    async with trio.open_nursery() as nursery:
        nursery.start_soon(download_in_child, download_request(tmp_path))
        await trio.to_thread.run_sync(wait_until, lambda: hub.total_sent() > 2e6)
        nursery.cancel_scope.cancel()
    assert download_children() == []
    cache = HubCache(tmp_path)
    assert cache.snapshot(REPO, None) is None
    hub.faults.bytes_per_second = None
    seen: list[DownloadProgress] = []
    await download_in_child(download_request(tmp_path), seen)
    assert hub.ranges
    assert next(progress for progress in seen if progress.bytes_total).bytes_done > 0
    assert cache.snapshot(REPO, None) is not None


async def test_a_disk_that_fills_up_on_the_way_keeps_what_arrived(hub: Hub, tmp_path: Path) -> None:
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000)); "
        "from mflux_api.hub.child import main; main()"
    )
    options = DownloadOptions(command=(sys.executable, "-P", "-c", limited))
    with pytest.raises(DiskFull, match="the disk is full"), trio.fail_after(60):
        await download_repository(download_request(tmp_path), options, lambda _: None)
    await download_in_child(download_request(tmp_path))
    assert hub.ranges


async def test_a_failure_is_reported_while_other_files_still_arrive(hub: Hub, tmp_path: Path) -> None:
    data = hub.repositories[REPO][TRANSFORMER]
    Downloads(tmp_path, hub.url).leave_partial(hub, data[:-1] + bytes([data[-1] ^ 1]))
    hub.faults.bytes_per_second = 3e5
    with pytest.raises(DownloadFailed, match="is not what the hub says it is"):
        await download_in_child(download_request(tmp_path))
    assert hub.total_sent() < sum(map(len, needed(hub).values())) / 2


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
async def test_offline_mode_is_reported(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadFailed, match=f"{variable} is set; unset it"):
        await download_in_child(download_request(tmp_path))
    assert hub.requests == []
    assert download_children() == []


async def test_a_child_that_always_dies_at_once_ends_the_download(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    command = (sys.executable, "-c", f"open({str(starts)!r}, 'a').write('x'); raise SystemExit(3)")
    with pytest.raises(DownloadFailed, match="3 times"), trio.fail_after(30):
        await download_repository(download_request(tmp_path), DownloadOptions(command=command), lambda _: None)
    assert starts.read_text() == "xxx"


def test_child_ends_by_itself_after_its_last_frame(hub: Hub, tmp_path: Path) -> None:
    """The service does not wait for this; so each line of the child runs to its end here."""
    command = [sys.executable, "-P", "-m", "mflux_api.hub.child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(frames.encode(download_request(tmp_path)))
        child.stdin.flush()
        said = child.stdout.read()
        assert child.wait(timeout=30) == 0
    assert b"DownloadDone" in said
    assert HubCache(tmp_path).snapshot(REPO, None) is not None


async def test_orphans_end_with_the_service(hub: Hub, tmp_path: Path) -> None:
    """The child sees the end of its input, also when no process is left that could tell it."""
    hub.faults.bytes_per_second = 1e4
    script = (
        "import sys, trio; from pathlib import Path; "
        "from tests.support.hub_downloads import download_in_child, download_request; "
        "trio.run(download_in_child, download_request(Path(sys.argv[1])))"
    )
    parent = await trio.lowlevel.open_process([sys.executable, "-c", script, str(tmp_path)])
    await trio.to_thread.run_sync(wait_until, lambda: hub.total_sent() > 0)
    (child,) = _descendants(parent.pid, lambda process: "mflux_api.hub.child" in command_line(process))
    parent.kill()
    await parent.wait()
    await trio.to_thread.run_sync(wait_until, lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def _descendants(pid: int, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if wanted(child)]


async def test_hub_on_this_machine_is_reached_whatever_the_proxies_are(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "ALL_PROXY": "socks5://host:1",
        "http_proxy": "http://127.0.0.1:9",
        "NO_PROXY": "[::1]",
    }.items():
        monkeypatch.setenv(name, value)
    await download_in_child(download_request(tmp_path))
    assert HubCache(tmp_path).snapshot(REPO, None) is not None


async def test_proxy_that_cannot_be_used_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@127.0.0.1:1080")
    with pytest.raises(DownloadFailed, match=r"ALL_PROXY names a SOCKS proxy.*unset it, or name") as failed:
        await download_in_child(download_request(tmp_path))
    assert "secret" not in str(failed.value)


async def test_proxy_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    # What libraries fail over is left out.
    monkeypatch.setenv("NO_PROXY", "[::1],fe80::/10,host:name")
    with pytest.raises(DownloadFailed, match=r"hub.invalid.* cannot be reached through the proxy of ALL_PROXY"):
        await download_in_child(download_request(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HF_TOKEN", "hf_ü", "HF_TOKEN, or another variable that is sent to the hub, has a character that no request"),
        ("HF_TOKEN_PATH", "/", "file with the hub's token cannot be read .is a directory.: set HF_TOKEN, or"),
        ("SSL_CERT_FILE", __file__, "the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be used; unset it, or"),
    ],
)
async def test_variable_that_a_library_fails_over_is_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(DownloadFailed, match=says):
        await download_in_child(download_request(tmp_path))
