"""Resume: cut the stream after any event, come back with ``Last-Event-ID``: no gap, no double, one end."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import scripted_server
from tests.support.api_jobs import submit
from tests.support.report import report
from tests.support.server import api_client, serving

pytestmark = pytest.mark.slow


@attrs.frozen
class Event:
    id: str
    name: str


@attrs.frozen
class Cut:
    """One connection: how many events are taken before it is cut, and how."""

    after: int
    chunk: int
    """Bytes read at a time: small ones leave the cut in the middle of what was sent."""
    reset: bool
    """Cut by a reset, not by an orderly end."""


CUTS = st.lists(
    st.builds(Cut, after=st.integers(0, 9), chunk=st.sampled_from([1 << 16, 64, 7]), reset=st.booleans()), max_size=8
)
REST = Cut(after=1_000_000, chunk=1 << 16, reset=False)


def test_stream_cut_after_any_event_resumes_without_gap_or_duplicate(tmp_path: Path, full: bool) -> None:
    config = '[models]\ndefault = "demo"\n'
    environ = scripted_server.environ(step_seconds=0.003)
    resumed = 0
    with (
        serving(tmp_path, config, environ, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):

        @settings(max_examples=200 if full else 20, database=None)
        @given(cuts=CUTS, steps=st.integers(1, 12), num_images=st.integers(1, 3), late=st.booleans())
        def resumes(cuts: list[Cut], steps: int, num_images: int, late: bool) -> None:
            nonlocal resumed
            job_id = submit(client, steps=steps, num_images=num_images)
            # Followed from the first event on, so that it is known what there is to miss.
            last: str | None = None if not late else "unknown"
            seen: list[Event] = []
            for cut in [*cuts, REST]:
                taken = list(follow(server.url, job_id, last, cut))
                seen += taken
                last = seen[-1].id if seen else last
                if taken and taken[-1].name != "progress":
                    break
            resumed += len(cuts)
            *ids, end = [event.id for event in seen]
            assert end == f"{job_id}-completed"
            numbers = [int(each.partition("-")[2]) for each in ids]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert [event.name for event in seen] == ["progress"] * (len(seen) - 1) + ["complete"]
            assert not late or numbers[0] == 1
            # Queued, loading, three stages and the steps of each image, saving twice.
            assert numbers[-1] == 2 + num_images * (steps + 5)

        # Its model is loaded before: how often a load is heard of depends on how long it takes.
        assert list(follow(server.url, submit(client), None, REST))[-1].name == "complete"
        resumes()
    report(f"{resumed} cuts")


def follow(url: str, job_id: str, last: str | None, cut: Cut) -> Iterator[Event]:
    """Take events from a connection of its own until it is cut."""
    address = httpx.URL(url)
    header = "" if last is None else f"Last-Event-ID: {last}\r\n"
    with contextlib.closing(socket.create_connection((address.host, address.port or 80), timeout=30)) as sock:
        # HTTP/1.0: the body is not in chunks, and its end is the end of the connection.
        sock.sendall(f"GET /api/v1/jobs/{job_id}/stream?images=url HTTP/1.0\r\n{header}\r\n".encode())
        data = b""
        taken = 0
        while taken < cut.after:
            chunk = sock.recv(cut.chunk)
            if not chunk:
                return
            data += chunk
            head, blank, body = data.partition(b"\r\n\r\n")
            if not blank:
                continue
            *events, rest = body.split(b"\n\n")
            data = head + blank + rest
            for text in events[: cut.after - taken]:
                taken += 1
                yield parsed(text.decode())
        if cut.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def parsed(text: str) -> Event:
    fields = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(":"))
    return Event(id=fields["id"], name=fields["event"])
