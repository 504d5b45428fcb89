"""One job's stream over a real socket: which id its events have, and what a client gets that comes back with one."""

from __future__ import annotations

from pathlib import Path

from mflux_api.storage.in_memory import InMemoryRepository
from tests.support.scripted_api import Event, scripted_api


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
