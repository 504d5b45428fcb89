"""Images of several prompts in one pass: the same as alone within a level, and no one's failure is another's."""

from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from mflux_api.engine import protocol as p
from mflux_api.engine.control_thread import ControlThread
from mflux_api.engine.device import Device
from mflux_api.engine.sampling.passes import (
    Event,
    ImageEvent,
    PipelineRequest,
    Prompted,
    StepEvent,
    WarningEvent,
)
from mflux_api.engine.sampling.pipeline import NotFiniteError, Pipeline
from mflux_api.engine.weights.components import Components
from mflux_api.engine.worker import Worker
from tests.support.engine_contract import RUN
from tests.support.pipeline_runs import REQUEST, distance, generate, never, rgb_image

OTHERS = (Prompted("a blue lake", (4, 5)), Prompted("a lake", (6,), "snow"))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("fast_path", [False, True])
def test_images_are_the_same_as_alone_within_a_level(
    tiny: Components, device: Device, guidance: float, fast_path: bool
) -> None:
    pipeline = Pipeline(tiny, attrs.evolve(device, fast_path=fast_path))
    own = attrs.evolve(REQUEST, guidance=guidance)
    together = generate(pipeline, attrs.evolve(own, companions=OTHERS))
    alone = generate(pipeline, own)
    for each in OTHERS:
        alone += generate(
            pipeline,
            attrs.evolve(own, prompt=each.prompt, negative_prompt=each.negative_prompt, seeds=each.seeds),
        )
    assert len(together) == len(alone) == 4
    assert max(distance(one, other) for one, other in zip(together, alone, strict=True)) <= 1
    assert distance(alone[0], alone[1]) > 1


def test_steps_are_for_all_images_and_a_cut_prompt_is_told_to_its_own(pipeline: Pipeline) -> None:
    companion = Prompted("word " * 1000, (4,))
    events = list(pipeline.run(attrs.evolve(REQUEST, seeds=(1, 2), companions=(companion,)), never))
    assert {(event.image, event.images) for event in events if isinstance(event, StepEvent)} == {(0, 3)}
    assert [event.image for event in events if isinstance(event, WarningEvent)] == [2]


def test_an_image_that_is_not_wanted_any_more_is_not_decoded(pipeline: Pipeline) -> None:
    request = attrs.evolve(REQUEST, companions=OTHERS)
    events = list(pipeline.run(request, never, is_wanted=lambda index: index != 1))
    assert [event.seed for event in events if isinstance(event, ImageEvent)] == [3, 5, 6]


@pytest.mark.parametrize("fields", [{"low_ram": True}, {"references": (rgb_image(32, 32),)}])
def test_a_pass_with_images_of_its_own_or_little_memory_has_no_companions(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="share"):
        attrs.evolve(REQUEST, companions=OTHERS, **fields)


# --- the child -----------------------------------------------------------------------------------------------------


class Pipe:
    """Keeps what a child says."""

    def __init__(self) -> None:
        self.sent: list[p.Event] = []

    def write(self, event: p.Event, blobs: tuple[bytes, ...] = ()) -> None:
        self.sent.append(event)

    def of(self, run_id: int, *kinds: type[p.Event]) -> list[Any]:
        """Return what was said of a run."""
        return [event for event in self.sent if isinstance(event, kinds) and getattr(event, "run_id", 0) == run_id]


@pytest.fixture
def child(pipeline: Pipeline, device: Device) -> tuple[Worker, Pipe]:
    """A worker in this process with a model in memory."""
    pipe = Pipe()
    worker = Worker(pipe, ControlThread(pipe), device)  # type: ignore[arg-type]
    worker._resident["demo"] = pipeline
    return worker, pipe


RUNS = tuple(attrs.evolve(RUN, run_id=number, prompt=f"house {number}", seeds=(number,)) for number in (1, 2, 3))


def test_where_a_shared_pass_fails_each_run_is_run_alone(
    child: tuple[Worker, Pipe], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, pipe = child
    run = pipeline.run

    def overflowing(request: PipelineRequest, *more: Any) -> Iterator[Event]:
        events = run(request, *more)
        for event in events:
            yield event
            # All that share its pass are told of the first step, and then there is no more to be had.
            if isinstance(event, StepEvent) and 2 in request.all_seeds:
                raise NotFiniteError

    monkeypatch.setattr(pipeline, "run", overflowing)
    worker._run(p.SharedRun(runs=RUNS), ())
    assert [type(event) for event in pipe.sent if isinstance(event, p.RunDone | p.RunFailed)] == [
        p.RunDone,
        p.RunFailed,
        p.RunDone,
    ]
    (failed,) = pipe.of(2, p.RunFailed)
    assert "overflowed" in failed.message
    for number in (1, 3):
        assert len(pipe.of(number, p.ImageDone)) == 1
        assert [event.step for event in pipe.of(number, p.StepDone)] == [1, 2]


def test_an_image_that_was_told_before_a_pass_failed_is_told_once(
    child: tuple[Worker, Pipe], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, pipe = child
    run, fails = pipeline.run, [True]

    def failing_at_last_image(request: PipelineRequest, *more: Any) -> Iterator[Event]:
        for event in run(request, *more):
            if isinstance(event, ImageEvent) and event.seed == 3 and fails.pop():
                raise RuntimeError("[malloc] Unable to allocate 1099511627776 bytes.")
            yield event

    monkeypatch.setattr(pipeline, "run", failing_at_last_image)
    fails.insert(0, False)
    worker._run(p.SharedRun(runs=RUNS), ())
    for number in (1, 2, 3):
        assert [event.index for event in pipe.of(number, p.ImageDone)] == [0]
        assert len(pipe.of(number, p.RunDone)) == 1


def test_a_run_that_is_cancelled_before_it_begins_is_stopped_and_the_others_go_on(child: tuple[Worker, Pipe]) -> None:
    worker, pipe = child
    worker._control.cancelled.add(2)
    worker._run(p.SharedRun(runs=RUNS), ())
    assert len(pipe.of(2, p.RunStopped)) == 1
    assert pipe.of(2, p.ImageDone, p.StepDone) == []
    assert [len(pipe.of(number, p.RunDone)) for number in (1, 3)] == [1, 1]
    assert worker._control.cancelled == set()


def test_runs_that_are_all_cancelled_are_all_stopped(child: tuple[Worker, Pipe]) -> None:
    worker, pipe = child
    worker._control.cancelled |= {1, 2, 3}
    worker._run(p.SharedRun(runs=RUNS), ())
    assert [len(pipe.of(number, p.RunStopped)) for number in (1, 2, 3)] == [1, 1, 1]
    assert worker._control.cancelled == set()


def test_what_does_not_fit_into_one_pass_comes_in_the_next_and_ends_when_it_is_whole(
    child: tuple[Worker, Pipe], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, pipe = child
    monkeypatch.setattr(pipeline, "images_per_pass", lambda request: 2)
    runs = (RUNS[0], attrs.evolve(RUNS[1], seeds=(20, 21)), RUNS[2])
    worker._run(p.SharedRun(runs=runs), ())
    assert [(event.image, event.images, event.step) for event in pipe.of(2, p.StepDone)] == [
        (0, 1, 1),
        (0, 1, 2),
        (1, 1, 1),
        (1, 1, 2),
    ]
    assert [event.seed for event in pipe.of(2, p.ImageDone)] == [20, 21]
    ends = [event.run_id for event in pipe.sent if isinstance(event, p.RunDone)]
    assert ends == [1, 2, 3]
    # The first one did not wait for the second pass.
    assert pipe.sent.index(pipe.of(1, p.RunDone)[0]) < pipe.sent.index(pipe.of(3, p.StepDone)[0])
