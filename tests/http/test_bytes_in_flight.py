"""Clients that send large bodies slowly, or do not read large answers: what they may hold of the memory together."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from mflux_api.config import ServerSettings
from mflux_api.errors import ServerBusy
from mflux_api.gateway.bytes_in_flight import BytesInFlight
from mflux_api.http import sse
from mflux_api.http.a1111 import generation
from mflux_api.http.client_timeouts import ClientTimeouts
from mflux_api.images.encode import base64_length
from mflux_api.jobs.job import Job
from tests.support.harness import eventually, gateway, settings
from tests.support.http_server import Client, connect
from tests.support.scripted_api import Api, parsed, scripted_api

MEGABYTE = 2**20
LIMIT_MB = 4
SMALL_BUFFER = 4096
"""A client with such a receive buffer takes a few hundred kilobytes of an answer that it does not read."""


@asynccontextmanager
async def _api(folder: Path, limit_mb: int = LIMIT_MB) -> AsyncIterator[Api]:
    """A service that must have nothing in flight when it is left."""
    changed = attrs.evolve(settings(folder), server=ServerSettings(max_in_flight_mb=limit_mb))
    async with scripted_api(folder, changed=changed) as api:
        yield api
        await eventually(lambda: _in_flight(api).used == 0)


def _in_flight(api: Api) -> BytesInFlight:
    return gateway(api.service).in_flight


async def _begin(client: Client, path: str, length: int | None, body: bytes = b"") -> None:
    """Send the head of a request and a part of its body."""
    framing = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
    chunk = body if length is not None or not body else b"%x\r\n%b\r\n" % (len(body), body)
    await client.stream.send_all(f"POST {path} HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n".encode() + chunk)


async def _code(client: Client) -> tuple[int, str]:
    """The status and the code of an answer to a request that h11 did not send."""
    data = b""
    while b"}" not in data:
        data += await client.stream.receive_some()
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"retry-after: 5" in head.lower()
    return int(head.split()[1]), json.loads(body)["code"]


async def _large(api: Api) -> Job:
    """A finished job with an image of three megabytes, which is four as base64."""
    return await api.finished(width=1024, height=1024)


def _answer_size(job: Job) -> int:
    return sum(base64_length(Path(image.path).stat().st_size) for image in job.images)


async def test_body_is_refused_before_it_is_read_when_there_is_no_room(tmp_path: Path) -> None:
    async with _api(tmp_path) as api, AsyncExitStack() as stack:
        for _ in range(LIMIT_MB):
            client = await stack.enter_async_context(connect(api.port))
            await _begin(client, "/api/v1/generate", MEGABYTE + 1, bytes(MEGABYTE))
        await eventually(lambda: _in_flight(api).used == LIMIT_MB * MEGABYTE)
        late = await stack.enter_async_context(connect(api.port))
        await _begin(late, "/api/v1/generate", MEGABYTE)
        assert await _code(late) == (503, "SERVER_BUSY")
        # What is small has its room, always.
        answer = await api.http.post("/api/v1/generate", json={"prompt": "a house", "model": "demo", "steps": 1})
        assert answer.status_code == 200


async def test_body_of_unknown_length_is_refused_when_it_has_grown_too_large(tmp_path: Path) -> None:
    async with _api(tmp_path) as api, connect(api.port) as first, connect(api.port) as second:
        await _begin(first, "/api/v1/generate", None, bytes(3 * MEGABYTE))
        await eventually(lambda: _in_flight(api).used == 3 * MEGABYTE)
        await _begin(second, "/api/v1/generate", None, bytes(2 * MEGABYTE))
        assert await _code(second) == (503, "SERVER_BUSY")
        await eventually(lambda: _in_flight(api).used == 3 * MEGABYTE)


async def test_largest_body_is_taken_when_nothing_else_is_in_flight(tmp_path: Path) -> None:
    async with _api(tmp_path, 1) as api:
        body = {"prompt": "a house", "model": "demo", "steps": 1, "unknown": "x" * (2 * MEGABYTE)}
        assert (await api.http.post("/api/v1/generate", json=body)).status_code == 200


async def test_client_that_leaves_gives_back_what_its_body_reserved(tmp_path: Path) -> None:
    async with _api(tmp_path) as api:
        for length in (MEGABYTE, None):
            async with connect(api.port) as client:
                await _begin(client, "/sdapi/v1/txt2img", length, bytes(MEGABYTE // 2))
                await eventually(lambda: _in_flight(api).used > 0)
            await eventually(lambda: _in_flight(api).used == 0)
            assert (await api.http.get("/api/v1/jobs")).json()["jobs"] == []


async def test_body_of_a_synchronous_call_is_the_jobs_once_it_is_accepted(tmp_path: Path) -> None:
    async with _api(tmp_path) as api:
        released: list[int] = []
        submit = gateway(api.service).submit

        async def noting(*arguments: object, **options: object) -> object:
            released.append(_in_flight(api).used)
            return await submit(*arguments, **options)  # type: ignore[arg-type]

        gateway(api.service).submit = noting  # type: ignore[method-assign, assignment]
        awaited_end = gateway(api.service).awaited_end

        async def noting_too(*arguments: object) -> object:
            released.append(_in_flight(api).used)
            return await awaited_end(*arguments)  # type: ignore[arg-type]

        gateway(api.service).awaited_end = noting_too  # type: ignore[method-assign, assignment]
        body = {"prompt": "a house", "model": "demo", "steps": 1, "width": 64, "height": 64, "mask": "x" * MEGABYTE}
        assert (await api.http.post("/sdapi/v1/txt2img", json=body)).status_code == 200
        assert released[0] > MEGABYTE
        assert released[1:] == [0]


@asynccontextmanager
async def _stuck_readers(api: Api, paths: list[str]) -> AsyncIterator[None]:
    """Clients that ask and do not read."""
    async with AsyncExitStack() as stack:
        for path in paths:
            client = await stack.enter_async_context(connect(api.port, SMALL_BUFFER))
            await client.send(path)
        yield


@pytest.mark.parametrize("path", ["/api/v1/jobs/{}", "/api/v1/jobs/{}/stream"])
async def test_followers_who_do_not_read_share_the_bytes_of_the_result(tmp_path: Path, path: str) -> None:
    async with _api(tmp_path, 64) as api:
        job = await _large(api)
        async with _stuck_readers(api, [path.format(job.id)] * 20):
            await eventually(lambda: _in_flight(api).used > 0)
            assert _in_flight(api).used == _answer_size(job)
            # And one that reads gets everything meanwhile.
            end = json.loads((await api.stream(job.id))[-1].data)
            image = base64.b64decode(end["result"]["images"][0])
            assert len(base64.b64encode(image)) == _in_flight(api).used


async def test_answer_is_refused_while_others_who_do_not_read_take_the_room(tmp_path: Path) -> None:
    async with _api(tmp_path) as api:
        first, second = await _large(api), await _large(api)
        async with _stuck_readers(api, [f"/api/v1/jobs/{first.id}"]):
            await eventually(lambda: _in_flight(api).used == _answer_size(first))
            for path in (f"/api/v1/jobs/{second.id}", f"/api/v1/jobs/{second.id}/images/0"):
                answer = await api.http.get(path)
                assert (answer.status_code, answer.json()["code"]) == (503, "SERVER_BUSY")
                assert answer.headers["retry-after"] == "5"
            small = await api.http.get(f"/api/v1/jobs/{second.id}?images=url")
            assert small.status_code == 200
        await eventually(lambda: _in_flight(api).used == 0)
        assert (await api.http.get(f"/api/v1/jobs/{second.id}")).status_code == 200


async def test_stream_waits_with_the_end_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.02)
    async with _api(tmp_path) as api:
        first, second = await _large(api), await _large(api)
        async with connect(api.port) as client:
            async with _stuck_readers(api, [f"/api/v1/jobs/{first.id}"]):
                await eventually(lambda: _in_flight(api).used == _answer_size(first))
                await client.send(f"/api/v1/jobs/{second.id}/stream")
                data = b""
                while data.count(sse.KEEP_ALIVE) < 3:
                    data += await client.stream.receive_some()
                assert b"event: complete" not in data
            while b"event: complete" not in data:
                data += await client.stream.receive_some()


async def test_synchronous_call_waits_until_there_is_room_and_says_where_its_result_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "ROOM_SECONDS", 0.05)
    body = {"prompt": "a house", "model": "demo", "steps": 1, "width": 1024, "height": 1024}
    async with _api(tmp_path) as api:
        first = await _large(api)
        async with _stuck_readers(api, [f"/api/v1/jobs/{first.id}"]):
            await eventually(lambda: _in_flight(api).used == _answer_size(first))
            answer = await api.http.post("/sdapi/v1/txt2img", json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "SERVER_BUSY")
        job_id = answer.json()["details"]["job_id"]
        await eventually(lambda: _in_flight(api).used == 0)
        assert len((await api.http.get(f"/api/v1/jobs/{job_id}")).json()["result"]["images"]) == 1


async def test_client_that_stopped_reading_keeps_its_part_no_longer_than_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ClientTimeouts.__init__

    def impatient(self: ClientTimeouts, stall: float, linger: float, head: float) -> None:
        limits(self, 0.05, linger, head)

    monkeypatch.setattr(ClientTimeouts, "__init__", impatient)
    async with _api(tmp_path) as api:
        job = await _large(api)
        async with _stuck_readers(api, [f"/api/v1/jobs/{job.id}", f"/api/v1/jobs/{job.id}/stream"]):
            await eventually(lambda: _in_flight(api).used > 0)
            await eventually(lambda: _in_flight(api).used == 0)
            assert (await api.http.get(f"/api/v1/jobs/{job.id}")).status_code == 200


async def test_clients_that_leave_at_any_moment_leave_nothing_in_flight(tmp_path: Path) -> None:
    async with _api(tmp_path, 64) as api:
        job = await _large(api)
        for turns in range(40):
            async with connect(api.port, SMALL_BUFFER) as client:
                await client.send(f"/api/v1/jobs/{job.id}" + ("/stream" if turns % 2 else ""))
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
        await eventually(lambda: _in_flight(api).used == 0)
        assert parsed((await api.raw_stream(job.id))[1])[-1].name == "complete"


# --- the limit itself ---


def test_reservation_is_given_back_once_whatever_happens() -> None:
    budget = BytesInFlight(100)

    def fail() -> None:
        with budget.open() as reservation:
            reservation.grow(60)
            assert budget.used == 60
            budget.open().grow(60)

    with pytest.raises(ServerBusy):
        fail()
    assert budget.used == 0
    reservation = budget.open()
    reservation.grow(60)
    for _ in range(2):
        reservation.release()
        assert budget.used == 0


@pytest.mark.parametrize("grow", [lambda each: each.grow(300), lambda each: each.grow_anyway(300)])
def test_what_is_larger_than_the_limit_has_its_turn_alone(grow: Callable[..., None]) -> None:
    budget = BytesInFlight(100)
    with budget.open() as reservation, budget.open() as other:
        grow(reservation)
        with pytest.raises(ServerBusy):
            other.grow(1)
