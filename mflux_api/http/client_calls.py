"""The calls of one app that have jobs: whose they are, how far they are, which one an interrupt ends.

Those whose clients wait are in the list while they do; those whose jobs go on without them, until the job has ended.
"""

import logging
import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal

import attrs
import trio

from mflux_api.errors import JobGone, JobNotFound, ServiceError
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.jobs import JobView
from mflux_api.jobs.job import Status
from mflux_api.jobs.progress import Progress
from mflux_api.system.nurseries import unwrapped_nursery

logger = logging.getLogger(__name__)

LEFT_SECONDS = 3.0
"""A client that stops a call by hanging up may send an interrupt beside it: one that comes so late means that call."""
MOST_LEFT = 1000
MOST_KEPT = 64
"""Calls of one client whose jobs go on without it; of more the oldest are in the list."""
MOST_TASKS = 256
"""Names of finished tasks that are remembered."""


@attrs.define(eq=False)
class ClientCall:
    """One call while its client waits."""

    client: str
    kind: str
    """The name of its route."""
    task: str | None = None
    """What the client calls it, where it does."""
    jobs: list[str] = attrs.field(factory=list)
    """Its jobs, once they are accepted."""
    preview: str | None = None
    """The newest preview as base64 JPEG; there is none unless it was asked for."""
    previews_wanted: trio.Event = attrs.field(factory=trio.Event)
    interrupted: bool = False
    """Whether its client has ended it."""
    highest: float = 0.0
    """The most progress that was told."""
    kept: bool = False
    """Whether its job goes on without its client: it is in the list until the job has ended."""


@attrs.frozen
class CallState:
    """A call and its job as it is now."""

    call: ClientCall
    view: JobView

    @property
    def progress(self) -> Progress | None:
        """How far the job is; ``None`` where it is not known."""
        return None if self.view.live is None else self.view.live.progress


class ClientCalls:
    """The calls of one app, the newest last."""

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = trio.current_time) -> None:
        self._gateway = gateway
        self._clock = clock
        self._calls: defaultdict[str, list[ClientCall]] = defaultdict(list)
        self._kept = deque[ClientCall]()
        """Those in the list whose jobs go on without their clients, and some whose job has ended."""
        self._left = OrderedDict[str, float]()
        """When the last call of a client ended because the client hung up."""
        self._finished = OrderedDict[tuple[str, str], None]()

    @asynccontextmanager
    async def call(self, client: str, kind: str, task: str | None = None) -> AsyncIterator[ClientCall]:
        """Have a call in the list while the block lasts; cancelled, its client has hung up."""
        call = ClientCall(client, kind, task)
        self._calls[client].append(call)
        try:
            async with unwrapped_nursery() as nursery:
                nursery.start_soon(self._keep_previews, call)
                try:
                    yield call
                finally:
                    if trio.current_effective_deadline() == -math.inf and not call.interrupted:
                        self._note_left(client)
                    nursery.cancel_scope.cancel("the call has ended")
        finally:
            self._remove(call)

    async def keep(self, client: str, kind: str, task: str | None, job_id: str) -> None:
        """Have a call in the list until its job has ended, which goes on without its client."""
        # So that there are not many more of them than jobs that have not ended.
        for _ in range(min(len(self._kept), 2)):
            oldest = self._kept.popleft()
            if await self._state(oldest) is not None:
                self._kept.append(oldest)
        if sum(call.kept for call in self._calls.get(client, ())) >= MOST_KEPT:
            # Those that have ended go.
            await self.newest(client)
        if sum(call.kept for call in self._calls.get(client, ())) >= MOST_KEPT:
            logger.debug("job %s: its client has %d such jobs already", job_id, MOST_KEPT)
            return
        call = ClientCall(client, kind, task, jobs=[job_id], kept=True)
        self._calls[client].append(call)
        self._kept.append(call)

    def _remove(self, call: ClientCall) -> None:
        calls = self._calls[call.client]
        if call in calls:
            calls.remove(call)
        if not calls:
            del self._calls[call.client]
        if call.task is not None:
            self._finished[call.client, call.task] = None
            if len(self._finished) > MOST_TASKS:
                self._finished.popitem(last=False)

    async def newest(self, client: str) -> CallState | None:
        """Return the client's newest call that runs, else its newest one."""
        # A copy: calls come and go meanwhile.
        newest_first = tuple(reversed(self._calls.get(client, ())))
        states = [state for call in newest_first if (state := await self._state(call))]
        running = [state for state in states if state.view.job.status is Status.GENERATING]
        return next(iter((*running, *states)), None)

    async def task(self, client: str, task: str) -> CallState | Literal["unknown", "waiting", "finished"]:
        """Return a client's call by its own name for it."""
        for call in tuple(self._calls.get(client, ())):
            if call.task == task and (state := await self._state(call)) is not None:
                return state
            if call.task == task and not call.kept:
                return "waiting"
        return "finished" if (client, task) in self._finished else "unknown"

    async def interrupt(self, client: str) -> ClientCall | None:
        """End the client's newest running call, else its newest one; return it if there is one.

        One whose job is not accepted yet ends as soon as it is.

        Where the last call has just ended because the client hung up, it is that one that is meant, and no other ends.
        """
        left = self._left.pop(client, None)
        if left is not None and self._clock() - left <= LEFT_SECONDS:
            return None
        state = await self.newest(client)
        call = self._newest_without_job(client) if state is None else state.call
        if call is None:
            return None
        call.interrupted = True
        for job_id in reversed(call.jobs):
            # It may be gone by now.
            with suppress(JobNotFound, JobGone):
                await self._gateway.cancel(job_id)
        return call

    def add_job(self, call: ClientCall, job_id: str) -> None:
        """Give a call a job that is accepted; of an interrupted one it ends at once."""
        call.jobs.append(job_id)
        if call.interrupted:
            self._gateway.abandon(job_id)

    def _newest_without_job(self, client: str) -> ClientCall | None:
        return next((call for call in reversed(self._calls.get(client, ())) if not call.jobs), None)

    async def _state(self, call: ClientCall) -> CallState | None:
        """Return how a call's first unfinished job is; ``None`` before one is accepted, and when all have ended."""
        all_known = True
        for job_id in call.jobs:
            try:
                view = await self._gateway.job(job_id)
            except (JobNotFound, JobGone):
                continue
            except ServiceError:
                all_known = False
                continue
            if not view.job.status.terminal:
                return CallState(call, view)
        if call.kept and all_known:
            self._remove(call)
        return None

    async def _keep_previews(self, call: ClientCall) -> None:
        await call.previews_wanted.wait()
        for job_id in call.jobs:
            with suppress(ServiceError):
                async with await self._gateway.follow(job_id, previews=True) as events:
                    async for logged in events:
                        if isinstance(logged.event, Progress) and logged.event.preview is not None:
                            call.preview = logged.event.preview

    def _note_left(self, client: str) -> None:
        self._left[client] = self._clock()
        self._left.move_to_end(client)
        if len(self._left) > MOST_LEFT:
            self._left.popitem(last=False)
