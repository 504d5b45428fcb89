"""One job's stream over a real socket: which id its events have, and what a client gets that comes back with one."""

from __future__ import annotations

import base64
import errno
import itertools
import json
import os
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import pytest
import trio

from mflux_api.config import ServerSettings
from mflux_api.http import sse
from mflux_api.jobs.job import StoredImage
from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.harness import eventually, request, settings
from tests.support.http_server import connect
from tests.support.scripted_api import Event, parsed, scripted_api
from tests.support.scripted_engine import Hold, Script


def _ids(events: list[Event]) -> list[tuple[str | None, str]]:
    return [(event.id, event.name) for event in events]


async def test_client_that_comes_back_with_the_end_gets_204_and_no_body(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished()
        end = (await api.stream(job.id))[-1].id
        assert await api.raw_stream(job.id, end) == (204, b"")


async def test_terminal_events_id_is_the_same_on_every_open_after_a_restart_and_without_a_log(tmp_path: Path) -> None:
    kept = InMemoryRepository(keep_finished=None)
    async with scripted_api(tmp_path, repository=kept) as api:
        job = await api.finished()
        ids = {(await api.stream(job.id, last))[-1].id for last in (None, "unknown")}
    async with scripted_api(tmp_path, repository=kept) as api:
        # The new hub has never heard of the job.
        ids |= {(await api.stream(job.id, last))[-1].id for last in (None, "unknown", "0123-4")}
        assert ids == {f"{job.id}-completed"}
        assert await api.raw_stream(job.id, f"{job.id}-completed") == (204, b"")


async def test_job_whose_log_is_gone_gets_the_present_and_its_end(tmp_path: Path) -> None:
    kept = InMemoryRepository(keep_finished=None)
    async with scripted_api(tmp_path, repository=kept) as api:
        job = await api.finished()
        before = await api.stream(job.id, "unknown")
    expected = [(None, "progress"), (f"{job.id}-completed", "complete")]
    async with scripted_api(tmp_path, repository=kept) as api:
        assert _ids(await api.stream(job.id)) == expected
        assert _ids(await api.stream(job.id, before[2].id)) == expected


async def test_stream_of_a_finished_job_begins_with_the_present_under_the_newest_id_before_the_end(
    tmp_path: Path,
) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished()
        *progress, end = _ids(await api.stream(job.id, "unknown"))
        assert _ids(await api.stream(job.id)) == [progress[-1], end]
        # Cut off between the two, a client goes on with the end.
        assert _ids(await api.stream(job.id, progress[-1][0])) == [end]


async def test_another_jobs_end_is_an_unknown_id(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        job, other = await api.finished(1), await api.finished(2)
        events = await api.stream(job.id, "unknown")
        for last in (f"{other.id}-completed", f"{job.id}-failed"):
            assert await api.stream(job.id, last) == events


async def test_head_of_a_running_jobs_stream_does_not_hold_its_connection_until_the_end(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"run": hold})) as api:
        job = await api.service.submit(request())
        await hold.reached.wait()
        with trio.fail_after(5):
            answer = await api.http.head(f"/api/v1/jobs/{job.id}/stream")
            # Its connection is free for the next request.
            assert (await api.http.get("/api/v1/health")).json()["active_jobs"] == 1
        assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (200, "text/event-stream")
        hold.release.set()


# --- the end, whatever became of the images ---


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _bytes_of(image: StoredImage) -> bytes:
    return Path(image.path).read_bytes()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [Path.unlink, _folder, _pipe, _truncate, _empty])
async def test_end_is_told_when_an_image_cannot_be_read(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished(num_images=3)
        spoil(Path(job.images[1].path))
        for last in (None, "unknown"):
            end = (await api.stream(job.id, last))[-1]
            data = json.loads(end.data)
            assert (end.name, data["status"], data["result"]["seeds"]) == ("complete", "completed", [1, 3])
            images = [base64.b64decode(image) for image in data["result"]["images"]]
            assert images == [_bytes_of(job.images[place]) for place in (0, 2)]
            (warning,) = data["warnings"]
            assert "Image 1 (seed 2)" in warning
            assert str(tmp_path) not in end.data
        # The job itself is asked for by those who can be told what is wrong.
        answer = await api.http.get(f"/api/v1/jobs/{job.id}")
        assert answer.json()["code"] == ("IMAGE_GONE" if spoil is Path.unlink else "INTERNAL_ERROR")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("method", ["stat", "open"])
async def test_end_is_told_when_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, method: str
) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished()
        real = getattr(Path, method)

        def refusing(path: Path, *arguments: object, **options: object) -> object:
            if str(path) == job.images[0].path:
                raise OSError(code, os.strerror(code), str(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(Path, method, refusing)
        end = (await api.stream(job.id))[-1]
        data = json.loads(end.data)
        assert (end.name, data["result"]) == ("complete", {"images": [], "seeds": []})
        assert len(data["warnings"]) == 1
        assert job.images[0].path not in end.data
        monkeypatch.undo()
        # What could not be read is looked at again.
        assert json.loads((await api.stream(job.id))[-1].data)["warnings"] == []


# --- too many, too slow ---


async def test_stream_beyond_a_callers_share_is_refused_and_other_requests_are_not(tmp_path: Path) -> None:
    hold = Hold()
    changed = attrs.evolve(settings(tmp_path), server=ServerSettings(max_connections_per_address=4))
    async with scripted_api(tmp_path, Script(at={"run": hold}), changed=changed) as api, AsyncExitStack() as stack:
        job = await api.service.submit(request())
        await hold.reached.wait()
        followers = [await stack.enter_async_context(connect(api.port)) for _ in range(3)]
        for follower in followers:
            await follower.send(f"/api/v1/jobs/{job.id}/stream")
            await follower.stream.receive_some(1)
        answer = await api.http.get(f"/api/v1/jobs/{job.id}/stream")
        assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_CONNECTIONS")
        assert answer.headers["Retry-After"] == "5"
        assert (await api.http.get(f"/api/v1/jobs/{job.id}")).status_code == 200
        await followers[0].stream.aclose()
        hold.release.set()

        async def has_room() -> bool:
            return (await api.raw_stream(job.id))[0] == 200

        await eventually(has_room)
        assert (await api.stream(job.id))[-1].name == "complete"


async def test_stream_is_kept_alive_while_the_disk_with_its_images_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.02)
    answers = threading.Event()
    async with scripted_api(tmp_path) as api, connect(api.port) as client:
        job = await api.finished()
        read, reads = Path.stat, 0

        def slow(path: Path, *arguments: object, **options: object) -> object:
            nonlocal reads
            if str(path) == job.images[0].path:
                reads += 1
                assert answers.wait(10)
            return read(path, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "stat", slow)
        await client.send(f"/api/v1/jobs/{job.id}/stream")
        data = b""
        while data.count(sse.KEEP_ALIVE) < 5:
            data += await client.stream.receive_some()
        assert b"event: complete" not in data
        assert reads == 1
        answers.set()
        while not data.endswith(b"0\r\n\r\n"):
            data += await client.stream.receive_some()
        assert data.count(b"event: complete") == 1


async def test_partial_images_of_a_job_that_asked_for_them_are_events_of_their_own(tmp_path: Path) -> None:
    begin, end = Hold(), Hold()
    async with scripted_api(tmp_path, Script(at={"run": begin, "image 0": end})) as api:
        job = await api.service.submit(attrs.evolve(request(), steps=2, partial_images=1))
        async with api.http.stream("GET", f"/api/v1/jobs/{job.id}/stream?images=url") as answer:
            begin.release.set()
            text = ""
            async for line in answer.aiter_lines():
                text += f"{line}\n"
                if line == "event: partial_image":
                    end.release.set()
    (found,) = [event for event in parsed(text.encode()) if event.name == "partial_image"]
    data = json.loads(found.data)
    png = base64.b64decode(data.pop("b64_json"))
    assert png.startswith(b"\x89PNG")
    width, height = job.request.size
    assert data == {
        "id": job.id,
        "image": 0,
        "partial_image_index": 0,
        "step": 1,
        "steps": 2,
        "width": width,
        "height": height,
        "output_format": "png",
    }
    assert found.id is not None


async def test_all_else_of_a_stream_is_the_same_without_partial_images(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        names = {event.name for event in await api.stream((await api.finished(partial_images=0)).id, "unknown")}
        assert names == {"progress", "complete"}


async def test_what_is_compiled_is_shown_as_that_in_each_stage_of_the_first_job_alone(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, Script(compiles=True)) as api:
        seen = []
        for seed in (1, 2):
            job = await api.finished(seed)
            events = [
                json.loads(event.data) for event in await api.stream(job.id, "unknown") if event.name == "progress"
            ]
            seen.append([stage for stage, _ in itertools.groupby(event["stage"] for event in events)])
        first = ["encoding", "compiling", "denoising", "compiling", "denoising", "decoding", "compiling", "saving"]
        assert [stage for stage in seen[0] if stage not in ("queued", "loading")] == first
        assert "compiling" not in seen[1]
