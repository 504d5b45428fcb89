"""Waiting for worker threads: who waits for their end, and how such a wait ends when a thread does not."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mflux_api.system.threads import ThreadAbandoned, ThreadWaits, read_in_thread, run_in_thread
from tests.support.server import ROOT


@contextmanager
def blocked_call() -> Iterator[threading.Event]:
    """The event that a call on a dead disk waits for; set in the end, so that no thread outlives the test."""
    back = threading.Event()
    try:
        yield back
    finally:
        back.set()


async def test_cancelled_caller_of_a_change_waits_for_its_end() -> None:
    done: list[str] = []
    with blocked_call() as back:

        def change() -> None:
            back.wait()
            done.append("changed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_in_thread, change)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            assert done == []
            back.set()
    assert done == ["changed"]


async def test_cancelled_caller_of_a_reading_leaves_at_once() -> None:
    with blocked_call() as back, trio.move_on_after(0.01) as scope:
        await read_in_thread(back.wait)
    assert scope.cancelled_caught


async def test_given_up_wait_ends_without_its_thread_whose_place_stays_taken() -> None:
    waits, limiter = ThreadWaits(), trio.CapacityLimiter(1)
    ended = trio.Event()

    async def child(back: threading.Event) -> None:
        waits.bind()
        try:
            await run_in_thread(back.wait, limiter=limiter)
        finally:
            ended.set()

    with blocked_call() as back:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, back)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            assert not ended.is_set()
            assert waits.abandon() == 1
        assert limiter.borrowed_tokens == 1
        back.set()
        while limiter.borrowed_tokens:
            await trio.lowlevel.checkpoint()


async def test_given_up_child_starts_no_further_thread_while_it_tidies_up() -> None:
    waits, limiter = ThreadWaits(), trio.CapacityLimiter(1)
    waits.bind()
    waits.abandon()
    with pytest.raises(ThreadAbandoned):
        await run_in_thread(pytest.fail, "a thread was started", limiter=limiter)
    assert limiter.borrowed_tokens == 0


async def test_cancelled_call_that_waits_for_its_turn_is_not_made() -> None:
    limiter = trio.CapacityLimiter(1)
    with blocked_call() as back:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: run_in_thread(back.wait, limiter=limiter))
            await wait_all_tasks_blocked()
            with trio.move_on_after(0.01) as scope:
                await run_in_thread(pytest.fail, "it was made", limiter=limiter)
            assert scope.cancelled_caught
            back.set()


async def test_error_of_the_function_passes_and_frees_its_place() -> None:
    limiter = trio.CapacityLimiter(1)
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(lambda: 1 // 0, limiter=limiter)
    assert limiter.borrowed_tokens == 0


def test_every_thread_of_the_service_is_waited_for_in_one_place() -> None:
    """Any other wait for a thread would hold up the end without a bound."""
    callers = [path for path in (ROOT / "mflux_api").rglob("*.py") if "to_thread" in path.read_text("utf-8")]
    assert [path.name for path in callers] == ["threads.py"]
