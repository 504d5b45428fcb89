"""Supervision after Erlang/OTP on one Trio nursery; it imports no actor.

Children start in order, each awaited until it is ready, and stop in exact reverse order. A child that ends is
restarted by the strategy after an exponential backoff. More than ``intensity.restarts`` failures within
``intensity.seconds`` escalate: the supervisor stops everything it has and raises one :class:`Escalated`.

Every child lives in a shielded cancel scope that only its supervisor cancels. So an outer cancellation reaches the
supervisor alone, and the order in which children stop does not depend on luck.
"""

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any

import attrs
import trio

from mflux_api.errors import ServiceFailed

logger = logging.getLogger(__name__)


class Strategy(Enum):
    """Which children are restarted when one of them fails."""

    ONE_FOR_ONE = "one_for_one"
    """Only the failed one."""
    REST_FOR_ONE = "rest_for_one"
    """The failed one and all that were started after it."""
    ONE_FOR_ALL = "one_for_all"
    """All of them."""


@attrs.frozen(kw_only=True)
class Backoff:
    """Seconds to wait before the n-th restart in a row: ``first × factor^(n-1)``, at most ``maximum``."""

    first: float = 0.05
    factor: float = 2.0
    maximum: float = 5.0

    def delay(self, failures: int) -> float:
        """Return the wait after ``failures`` failures within the intensity's window (at least 1)."""
        return min(self.maximum, self.first * self.factor ** (failures - 1))


@attrs.frozen(kw_only=True)
class Intensity:
    """How many restarts within how many seconds are tolerated."""

    restarts: int = 3
    seconds: float = 60.0


@attrs.frozen(kw_only=True)
class ChildSpec:
    """How to run one child."""

    name: str
    run: Callable[["Started"], Awaitable[None]]
    """Runs until it fails or is cancelled; calls ``started`` once it is ready. Returning is a failure too."""
    on_exit: Callable[[], None] = lambda: None
    """Called after each end of the child, before anybody learns of it."""


class Escalated(ServiceFailed):
    """A supervisor gave up on a child that kept failing; ``__cause__`` is the child's last error."""

    def __init__(self, supervisor: str, child: str, restarts: int, cause: BaseException | None) -> None:
        kind = "it returned" if cause is None else type(_innermost(cause)).__name__
        super().__init__(f"{supervisor}: '{child}' kept failing after {restarts} restarts (last: {kind})")
        self.supervisor = supervisor
        self.child = child
        self.__cause__ = cause


class Ended(ServiceFailed):
    """The supervisor has stopped and takes no requests."""


class Started:
    """What a child calls when it is ready, with a value for whoever started it (Trio's ``task_status``)."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.value: Any = None

    def started(self, value: Any = None) -> None:
        """Report readiness."""
        self.value = value
        self.event.set()


class _Running:
    """One incarnation of a child."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.scope = trio.CancelScope(shield=True)
        self.status = Started()
        self.done = trio.Event()
        self.error: BaseException | None = None
        self.stopping = False


@attrs.frozen
class _Add:
    spec: ChildSpec
    result: trio.MemorySendChannel[Any]


@attrs.frozen
class _Remove:
    name: str
    result: trio.MemorySendChannel[Any]


class Supervisor:
    """Keeps a list of children running; is itself a child of the supervisor above it."""

    def __init__(
        self,
        name: str,
        children: Sequence[ChildSpec],
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: Intensity = Intensity(),
        backoff: Backoff = Backoff(),
    ) -> None:
        self.name = name
        self._specs = list(children)
        self._strategy = strategy
        self._intensity = intensity
        self._backoff = backoff
        self._running: dict[str, _Running] = {}
        self._due: dict[str, float] = {}
        self._failures: deque[float] = deque()
        self._ended = False
        # Unbounded: a child that ends must never wait, and requests come from few callers.
        self._inbox_send, self._inbox = trio.open_memory_channel[_Running | _Add | _Remove](math.inf)

    async def run(self, status: Started) -> None:
        """Run the children until cancelled.

        Raises:
            Escalated: a child failed more often than the intensity allows.
        """
        failure: ServiceFailed | None = None
        self._ended = False
        async with trio.open_nursery() as nursery:
            try:
                for spec in list(self._specs):
                    await self._start(nursery, spec)
                status.started()
                await self._supervise(nursery)
            except ServiceFailed as error:
                # Kept aside so that the nursery does not wrap it in a group.
                failure = error
            finally:
                with trio.CancelScope(shield=True):
                    await self._stop(self._specs)
                self._running.clear()
                self._due.clear()
                self._failures.clear()
                self._refuse_requests()
        if failure is not None:
            raise failure

    async def add(self, spec: ChildSpec) -> Any:
        """Start one more child, last in order; returns what it reported when it was ready.

        Raises:
            Exception: whatever the child raised before it was ready; it is not kept then.
            Ended: the supervisor has stopped.
        """
        return await self._request(lambda result: _Add(spec, result))

    async def remove(self, name: str) -> None:
        """Stop a child that was added and forget it.

        Raises:
            Ended: the supervisor has stopped, and all its children with it.
        """
        await self._request(lambda result: _Remove(name, result))

    def is_running(self, name: str) -> bool:
        """Whether the child is up and ready."""
        child = self._running.get(name)
        return child is not None and child.status.event.is_set()

    async def _request(self, build: Callable[[trio.MemorySendChannel[Any]], _Add | _Remove]) -> Any:
        send, receive = trio.open_memory_channel[Any](1)
        if self._ended:
            raise Ended(self.name)
        self._inbox_send.send_nowait(build(send))
        with receive:
            try:
                answer = await receive.receive()
            except trio.EndOfChannel:
                raise Ended(self.name) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _refuse_requests(self) -> None:
        """Nobody reads the inbox any more: whoever waits for an answer learns it."""
        self._ended = True
        while True:
            try:
                event = self._inbox.receive_nowait()
            except trio.WouldBlock:
                return
            if not isinstance(event, _Running):
                event.result.close()

    async def _supervise(self, nursery: trio.Nursery) -> None:
        while True:
            deadline = min(self._due.values(), default=math.inf)
            event: _Running | _Add | _Remove | None = None
            with trio.move_on_at(deadline):
                event = await self._inbox.receive()
            match event:
                case None:
                    await self._restart_due(nursery)
                case _Running():
                    # A child that was stopped on purpose also reports its end; that is no failure.
                    if self._running.get(event.spec.name) is event:
                        del self._running[event.spec.name]
                        await self._failed(event.spec, event.error)
                case _Add():
                    await self._add(nursery, event)
                case _Remove():
                    await self._remove(event)

    async def _start(self, nursery: trio.Nursery, spec: ChildSpec) -> _Running:
        child = _Running(spec)
        self._running[spec.name] = child
        nursery.start_soon(self._run_child, child, name=f"{self.name}/{spec.name}")
        await _first_of(child.status.event, child.done)
        if not child.status.event.is_set():
            self._running.pop(spec.name, None)
            raise _start_error(spec, child.error)
        return child

    async def _run_child(self, child: _Running) -> None:
        try:
            with child.scope:
                await child.spec.run(child.status)
        except Exception as error:  # noqa: BLE001 - the one place where any failure becomes a decision
            child.error = error
        finally:
            child.spec.on_exit()
            child.done.set()
            if not child.stopping:
                self._inbox_send.send_nowait(child)

    async def _stop(self, specs: Sequence[ChildSpec]) -> None:
        for spec in reversed(specs):
            child = self._running.get(spec.name)
            if child is None:
                continue
            child.stopping = True
            child.scope.cancel()
            await child.done.wait()
            del self._running[spec.name]
            if child.error is not None:
                logger.error("%s: '%s' failed while stopping: %s", self.name, spec.name, _named(child.error))

    async def _failed(self, spec: ChildSpec, error: BaseException | None) -> None:
        now = trio.current_time()
        self._failures.append(now)
        while self._failures and self._failures[0] <= now - self._intensity.seconds:
            self._failures.popleft()
        logger.error("%s: '%s' failed: %s", self.name, spec.name, _named(error))
        logger.debug("%s: '%s' failed", self.name, spec.name, exc_info=error)
        if len(self._failures) > self._intensity.restarts:
            raise Escalated(self.name, spec.name, self._intensity.restarts, error)
        affected = self._affected(spec)
        await self._stop(affected)
        due = now + self._backoff.delay(len(self._failures))
        self._due.update({each.name: due for each in affected})

    def _affected(self, spec: ChildSpec) -> list[ChildSpec]:
        match self._strategy:
            case Strategy.ONE_FOR_ONE:
                return [spec]
            case Strategy.REST_FOR_ONE:
                return self._specs[self._specs.index(spec) :]
            case Strategy.ONE_FOR_ALL:
                return list(self._specs)

    async def _restart_due(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        for spec in [spec for spec in self._specs if self._due.get(spec.name, math.inf) <= now]:
            # A failure on the way may have stopped or postponed the ones after it.
            if self._due.get(spec.name, math.inf) > now:
                continue
            del self._due[spec.name]
            try:
                await self._start(nursery, spec)
            except _StartFailed as failed:
                await self._failed(spec, failed.__cause__)

    async def _add(self, nursery: trio.Nursery, request: _Add) -> None:
        if any(spec.name == request.spec.name for spec in self._specs):
            _answer(request.result, ValueError(f"'{request.spec.name}' is running already"))
            return
        self._specs.append(request.spec)
        try:
            child = await self._start(nursery, request.spec)
        except _StartFailed as failed:
            self._specs.remove(request.spec)
            _answer(request.result, failed.__cause__ or failed)
        else:
            _answer(request.result, child.status.value)

    async def _remove(self, request: _Remove) -> None:
        specs = [spec for spec in self._specs if spec.name == request.name]
        await self._stop(specs)
        for spec in specs:
            self._specs.remove(spec)
            self._due.pop(spec.name, None)
        _answer(request.result, None)


class _StartFailed(ServiceFailed):
    """A child ended before it was ready; ``__cause__`` is its error."""


def _start_error(spec: ChildSpec, error: BaseException | None) -> _StartFailed:
    failed = _StartFailed(f"'{spec.name}' ended before it was ready ({_named(error)})")
    failed.__cause__ = error
    return failed


def _answer(channel: trio.MemorySendChannel[Any], value: Any) -> None:
    with channel:
        try:
            channel.send_nowait(value)
        except trio.BrokenResourceError:
            logger.debug("the caller of a supervisor request is gone")


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _named(error: BaseException | None) -> str:
    """Return the error's type only: its text may hold a prompt."""
    return "it returned" if error is None else type(_innermost(error)).__name__


async def _first_of(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
