"""One failure comes out of a nursery as it was raised."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mflux_api.system.nurseries import unwrapped_nursery


class _Broke(Exception):
    pass


async def test_one_failure_comes_out_as_it_was_raised() -> None:
    cause, context, failure = _Broke("cause"), _Broke("context"), _Broke("failure")

    async def fail() -> None:
        try:
            raise context
        except _Broke:
            raise failure from cause

    async def body() -> None:
        async with unwrapped_nursery() as nursery, trio.open_nursery() as inner:
            nursery.start_soon(trio.sleep_forever)
            inner.start_soon(fail)

    with pytest.raises(_Broke) as raised:
        await body()
    assert raised.value is failure
    assert (failure.__cause__, failure.__context__) == (cause, context)


async def test_of_several_failures_one_comes_out() -> None:
    failures = [_Broke("body"), _Broke("task")]

    async def fail_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise failures[1]

    async def body() -> None:
        async with unwrapped_nursery() as nursery:
            nursery.start_soon(fail_late)
            await wait_all_tasks_blocked()
            raise failures[0]

    with pytest.raises(_Broke) as raised:
        await body()
    assert raised.value in failures


async def test_cancellation_passes_through_it_and_a_failure_on_the_way_out_does_too() -> None:
    async def body(scope: trio.CancelScope, *failures: Exception) -> None:
        with scope:
            async with unwrapped_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
                for failure in failures:
                    raise failure
                await trio.sleep_forever()

    scope = trio.CancelScope()
    await body(scope)
    assert scope.cancelled_caught
    with pytest.raises(_Broke):
        await body(trio.CancelScope(), _Broke())


@pytest.mark.parametrize("beside", [[], [_Broke()]])
async def test_interrupt_stays_in_its_group_and_is_never_lost(beside: list[Exception]) -> None:
    async def interrupted() -> None:
        raise KeyboardInterrupt

    async def body() -> None:
        async with unwrapped_nursery() as nursery:
            nursery.start_soon(interrupted)
            for failure in beside:
                raise failure
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as raised:
        await body()
    assert raised.group_contains(KeyboardInterrupt)
