"""A job and its state machine: which steps are allowed, and what each leaves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.errors import OutOfMemory
from mflux_api.jobs import job as jobs
from mflux_api.jobs.job import Failure, InvalidTransition, Job, Status, StoredImage
from tests.support.crew import NOW, a_job

FAILURE = Failure.from_error(OutOfMemory("too big", {"suggestion": "smaller"}))
IMAGES = (StoredImage(path="/x.png", seed=1, width=64, height=64, sha256="0" * 64),)
LATER = NOW + timedelta(hours=1)

TRANSITIONS: dict[str, tuple[set[Status], Status, Callable[[Job], Job]]] = {
    "start": ({Status.QUEUED}, Status.GENERATING, lambda job: jobs.start(job, LATER)),
    "requeue": ({Status.GENERATING}, Status.QUEUED, lambda job: jobs.requeue(job, engine_died=True)),
    "complete": ({Status.GENERATING}, Status.COMPLETED, lambda job: jobs.complete(job, IMAGES, None, LATER)),
    "fail": ({Status.QUEUED, Status.GENERATING}, Status.FAILED, lambda job: jobs.fail(job, FAILURE, LATER)),
    "cancel": ({Status.QUEUED, Status.GENERATING}, Status.CANCELLED, lambda job: jobs.cancel(job, LATER)),
}


@given(st.lists(st.sampled_from(sorted(TRANSITIONS)), max_size=12))
def test_only_the_allowed_steps_succeed_and_an_end_is_final(steps: list[str]) -> None:
    job = a_job()
    attempts = 0
    for step in steps:
        allowed, becomes, change = TRANSITIONS[step]
        if job.status not in allowed:
            with pytest.raises(InvalidTransition, match=job.id):
                change(job)
            continue
        assert not job.status.terminal
        changed = change(job)
        attempts += step == "requeue"
        assert changed.status is becomes
        assert changed.engine_deaths == attempts
        assert (changed.id, changed.request, changed.created_at) == (job.id, job.request, job.created_at)
        assert (changed.completed_at is not None) is becomes.terminal
        assert (changed.failure is not None) is (becomes is Status.FAILED)
        assert becomes is not Status.COMPLETED or (changed.progress, changed.images) == (1.0, IMAGES)
        job = changed


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("step", TRANSITIONS)
def test_every_state_and_every_step(status: Status, step: str) -> None:
    allowed, becomes, change = TRANSITIONS[step]
    job = attrs.evolve(a_job(), status=status)
    if status in allowed:
        assert change(job).status is becomes
    else:
        with pytest.raises(InvalidTransition, match=status):
            change(job)
    assert status.terminal is (status in {Status.COMPLETED, Status.FAILED, Status.CANCELLED})


def test_the_first_start_counts_and_a_requeue_forgets_the_images_of_the_attempt() -> None:
    job = jobs.start(a_job(), NOW)
    again = jobs.requeue(attrs.evolve(job, images=IMAGES), service_died=True)
    assert (again.images, again.engine_deaths, again.service_deaths) == ((), 0, 1)
    assert jobs.start(again, LATER).started_at == NOW
    # A drain is not a death.
    drained = jobs.requeue(job)
    assert (drained.engine_deaths, drained.service_deaths) == (0, 0)


def test_what_was_saved_stays_with_a_job_that_was_cancelled_or_failed() -> None:
    job = jobs.start(a_job(), NOW)
    for ended in (
        jobs.cancel(job, LATER, images=IMAGES, progress=0.5),
        jobs.fail(job, FAILURE, LATER, images=IMAGES, progress=0.5),
    ):
        assert (ended.images, ended.progress, ended.completed_at) == (IMAGES, 0.5, LATER)


def test_a_failure_keeps_what_a_client_may_see() -> None:
    assert (FAILURE.message, FAILURE.code, FAILURE.details) == ("too big", "OOM_ERROR", {"suggestion": "smaller"})


def test_ids_are_twelve_hexadecimal_digits_and_differ() -> None:
    ids = {jobs.new_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(job_id) == 12 and int(job_id, 16) >= 0 for job_id in ids)


@pytest.mark.parametrize("end", ["complete", "fail", "cancel"])
def test_finished_job_holds_its_init_images_no_more_and_one_that_goes_on_does(end: str) -> None:
    queued = a_job()
    queued = attrs.evolve(queued, request=attrs.evolve(queued.request, init_images=("iVBORwAA",)))
    again = jobs.start(jobs.requeue(jobs.start(queued, LATER)), LATER)
    assert again.request.init_images == ("iVBORwAA",)
    _, _, change = TRANSITIONS[end]
    assert change(again).request.init_images == ()
