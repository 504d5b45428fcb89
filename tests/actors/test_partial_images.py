"""Partial images on their way from the engine to a job's followers: for those who ask, and never waited for."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import pytest
from PIL import Image

from mflux_api.actors import messages as m
from mflux_api.actors.event_hub import SUBSCRIBER_BUFFER, HubState
from mflux_api.engine import protocol as p
from mflux_api.jobs import job as jobs
from mflux_api.jobs.job import Stage, Status
from mflux_api.jobs.progress import Finished, PartialImage, Progress, StreamEvent
from tests.support.crew import NOW, a_job
from tests.support.harness import ended, request, scripted_service
from tests.support.scripted_engine import PARTIAL, Hold, Script, pixels


def asked(seed: int = 1, **fields: Any) -> Any:
    return attrs.evolve(request(seed), steps=4, partial_images=2, **fields)


def partial(job_id: str, index: int = 0) -> PartialImage:
    return PartialImage(
        id=job_id,
        image=0,
        partial_image_index=index,
        step=1,
        steps=4,
        width=8,
        height=8,
        output_format="png",
        base64=b"AA",
    )


def shown(events: list[StreamEvent]) -> list[PartialImage]:
    return [event for event in events if isinstance(event, PartialImage)]


async def followed(folder: Path, script: Script, *, images: int = 1, **fields: Any) -> list[StreamEvent]:
    """Follow a job whose engine goes on when its partial images so far have come."""
    events = list[StreamEvent]()
    begin, middle, end = Hold(), Hold(), Hold()
    script.at |= {"run": begin, "step 0/3": middle, "image 0": end}
    async with scripted_service(folder, script) as service:
        job = await service.submit(asked(num_images=images, **fields))
        async with service.events(job.id, partial_images=True) as stream:
            begin.release.set()
            async for event in stream:
                events.append(event)
                for hold, count in ((middle, images), (end, 2 * images)):
                    if len(shown(events)) == count:
                        hold.release.set()
    return events


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_follower_gets_them_in_the_format_of_the_request(tmp_path: Path, kind: Any) -> None:
    events = await followed(tmp_path, Script(), output_format=kind)
    assert isinstance(events[-1], Finished)
    found = shown(events)
    assert [(each.image, each.partial_image_index, each.step, each.steps) for each in found] == [
        (0, 0, 1, 4),
        (0, 1, 3, 4),
    ]
    for each in found:
        image = Image.open(BytesIO(base64.b64decode(each.base64)))
        assert (image.format, image.size, each.output_format) == (kind.upper(), (each.width, each.height), kind)
        if kind == "png":
            assert image.tobytes() == pixels(1 + PARTIAL * each.step, each.width, each.height)


async def test_follower_who_does_not_ask_gets_none(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_service(tmp_path, Script(at={"image 0": hold})) as service:
        job = await service.submit(asked())
        async with service.events(job.id) as plain, service.events(job.id, partial_images=True) as all_of_them:
            async for event in all_of_them:
                if isinstance(event, PartialImage) and event.partial_image_index == 1:
                    hold.release.set()
            assert all(isinstance(event, Progress | Finished) for event in [each async for each in plain])


async def test_images_of_one_pass_have_theirs(tmp_path: Path) -> None:
    events = await followed(tmp_path, Script(per_pass=2), images=2)
    assert [(each.image, each.step) for each in shown(events)] == [(0, 1), (1, 1), (0, 3), (1, 3)]


async def test_job_waits_for_none(tmp_path: Path) -> None:
    """All frames of the run come at once: what is not encoded when it ends is left out."""
    async with scripted_service(tmp_path, Script(per_pass=8)) as service:
        end = await ended(service, (await service.submit(asked(num_images=4))).id)
        assert (end.status.value, len(end.images)) == ("completed", 4)


async def test_slow_follower_goes_without_and_still_gets_the_end() -> None:
    job, state = a_job(), HubState("boot")
    state.publish(job.id, _step(job.id))
    subscription = state.subscribe(job.id, None)
    state.watch(job.id, previews=False, partial_images=True)
    for index in range(3 * SUBSCRIBER_BUFFER):
        state.show(partial(job.id, index))
    state.publish(job.id, Finished(job=jobs.cancel(job, NOW)))
    with subscription.channel:
        seen = [logged.event async for logged in subscription.channel]
    assert len(seen) == m.PARTIAL_IMAGES_WAITING + 1
    assert isinstance(seen[-1], Finished)


async def test_other_events_that_wait_keep_none_from_a_follower() -> None:
    job, state = a_job(), HubState("boot")
    state.publish(job.id, _step(job.id))
    subscription = state.subscribe(job.id, None)
    state.watch(job.id, previews=False, partial_images=True)
    for _ in range(3):
        for number in range(m.PARTIAL_IMAGES_WAITING):
            state.publish(job.id, attrs.evolve(_step(job.id), step=number))
            state.show(partial(job.id, number))
        seen = [(await subscription.channel.receive()).event for _ in range(2 * m.PARTIAL_IMAGES_WAITING)]
        assert len(shown(seen)) == m.PARTIAL_IMAGES_WAITING
    subscription.channel.close()


async def test_they_are_in_no_log_and_say_where_it_is() -> None:
    job, state = a_job(), HubState("boot")
    state.publish(job.id, _step(job.id))
    subscription = state.subscribe(job.id, None)
    state.watch(job.id, previews=False, partial_images=True)
    state.show(partial(job.id))
    with subscription.channel:
        logged = await subscription.channel.receive()
    assert logged.id == "boot-1"
    again = state.subscribe(job.id, "unknown")
    assert [type(entry.event) for entry in again.backlog] == [Progress]
    again.channel.close()


async def test_one_of_a_job_that_has_ended_or_is_not_known_is_dropped() -> None:
    job, state = a_job(), HubState("boot")
    state.show(partial(job.id))
    state.publish(job.id, _step(job.id))
    state.publish(job.id, Finished(job=jobs.cancel(job, NOW)))
    state.show(partial(job.id))
    subscription = state.subscribe(job.id, "unknown")
    assert not any(isinstance(entry.event, PartialImage) for entry in subscription.backlog)


@pytest.mark.parametrize(
    "change",
    [
        lambda event: attrs.evolve(event, index=1),
        lambda event: attrs.evolve(event, number=2),
        lambda event: attrs.evolve(event, width=event.width + 16),
    ],
)
async def test_engine_that_sends_one_that_was_not_asked_for_is_replaced(tmp_path: Path, change: Any) -> None:
    changed = 0

    def tamper(event: p.Event, blobs: tuple[bytes, ...]) -> tuple[p.Event, tuple[bytes, ...]]:
        nonlocal changed
        if isinstance(event, p.PartialImageMade) and not changed:
            changed += 1
            return change(event), blobs
        return event, blobs

    script = Script(tamper=tamper)
    async with scripted_service(tmp_path, script) as service:
        job = await ended(service, (await service.submit(asked())).id)
        assert (job.status.value, job.engine_deaths) == ("completed", 1)
    assert len(script.engines) == 2


async def test_run_asks_for_as_many_as_there_can_be(tmp_path: Path) -> None:
    script = Script()
    async with scripted_service(tmp_path, script) as service:
        for fields in ({"steps": 2, "partial_images": 3}, {"low_ram": True}, {"partial_images": 0}):
            job = await ended(service, (await service.submit(attrs.evolve(asked(), **fields))).id)
            assert bool(job.warnings) is (fields.get("partial_images") != 0)
            assert all("partial_images" in warning for warning in job.warnings)
    commands = [command for command in script.current.received if isinstance(command, p.Run)]
    assert [command.partial_images for command in commands] == [1, 0, 0]


def _step(job_id: str) -> Progress:
    return Progress(id=job_id, status=Status.GENERATING, stage=Stage.DENOISING, progress=0.5)
