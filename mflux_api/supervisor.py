"""Supervision after Erlang/OTP on one Trio nursery; it imports no actor.

Children start in order, each after those before it are ready, and stop in exact reverse order. A child that ends is
restarted by the strategy after an exponential backoff. More than ``intensity.restarts`` failures within
``intensity.seconds`` escalate: the supervisor stops everything it has and raises one :class:`Escalated`.

Every child lives in a shielded cancel scope that only its supervisor cancels. So an outer cancellation reaches the
supervisor alone, and the order in which children stop does not depend on luck.

The supervisor never waits for a child to become ready: it takes one event after another. So a child whose start needs
one that has just died (the scheduler asks the job store) does not keep that one from being restarted.

A child that is itself a supervisor may be isolated: that it gives up is not counted, and it starts again after a while.

A child that is stopped has a deadline. What it waits for in threads is then abandoned, and the supervisor ends with
:class:`DidNotStop`, which no supervisor above answers with a restart: the thread may still write what its successor
would write. A child process is ended by whatever started it, within bounds of its own.
"""

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

import attrs
import trio

from mflux_api.errors import ServiceFailed
from mflux_api.system.nurseries import first_failure, unwrapped_nursery
from mflux_api.system.threads import ThreadWaits, move_on_after_real

STOP_SECONDS = 10.0
"""What a child may take to stop when it is restarted. The largest image (22 MP) is encoded in 3 s on two busy cores,
and SQLite waits 5 s for another program."""

SHUTDOWN_SECONDS = 4.0
"""The same when its supervisor ends: sooner than the watchdog ends the process, so that the log names the child."""

_AFTERMATH_SECONDS = 3.0
"""What a child may take to end once its threads are abandoned; without any, to end late after all."""

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
        # The exponent is bounded too: a child that fails all night would overflow a float.
        return min(self.maximum, self.first * self.factor ** min(failures - 1, 64))


@attrs.frozen(kw_only=True)
class Intensity:
    """How many restarts within how many seconds are tolerated."""

    restarts: int = 3
    seconds: float = 60.0


DEFAULT_BACKOFF = Backoff()
DEFAULT_INTENSITY = Intensity()


@attrs.frozen(kw_only=True)
class Isolation:
    """What happens when a child that is a supervisor gives up: its own supervisor does not count it."""

    on_start: Callable[[], None] = lambda: None
    """Called before each start of the child."""
    on_failed: Callable[[ServiceFailed], None] = lambda error: None
    """Called when it has given up, and everything below it has stopped."""
    backoff: Backoff = Backoff(first=1.0, factor=2.0, maximum=60.0)
    """The wait before the next start."""
    healthy_seconds: float = 60.0
    """A child that was ready for so long begins with the first wait again."""


@attrs.frozen(kw_only=True)
class ChildSpec:
    """How to run one child."""

    name: str
    run: Callable[["Started"], Awaitable[None]]
    """Runs until it fails or is cancelled; calls ``started`` once it is ready. Returning is a failure too."""
    on_exit: Callable[[], None] = lambda: None
    """Called after each end of the child, before its supervisor acts on it."""
    isolation: Isolation | None = None
    """Set for a supervisor that may give up alone; any other error than that is counted."""
    stop_seconds: float = STOP_SECONDS
    """What it may take to stop; ``math.inf`` for a supervisor, whose children have deadlines of their own."""


class Escalated(ServiceFailed):
    """A supervisor stopped because a child kept failing; ``__cause__`` is the child's last error."""

    def __init__(self, supervisor: str, child: str, restarts: int, cause: BaseException | None) -> None:
        super().__init__(f"{supervisor}: '{child}' kept failing after {restarts} restarts (last: {_named(cause)})")
        self.supervisor = supervisor
        self.child = child
        self.__cause__ = cause


class StartFailed(ServiceFailed):
    """A child ended before it was ready, at the start of its supervisor; ``__cause__`` is its error."""

    def __init__(self, child: str, cause: BaseException | None) -> None:
        super().__init__(f"'{child}' ended before it was ready ({_named(cause)})")
        self.child = child
        self.__cause__ = cause


class DidNotStop(ServiceFailed):
    """A child did not stop in time; a thread of it may go on, so that nothing can take its place in this process."""

    def __init__(self, supervisor: str, child: str, seconds: float) -> None:
        super().__init__(
            f"{supervisor}: '{child}' did not stop within {seconds:g} s and was abandoned; "
            "check the disks that the service uses, and start it again"
        )
        self.supervisor = supervisor
        self.child = child


class Ended(ServiceFailed):
    """The supervisor has stopped and takes no requests."""

    def __init__(self, supervisor: str) -> None:
        super().__init__(f"the supervisor '{supervisor}' has stopped, and all its children with it")
        self.supervisor = supervisor


class Started:
    """What a child calls when it is ready, with a value for its starter (Trio's ``task_status``)."""

    def __init__(self, announce: Callable[[], None] = lambda: None) -> None:
        self.event = trio.Event()
        self.value: Any = None
        self._announce = announce

    def started(self, value: Any = None) -> None:
        """Report readiness."""
        self.value = value
        self.event.set()
        self._announce()


class _Child:
    """One incarnation of a child."""

    def __init__(self, spec: ChildSpec, report: Callable[["_Event"], None]) -> None:
        self.spec = spec
        self.scope = trio.CancelScope(shield=True)
        self.threads = ThreadWaits()
        self.status = Started(lambda: report(_Ready(self)))
        self.done = trio.Event()
        self.error: BaseException | None = None
        self.started_at = trio.current_time()

    @property
    def ready(self) -> bool:
        return self.status.event.is_set()


@attrs.frozen
class _Ready:
    child: _Child


@attrs.frozen
class _Exited:
    child: _Child


@attrs.frozen
class _Add:
    spec: ChildSpec
    result: trio.MemorySendChannel[Any]


@attrs.frozen
class _Remove:
    name: str
    result: trio.MemorySendChannel[Any]


_Event = _Ready | _Exited | _Add | _Remove


class Supervisor:
    """Keeps a list of children running; is itself a child of the supervisor above it."""

    def __init__(
        self,
        name: str,
        children: Sequence[ChildSpec],
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: Intensity = DEFAULT_INTENSITY,
        backoff: Backoff = DEFAULT_BACKOFF,
        on_hung: Callable[[], None] = lambda: None,
    ) -> None:
        """Take the children and what to do when they fail.

        Args:
            name: what log lines call it.
            children: in the order in which they start.
            strategy: which of them are restarted together.
            intensity: how many failures are tolerated.
            backoff: the wait before a restart.
            on_hung: called when a child did not stop in time. It may never stop, and then this supervisor cannot
                end either: ending the process is all that is left.
        """
        self.name = name
        self._children = tuple(children)
        self._strategy = strategy
        self._intensity = intensity
        self._backoff = backoff
        self._on_hung = on_hung
        self._specs = list(children)
        self._running: dict[str, _Child] = {}
        self._due: dict[str, float] = {}
        # Callers that wait for a child that was added to become ready.
        self._adding: dict[str, trio.MemorySendChannel[Any]] = {}
        self._failures: deque[float] = deque()
        # How often in a row an isolated child has given up.
        self._isolated: dict[str, int] = {}
        self._ended = False
        # Unbounded: a child that ends must never wait, and requests come from few callers.
        self._inbox_send, self._inbox = trio.open_memory_channel[_Event](math.inf)

    async def run(self, status: Started) -> None:
        """Run the children until cancelled. May be called again after it ended.

        Raises:
            StartFailed: a child ended before it was ready, and before this supervisor had been ready.
            Escalated: a child failed more often than the intensity allows.
            DidNotStop: a child did not stop in time, here or below a child that is a supervisor.
        """
        self._ended = False
        async with unwrapped_nursery() as nursery:
            try:
                await self._supervise(nursery, status)
            finally:
                try:
                    with trio.CancelScope(shield=True):
                        await self._stop(self._specs, SHUTDOWN_SECONDS)
                finally:
                    self._forget_everything()

    async def add(self, spec: ChildSpec) -> Any:
        """Start one more child, last in order; returns what it reported when it was ready.

        It is supervised like the others until it is removed or this run of the supervisor ends. If the caller is
        cancelled while it waits, the child is not kept.

        Raises:
            Exception: whatever the child raised before it was ready; it is not kept then.
            ValueError: a child has that name already.
            Ended: the supervisor has stopped, or the child was removed before it was ready.
        """
        return await self._request(lambda result: _Add(spec, result))

    async def remove(self, name: str) -> None:
        """Stop a child that was added and forget it; returns when it has stopped, at once if there is none.

        Raises:
            Ended: the supervisor has stopped, and all its children with it.
        """
        await self._request(lambda result: _Remove(name, result))

    def is_running(self, name: str) -> bool:
        """Whether the child is up and ready."""
        child = self._running.get(name)
        return child is not None and child.ready

    async def _request(self, build: Callable[[trio.MemorySendChannel[Any]], _Add | _Remove]) -> Any:
        if self._ended:
            raise Ended(self.name)
        send, receive = trio.open_memory_channel[Any](1)
        self._inbox_send.send_nowait(build(send))
        with receive:
            try:
                answer = await receive.receive()
            except trio.EndOfChannel:
                raise Ended(self.name) from None
            except trio.Cancelled:
                # The answer may have come in the same moment: then the caller has what it asked for, and gets the
                # cancellation at its next checkpoint.
                with suppress(trio.WouldBlock, trio.EndOfChannel):
                    answer = receive.receive_nowait()
                    if not isinstance(answer, BaseException):
                        return answer
                raise
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _forget_everything(self) -> None:
        """Be as new for the next run; callers that wait for an answer learn that there is none."""
        self._ended = True
        self._specs = list(self._children)
        self._running.clear()
        self._due.clear()
        self._failures.clear()
        self._isolated.clear()
        for waiting in self._adding.values():
            waiting.close()
        self._adding.clear()
        while True:
            try:
                event = self._inbox.receive_nowait()
            except trio.WouldBlock:
                return
            if isinstance(event, _Add | _Remove):
                event.result.close()

    async def _supervise(self, nursery: trio.Nursery, status: Started) -> None:
        self._due = {spec.name: -math.inf for spec in self._specs}
        while True:
            deadline = self._start_next(nursery)
            if not status.event.is_set() and self._all_are_up():
                status.started()
            event: _Event | None = None
            with trio.move_on_at(deadline):
                event = await self._inbox.receive()
            match event:
                case None:
                    pass
                case _Ready(child=child):
                    if self._is_current(child):
                        await self._answer_adder(child)
                case _Exited(child=child):
                    # A child that was stopped on purpose also reports its end; that is not a failure.
                    if self._is_current(child):
                        del self._running[child.spec.name]
                        await self._exited(child, starting_up=not status.event.is_set())
                case _Add():
                    self._add(event)
                case _Remove():
                    await self._remove(event)

    def _all_are_up(self) -> bool:
        """Whether every child is ready; one that is isolated may be waiting for its next start."""
        pending = [spec for spec in self._specs if spec.name in self._due and spec.isolation is None]
        return not pending and all(child.ready for child in self._running.values())

    def _is_current(self, child: _Child) -> bool:
        return self._running.get(child.spec.name) is child

    def _start_next(self, nursery: trio.Nursery) -> float:
        """Start the first child whose time has come; return when to look again."""
        now = trio.current_time()
        next_due = math.inf
        for spec in self._specs:
            child = self._running.get(spec.name)
            if child is not None and not child.ready:
                # Those after it start when it is ready.
                break
            due = self._due.get(spec.name, math.inf)
            if due <= now:
                del self._due[spec.name]
                if spec.isolation is not None:
                    spec.isolation.on_start()
                started = _Child(spec, self._inbox_send.send_nowait)
                self._running[spec.name] = started
                nursery.start_soon(self._run_child, started, name=f"{self.name}/{spec.name}")
                break
            next_due = min(next_due, due)
        return next_due

    async def _run_child(self, child: _Child) -> None:
        child.threads.bind()
        try:
            try:
                with child.scope:
                    await child.spec.run(child.status)
            finally:
                child.spec.on_exit()
        except Exception as error:  # noqa: BLE001 - the one place where any failure becomes a decision
            child.error = error
        finally:
            child.done.set()
            self._inbox_send.send_nowait(_Exited(child))

    async def _stop(self, specs: Sequence[ChildSpec], seconds: float = math.inf) -> None:
        """Stop these children, last first, each within its own deadline and ``seconds``.

        Raises:
            DidNotStop: one of them had to be abandoned; the others have stopped.
        """
        hung: DidNotStop | None = None
        for spec in reversed(specs):
            child = self._running.get(spec.name)
            if child is None:
                continue
            child.scope.cancel()
            limit = spec.stop_seconds if spec.stop_seconds == math.inf else min(spec.stop_seconds, seconds)
            hung = await self._abandoned_after(child, limit) or hung
            del self._running[spec.name]
            if isinstance(child.error, DidNotStop):
                hung = child.error
            elif child.error is not None:
                logger.error("%s: '%s' failed while stopping: %s", self.name, spec.name, _named(child.error))
        if hung is not None:
            raise hung

    async def _abandoned_after(self, child: _Child, seconds: float) -> DidNotStop | None:
        """Wait for the end of a child that was cancelled; after its deadline leave its threads to themselves."""
        if await _ended_within(child, seconds):
            return None
        threads = child.threads.abandon()
        if threads:
            self._on_hung()
        ended = await _ended_within(child, _AFTERMATH_SECONDS)
        if ended and not threads:
            # It was only late.
            return None
        if not threads:
            self._on_hung()
        error = DidNotStop(self.name, child.spec.name, seconds)
        logger.error("%s", error)
        return error

    async def _exited(self, child: _Child, *, starting_up: bool) -> None:
        if isinstance(child.error, DidNotStop):
            raise child.error
        isolation = child.spec.isolation
        if isolation is not None and isinstance(child.error, ServiceFailed):
            self._isolate(child, isolation, child.error)
            return
        if not child.ready:
            adder = self._adding.pop(child.spec.name, None)
            if adder is not None:
                self._specs.remove(child.spec)
                _answer(adder, child.error or StartFailed(child.spec.name, None))
                return
            if starting_up:
                raise StartFailed(child.spec.name, child.error)
        await self._failed(child.spec, child.error)

    def _isolate(self, child: _Child, isolation: Isolation, error: ServiceFailed) -> None:
        name, now = child.spec.name, trio.current_time()
        lasted = child.ready and now - child.started_at >= isolation.healthy_seconds
        self._isolated[name] = 1 if lasted else self._isolated.get(name, 0) + 1
        delay = isolation.backoff.delay(self._isolated[name])
        logger.error("%s: '%s' has failed and starts again in %g s: %s", self.name, name, delay, error)
        isolation.on_failed(error)
        self._due[name] = now + delay

    async def _failed(self, spec: ChildSpec, error: BaseException | None) -> None:
        now = trio.current_time()
        self._failures.append(now)
        while self._failures[0] <= now - self._intensity.seconds:
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

    def _add(self, request: _Add) -> None:
        if any(spec.name == request.spec.name for spec in self._specs):
            _answer(request.result, ValueError(f"'{request.spec.name}' is running already"))
            return
        self._specs.append(request.spec)
        self._due[request.spec.name] = -math.inf
        self._adding[request.spec.name] = request.result

    async def _answer_adder(self, child: _Child) -> None:
        adder = self._adding.pop(child.spec.name, None)
        if adder is not None and not _answer(adder, child.status.value):
            await self._drop(child.spec)

    async def _remove(self, request: _Remove) -> None:
        # Closed in any case: this may be cancelled while the child stops, and the caller must not hang.
        with request.result:
            for spec in [spec for spec in self._specs if spec.name == request.name]:
                await self._drop(spec)
            _answer(request.result, None)

    async def _drop(self, spec: ChildSpec) -> None:
        await self._stop([spec])
        self._specs.remove(spec)
        self._due.pop(spec.name, None)
        adder = self._adding.pop(spec.name, None)
        if adder is not None:
            adder.close()


async def _ended_within(child: _Child, seconds: float) -> bool:
    if seconds == math.inf:
        await child.done.wait()
    elif not child.done.is_set():
        with move_on_after_real(seconds):
            await child.done.wait()
    return child.done.is_set()


def _answer(channel: trio.MemorySendChannel[Any], value: Any) -> bool:
    """Answer a request; return ``False`` when the caller is gone."""
    with channel:
        try:
            channel.send_nowait(value)
        except trio.BrokenResourceError:
            return False
    return True


def _named(error: BaseException | None) -> str:
    """Return the error's type only: its text may hold a prompt."""
    return "it returned" if error is None else type(first_failure(error)).__name__
