"""A job's progress: it never decreases, and counts each step once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.jobs.job import Stage, Status
from mflux_api.jobs.progress import Progress, ProgressTracker
from tests.support.crew import a_job


def _attempt(tracker: ProgressTracker, images: int, steps: int, *, attempt: int, until: int) -> list[Progress]:
    """One attempt as the engine reports it, cut after ``until`` reports."""
    tracker.begin_attempt(attempt)
    reports: list[Callable[[], Progress]] = [lambda: tracker.stage(Stage.ENCODING)]
    for image in range(1, images + 1):
        reports.extend(
            lambda step=step, image=image: tracker.step(step, steps, image=image - 1)  # type: ignore[misc]
            for step in range(1, steps + 1)
        )
        reports.append(lambda: tracker.stage(Stage.DECODING))
        reports.append(lambda: tracker.stage(Stage.SAVING))
        reports.append(lambda image=image: tracker.image_saved(image))  # type: ignore[misc]
    return [report() for report in reports[:until]]


@given(st.integers(1, 4), st.integers(1, 12), st.lists(st.integers(0, 60), max_size=3))
def test_progress_never_decreases_across_attempts_and_the_last_is_exactly_one(
    images: int, steps: int, deaths: list[int]
) -> None:
    tracker = ProgressTracker(a_job(steps=steps, num_images=images))
    seen = [tracker.latest]
    for attempt, until in enumerate(deaths, start=1):
        seen += _attempt(tracker, images, steps, attempt=attempt, until=until)
        seen.append(tracker.back_to_queue())
    seen += _attempt(tracker, images, steps, attempt=len(deaths) + 1, until=10**6)
    values = [progress.progress for progress in seen]
    assert values == sorted(values)
    assert values[0] == 0.0
    assert seen[-1].progress == 1.0
    assert (seen[-1].image, seen[-1].images, seen[-1].step, seen[-1].stage) == (images, images, steps, Stage.SAVING)
    assert (seen[-1].attempt, seen[-1].status) == (len(deaths) + 1, Status.GENERATING)
    assert all(progress.progress < 1.0 for progress in _before_first_full(seen, deaths, images, steps))


def _before_first_full(seen: list[Progress], deaths: list[int], images: int, steps: int) -> list[Progress]:
    """All but the last, unless an attempt died after its very last report."""
    full = 1 + images * (steps + 3)
    return [] if any(until >= full for until in deaths) else seen[:-1]


@given(st.integers(1, 4), st.integers(1, 12))
def test_progress_is_steps_done_and_images_saved_of_all_there_are(images: int, steps: int) -> None:
    tracker = ProgressTracker(a_job(steps=steps, num_images=images))
    done = 0
    for progress in _attempt(tracker, images, steps, attempt=1, until=10**6):
        if progress.stage is Stage.DENOISING or (
            progress.stage is Stage.SAVING and progress.image * (steps + 1) > done
        ):
            done += 1
        assert progress.progress == pytest.approx(done / (images * (steps + 1)))
    assert done == images * (steps + 1)


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 4))
def test_step_of_several_images_counts_for_each_of_them(images: int, steps: int, per_pass: int) -> None:
    tracker = ProgressTracker(a_job(steps=steps, num_images=images))
    tracker.begin_attempt(1)
    total = images * (steps + 1)
    for first in range(0, images, per_pass):
        together = min(per_pass, images - first)
        for step in range(1, steps + 1):
            report = tracker.step(step, steps, image=first, images=together)
            assert report.progress == (first * (steps + 1) + step * together) / total
            assert tracker.steps_ahead == step * together
        tracker.stage(Stage.DECODING)
        for saved in range(1, together + 1):
            progress = tracker.image_saved(first + saved)
            done = first * (steps + 1) + together * steps + saved
            assert progress.progress == pytest.approx(done / total)
            assert tracker.steps_ahead == (together - saved) * steps
    assert (progress.progress, progress.step, progress.image) == (1.0, steps, images)


@given(st.integers(1, 4), st.integers(1, 12))
def test_images_that_are_all_denoised_before_one_is_saved_count_each_step_once(images: int, steps: int) -> None:
    """As under ``low_ram``."""
    tracker = ProgressTracker(a_job(steps=steps, num_images=images))
    tracker.begin_attempt(1)
    total = images * (steps + 1)
    tracker.stage(Stage.DENOISING)
    for image in range(images):
        for step in range(1, steps + 1):
            progress = tracker.step(step, steps, image=image)
            assert (progress.image, progress.step, progress.steps) == (image, step, steps)
            assert progress.progress == (image * steps + step) / total
            assert (tracker.steps_ahead, tracker.images_saved) == (image * steps + step, 0)
    assert tracker.stage(Stage.DECODING).image == 0
    for saved in range(1, images + 1):
        progress = tracker.image_saved(saved)
        assert progress.image == saved
        assert progress.progress == pytest.approx((images * steps + saved) / total)
        assert tracker.steps_ahead == (images - saved) * steps
        assert (tracker.stage(Stage.DECODING).image, tracker.images_saved) == (saved, saved)


def test_the_engine_decides_how_many_steps_run() -> None:
    """An edit at strength 0.5 runs half the steps that were asked for."""
    tracker = ProgressTracker(a_job(steps=8))
    tracker.begin_attempt(1)
    assert tracker.step(1, 4, image=0).progress == 1 / 5
    assert tracker.step(4, 4, image=0).progress == 4 / 5
    assert tracker.image_saved(1).progress == 1.0


def test_a_requeued_job_is_queued_and_keeps_its_progress() -> None:
    tracker = ProgressTracker(a_job(steps=4))
    assert (tracker.latest.status, tracker.latest.stage, tracker.latest.attempt) == (Status.QUEUED, Stage.QUEUED, 1)
    tracker.begin_attempt(1)
    assert (tracker.latest.status, tracker.latest.stage) == (Status.GENERATING, Stage.LOADING)
    tracker.step(2, 4, image=0)
    waiting = tracker.back_to_queue()
    assert (waiting.status, waiting.stage, waiting.step, waiting.progress) == (Status.QUEUED, Stage.QUEUED, 0, 0.4)
    tracker.begin_attempt(2)
    assert tracker.step(1, 4, image=0).progress == 0.4
    assert tracker.step(3, 4, image=0).progress == 0.6
