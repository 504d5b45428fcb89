"""One caller beside others: its share of the queue, what counts for it, and what a refusal costs."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

from mflux_api.access.keys import Caller, Key, Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.access.visibility import ALL_JOBS
from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.shares import share_of
from mflux_api.config import SecuritySettings
from mflux_api.errors import QueueFull, TooManyJobs
from mflux_api.gateway import submission
from mflux_api.service import Service, open_service
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.harness import (
    ended,
    eventually,
    gateway,
    request,
    scripted_service,
    seeds_run,
    settings,
)
from tests.support.http_server import connect
from tests.support.sample_images import scene, to_base64
from tests.support.scripted_api import scripted_api
from tests.support.scripted_engine import Hold, Script


async def _busy(service: Service, hold: Hold) -> None:
    """Have the engine run a job of no caller, so that all others wait."""
    await service.submit(request(0))
    await hold.reached.wait()


def a_caller(owner: str, most: int | None = None) -> Caller:
    key = None if most is None else Key(name=owner, digest=b"", max_jobs=most)
    return Caller(owner=owner, sees=ALL_JOBS, key=key)


async def _submit(service: Service, owner: str, count: int = 1, *, most: int | None = None) -> list[str]:
    return [(await gateway(service).submit(request(), caller=a_caller(owner, most))).job.id for _ in range(count)]


async def test_one_caller_cannot_fill_the_queue(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=20) as service:
        await _busy(service, hold)
        await _submit(service, "greedy", 18)
        with pytest.raises(TooManyJobs, match=r"You have 18 job\(s\) waiting and may have 18; wait until") as caught:
            await _submit(service, "greedy")
        assert caught.value.details == {"queued": 18, "limit": 18}
        assert caught.value.retry_after is not None
        await _submit(service, "other")


async def test_caller_beside_others_may_hold_half_of_what_they_leave(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=20) as service:
        await _busy(service, hold)
        await _submit(service, "one", 4)
        await _submit(service, "two", 8)
        with pytest.raises(TooManyJobs, match="while other callers wait") as caught:
            await _submit(service, "two")
        assert caught.value.details == {"queued": 8, "limit": 8}


def test_callers_that_all_want_as_much_as_they_get_come_to_equal_shares_and_leave_one() -> None:
    held = {"first": share_of(100, others=0), "second": 0, "third": 0, "fourth": 0}

    def submit(name: str) -> None:
        others = sum(held.values()) - held[name]
        while held[name] < share_of(100, others=others) and others + held[name] < 100:
            held[name] += 1

    for _ in range(200):
        for served in held:
            for name in held:
                submit(name)
            held[served] -= 1
    assert all(abs(count - 20) <= 2 for count in held.values()), held
    assert share_of(1, others=0) == share_of(1, others=1) == 1


@pytest.mark.parametrize("places", [1, 2, 5, 9])
async def test_lone_caller_may_fill_a_small_queue_to_its_last_place(tmp_path: Path, places: int) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=places) as service:
        await _busy(service, hold)
        await _submit(service, "alone", places)
        for owner in ("alone", "other"):
            with pytest.raises(QueueFull):
                await _submit(service, owner)


async def test_full_queue_is_full_also_for_a_caller_that_has_its_share(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=2) as service:
        await _busy(service, hold)
        for owner in ("one", "other"):
            await _submit(service, owner)
        with pytest.raises(QueueFull):
            await _submit(service, "one", most=1)


async def test_share_is_what_the_setting_or_the_key_says(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"run": hold})
    async with scripted_service(tmp_path, script, max_queue=10, max_queue_per_caller=2) as service:
        await _busy(service, hold)
        await _submit(service, "one", 2)
        with pytest.raises(TooManyJobs):
            await _submit(service, "one")
        await _submit(service, "one", most=3)
        await _submit(service, "other")
        with pytest.raises(TooManyJobs, match=r"may have 3; wait") as caught:
            await _submit(service, "one", most=3)
        assert caught.value.details == {"queued": 3, "limit": 3}


async def test_embedding_program_and_a_queue_of_one_have_no_share(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=4) as service:
        await _busy(service, hold)
        await _submit(service, "", 4)
        with pytest.raises(QueueFull):
            await _submit(service, "")
    hold = Hold()
    async with scripted_service(tmp_path / "one", Script(at={"run": hold}), max_queue=1) as service:
        await _busy(service, hold)
        await _submit(service, "alone")
        with pytest.raises(QueueFull):
            await _submit(service, "alone")


async def test_share_counts_submits_that_are_not_on_disk_yet(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=10) as service:
        await _busy(service, hold)
        refused = 0

        async def submit() -> None:
            nonlocal refused
            try:
                await _submit(service, "greedy")
            except TooManyJobs:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(submit)
        assert refused == 21


async def test_jobs_that_are_cancelled_or_left_or_run_are_out_of_the_share_at_once(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=4, max_queue_per_caller=3) as service:
        await _busy(service, hold)
        first, *_ = await _submit(service, "one", 3)
        with pytest.raises(TooManyJobs):
            await _submit(service, "one")
        await service.cancel(first)
        synchronous = await gateway(service).submit(request(), synchronous=True, caller=a_caller("one"))
        with pytest.raises(TooManyJobs):
            await _submit(service, "one")
        gateway(service).abandon(synchronous.job.id)
        await eventually(lambda: _ended(service, synchronous.job.id))
        hold.release.set()
        for job_id in await _submit(service, "one"):
            await ended(service, job_id)
        await _submit(service, "one")


async def _ended(service: Service, job_id: str) -> bool:
    return (await service.job(job_id)).status.terminal


async def test_share_and_turns_outlast_a_restart(tmp_path: Path) -> None:
    options = settings(tmp_path, max_queue=4)
    hold = Hold()
    script = Script(at={"run": hold})
    with SqliteRepository(options.state_dir / DATABASE_NAME) as repository:
        async with open_service(options, repository=repository, start_engine=script.start) as service:
            await _busy(service, hold)
            for seed, owner in ((1, "one"), (2, "one"), (3, "two")):
                await gateway(service).submit(request(seed), caller=a_caller(owner))
        script.at = {"run": (again := Hold())}
        async with open_service(options, repository=repository, start_engine=script.start) as service:
            await again.reached.wait()
            listed = await gateway(service).queue()
            assert (len(listed.jobs), listed.total) == (4, 3)
            assert [each.position for each in listed.jobs.values()] == [None, 1, 2, 3]
            with pytest.raises(TooManyJobs):
                await _submit(service, "one")
            again.release.set()
            await eventually(lambda: _all_ran(service))
    assert seeds_run(script)[1:] == [0, 1, 3, 2]


async def _all_ran(service: Service) -> bool:
    status = await gateway(service).status()
    return status.active == status.queued == 0


async def test_refused_job_is_refused_before_its_images_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0

    def counting(images: tuple[str, ...]) -> tuple[int, int] | None:
        nonlocal decoded
        decoded += 1
        return 64, 64

    monkeypatch.setattr(submission, "output_size", counting)
    hold = Hold()
    edit = attrs.evolve(request(), init_images=(to_base64(scene()),))
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=4, max_queue_per_caller=3) as service:
        await _busy(service, hold)
        await _submit(service, "one", 3)
        with pytest.raises(TooManyJobs):
            await gateway(service).submit(edit, caller=a_caller("one"))
        await _submit(service, "two")
        with pytest.raises(QueueFull):
            await gateway(service).submit(edit, caller=a_caller("three"))
        assert decoded == 0


async def test_init_images_of_one_caller_leave_room_for_those_of_another(tmp_path: Path) -> None:
    hold = Hold()
    edit = attrs.evolve(request(), init_images=(to_base64(scene()),))
    size = len(edit.init_images[0]) * 0.75e-9
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_inputs_gb=10.5 * size) as service:
        await _busy(service, hold)
        for _ in range(10):
            await gateway(service).submit(edit, caller=a_caller("one"))
        with pytest.raises(TooManyJobs, match=r"a share of scheduler\.max_inputs_gb"):
            await gateway(service).submit(edit, caller=a_caller("one"))
        await gateway(service).submit(edit, caller=a_caller("two"))
        await _submit(service, "one")


async def test_caller_beyond_its_share_gets_429_and_another_key_is_served(tmp_path: Path) -> None:
    keys = ("the first key of this test", "the second key of this test")
    changed = attrs.evolve(
        settings(tmp_path, max_queue=3, max_queue_per_caller=2), security=SecuritySettings(api_keys=keys)
    )
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"run": hold}), changed=changed) as api:
        body = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}
        answers = []
        for key in (keys[0],) * 4 + (keys[1],):
            answers.append(await api.http.post("/api/v1/generate", json=body, headers={"X-API-Key": key}))
            await hold.reached.wait()
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 200]
    assert answers[3].json()["code"] == "TOO_MANY_JOBS"
    assert answers[3].json()["details"] == {"queued": 2, "limit": 2}
    assert int(answers[3].headers["Retry-After"]) > 0


@pytest.mark.parametrize("path", ["/api/v1/generate", "/sdapi/v1/txt2img"])
async def test_keys_own_limit_of_waiting_jobs_holds_on_every_route(tmp_path: Path, path: str) -> None:
    keys = tmp_path / "keys.toml"
    append(keys, new_entry("ana", "a key of ana's own", [Scope.GENERATE], 1))
    changed = attrs.evolve(settings(tmp_path), security=SecuritySettings(keys_file=keys))
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"run": hold}), changed=changed) as api:
        await _busy(api.service, hold)
        await _submit(api.service, "key ana")
        body = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}
        for large in ({}, {"unknown": "x" * 100_000}):
            answer = await api.http.post(path, json=body | large, headers={"X-API-Key": "a key of ana's own"})
            assert (answer.status_code, answer.json()["details"]) == (429, {"queued": 1, "limit": 1})


@pytest.mark.parametrize("framing", [b"Content-Length: 60000000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", [b"/api/v1/generate", b"/sdapi/v1/txt2img", b"/sdapi/v1/img2img"])
async def test_large_body_of_a_job_without_a_place_is_not_read(tmp_path: Path, path: bytes, framing: bytes) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"run": hold}), changed=settings(tmp_path, max_queue=1)) as api:
        await _busy(api.service, hold)
        await _submit(api.service, "other")
        async with connect(api.port) as client:
            await client.stream.send_all(b"POST %s HTTP/1.1\r\nHost: t\r\n%s\r\n\r\n" % (path, framing))
            answer = b""
            while b"QUEUE_FULL" not in answer:
                answer += await client.stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 503")


async def test_large_repeat_of_an_idempotent_submission_is_answered_while_the_queue_is_full(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"run": hold}), changed=settings(tmp_path, max_queue=1)) as api:
        body = {"prompt": "a lake", "model": "demo", "unknown": "x" * 100_000}
        headers = {"Idempotency-Key": "one"}
        first = await api.http.post("/api/v1/generate", json=body, headers=headers)
        await hold.reached.wait()
        await _submit(api.service, "other")
        again = await api.http.post("/api/v1/generate", json=body, headers=headers)
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.json()["job_id"] == first.json()["job_id"]


async def test_list_of_a_long_queue_has_its_beginning_and_says_how_long_it_is(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"run": hold}), max_queue=1_000) as service:
        await _busy(service, hold)
        jobs = await _submit(service, "", m.LISTED + 50)
        listed = await gateway(service).queue()
        assert [job_id for job_id, each in listed.jobs.items() if each.position is not None] == jobs[: m.LISTED]
        assert listed.total == m.LISTED + 50
        views, _ = await gateway(service).jobs(limit=500)
        places = {view.job.id: view.live.position for view in views if view.live is not None}
        assert [places[job_id] for job_id in jobs] == list(range(1, m.LISTED + 51))
