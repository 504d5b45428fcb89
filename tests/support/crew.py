"""What the tests of the actor runtime share: children and actors that write down what happens to them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import trio
import trio.testing

from mflux_api.actors.mailbox import Mailbox, MailboxFull
from mflux_api.jobs.job import Job
from mflux_api.supervisor import ChildSpec, Started, Supervisor
from tests.support.requests import resolved_request

NOW = datetime(2026, 1, 1, tzinfo=UTC)
_ids = itertools.count(1)


def a_job(
    *, steps: int = 4, num_images: int = 1, model: str = "demo", synchronous: bool = False, owner: str = ""
) -> Job:
    """A resolved, queued job with an id of its own."""
    number = next(_ids)
    request = resolved_request(model=model, steps=steps, num_images=num_images)
    return Job(
        id=f"{number:012x}",
        request=request,
        created_at=NOW + timedelta(seconds=number),
        synchronous=synchronous,
        owner=owner,
    )


def run_mocked(main: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario in a Trio of its own, where time passes when every task waits."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def checkpoints(count: int) -> None:
    """Let all other tasks take ``count`` turns."""
    for _ in range(count):
        await trio.lowlevel.checkpoint()


def fill(mailbox: Mailbox[Any], message: object) -> None:
    """Queue a message until neither lane has room."""
    for control in (True, False):
        with suppress(MailboxFull):
            while True:
                mailbox.put_nowait(message, control=control)


class Crew:
    """Children that write down when they begin, are ready and end, and that fail when they are told."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.begun: defaultdict[str, list[float]] = defaultdict(list)
        self.alive: list[str] = []
        self._fates: dict[str, tuple[trio.Event, list[BaseException]]] = {}

    def spec(
        self,
        name: str,
        *,
        startup: int = 0,
        cleanup: int = 0,
        life: float | None = None,
        error: BaseException | None = None,
        fails_at_start: Callable[[int], bool] = lambda incarnation: False,
    ) -> ChildSpec:
        """A child that needs ``startup`` turns to be ready and ``cleanup`` turns to stop.

        With ``life`` it ends that many seconds after it was ready, with ``error``, or by returning.
        """

        async def run(status: Started) -> None:
            self.begun[name].append(trio.current_time())
            self.alive.append(name)
            self.log.append(f"begin {name}")
            doom, errors = self._fates[name] = trio.Event(), []
            try:
                await checkpoints(startup)
                if fails_at_start(len(self.begun[name])):
                    raise error or OSError(name)
                self.log.append(f"ready {name}")
                status.started(f"{name} {len(self.begun[name])}")
                if life is None:
                    await doom.wait()
                    for raised in errors:
                        raise raised
                else:
                    await trio.sleep(life)
                    if error is not None:
                        raise error
            finally:
                with trio.CancelScope(shield=True):
                    await checkpoints(cleanup)
                self.alive.remove(name)
                self.log.append(f"end {name}")

        return ChildSpec(name=name, run=run, on_exit=lambda: self.log.append(f"exit {name}"))

    def fail(self, name: str, error: BaseException | None = None) -> None:
        """End the child as it stands: by ``error``, or by returning."""
        doom, errors = self._fates[name]
        if error is not None:
            errors.append(error)
        doom.set()

    def said(self, *words: str, since: int = 0) -> list[str]:
        """The entries of the log of these kinds."""
        return [entry for entry in self.log[since:] if entry.split()[0] in words]


def specs(crew: Crew, names: Iterable[str], **options: Any) -> list[ChildSpec]:
    """One child for each name."""
    return [crew.spec(name, **options) for name in names]


def family(crew: Crew, *, startup: int = 1, cleanup: int = 3, **options: Any) -> tuple[Supervisor, Sequence[str]]:
    """Three supervisors, one inside the other, and their children in the order they start."""
    a, b, c, d, e, f = (crew.spec(name, startup=startup, cleanup=cleanup) for name in "abcdef")
    innermost = Supervisor("innermost", [c, d], **options)
    inner = Supervisor("inner", [b, ChildSpec(name="innermost", run=innermost.run), e], **options)
    return Supervisor("outer", [a, ChildSpec(name="inner", run=inner.run), f], **options), "abcdef"


@asynccontextmanager
async def running(run: Callable[[Started], Awaitable[None]]) -> AsyncIterator[None]:
    """Run a supervisor or an actor for as long as the block lasts, from when it is ready."""
    async with trio.open_nursery() as nursery:
        status = Started()
        nursery.start_soon(run, status)
        await status.event.wait()
        yield
        nursery.cancel_scope.cancel()
