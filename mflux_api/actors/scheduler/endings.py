"""How a job ends: one commit, then one terminal event, whichever task comes first."""

import copy
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, Address
from mflux_api.actors.scheduler.entries import OVER, Entry, JobEvent, JobState
from mflux_api.actors.scheduler.job_log import log_end
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.errors import ServiceError
from mflux_api.jobs.job import Failure, Job, Status
from mflux_api.jobs.progress import Finished
from mflux_api.storage.rows import UnreadableRow

T = TypeVar("T")

logger = logging.getLogger(__name__)

STORE_RETRY_SECONDS = 1.0


class Endings:
    """Commits ends and publishes them; shared by the scheduler's tasks."""

    def __init__(
        self,
        queue: JobQueue,
        nursery: trio.Nursery,
        *,
        store: Address[m.StoreMessage],
        hub: Address[m.HubMessage],
        stats: Address[m.StatsMessage],
        webhooks: Address[m.WebhooksMessage] | None = None,
        settled: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._nursery = nursery
        self._store = store
        self._hub = hub
        self._stats = stats
        self._webhooks = webhooks
        self._settled = settled
        self.store_trouble: ServiceError | None = None
        """Why the store could not write when it was last asked."""
        self.recovered = trio.Event()
        """Set once the queue has every unfinished job of the store; a start on a disk in trouble goes on before."""

    async def finish(self, entry: Entry, outcome: m.Outcome) -> None:
        """Have the end committed and published; only the first caller does anything.

        Returns when that is done, or when the store cannot write it now: a task of its own goes on asking then.
        """
        # A task that is being stopped must not begin what it cannot complete.
        await trio.lowlevel.checkpoint_if_cancelled()
        if entry.state in OVER:
            return
        downloading = entry.state is entry.state.DOWNLOADING
        entry.on(JobEvent.END)
        if downloading:
            entry.scope.cancel()
        self._nursery.start_soon(self._commit, entry, outcome)
        await entry.answerable.wait()

    async def _commit(self, entry: Entry, outcome: m.Outcome) -> None:
        def note(error: ServiceError) -> None:
            entry.unwritten = error
            entry.answerable.set()

        end = partial(m.Finish, job_id=entry.job.id, outcome=outcome, warnings=entry.warnings)
        finish = partial(self.change, end)
        try:
            entry.job = await self.ask_again(f"job {entry.job.id}: its end", finish, troubled=note)
        except ActorGone:
            # The store takes the scheduler along when it restarts; the job is found again at the next start.
            logger.debug("job %s: the store ended before it had its end", entry.job.id)
            return
        except UnreadableRow as error:
            await self.lose(entry, error)
            return
        entry.unwritten = None
        await self._hub.tell(m.Publish(job_id=entry.job.id, event=Finished(job=entry.job), owner=entry.job.owner))
        self._tell_webhooks(entry.job)
        self._queue.forget(entry)
        entry.on(JobEvent.COMMITTED)
        entry.answerable.set()
        log_end(entry.job, entry.request_id)
        self._stats.tell_lossy(m.JobEnded(job=entry.job))
        self._settled()

    async def lose(self, entry: Entry, error: UnreadableRow) -> None:
        """Forget a job whose record broke under the running service: it has no end that could be committed."""
        if entry.state is JobState.ENDED:
            return
        logger.error("job %s: it is lost, because its record cannot be read any more", entry.job.id)
        if entry.state not in OVER:
            entry.on(JobEvent.END)
        entry.unwritten = error
        self._queue.forget(entry)
        entry.on(JobEvent.COMMITTED)
        entry.kept.set()
        entry.answerable.set()
        # Each follower asks the store now, and is told why.
        await self._hub.tell(m.CloseLog(job_id=entry.job.id))
        self._settled()

    async def fail(self, entry: Entry, error: ServiceError) -> None:
        """End a job with an error; what was saved stays."""
        failure, progress = Failure.from_error(error), entry.tracker.latest.progress
        await self.finish(entry, m.Failed(failure=failure, images=tuple(entry.images), progress=progress))

    def fail_waiting_sync(self, error: ServiceError) -> None:
        """Fail the synchronous jobs that wait: their callers need an answer."""
        for entry in self._queue.waiting_synchronous():
            self._nursery.start_soon(self.fail, entry, error)

    async def cancel(self, job_id: str) -> Job | None:
        """Cancel a job and return it; a finished one as it is, an unknown one as ``None``.

        Raises:
            ServiceError: the store cannot be read, or the job was removed; or it cannot write the end now, and is asked
                again until it can.
        """
        entry = await self._entry(job_id)
        if entry is None:
            return await self._store.ask(m.GetJob(job_id=job_id))
        await entry.kept.wait()
        if entry.state in OVER:
            return await self._end_of(entry)
        if self._queue.get(job_id) is not entry:
            return None
        self._queue.take(entry)
        # The task ends at its next checkpoint; by then the job is taken, and it cannot finish it any more.
        entry.scope.cancel()
        progress = entry.tracker.latest.progress
        await self.finish(entry, m.JobWasCancelled(images=tuple(entry.images), progress=progress))
        return await self._end_of(entry)

    async def _entry(self, job_id: str) -> Entry | None:
        """Return a job's entry, or ``None`` where the job is not unfinished.

        Raises:
            ServiceError: the store cannot be read, so that the unfinished jobs are not known.
        """
        entry = self._queue.get(job_id)
        if entry is None and not self.recovered.is_set():
            if self.store_trouble is not None:
                raise copy.copy(self.store_trouble)
            await self.recovered.wait()
            entry = self._queue.get(job_id)
        return entry

    async def _end_of(self, entry: Entry) -> Job:
        """Wait for a job's end.

        Raises:
            ServiceError: the store cannot write it now.
        """
        await entry.answerable.wait()
        if entry.unwritten is not None:
            # Each asker gets an exception of its own: a traceback belongs to one task.
            raise copy.copy(entry.unwritten)
        return entry.job

    async def answer_cancel(self, message: m.CancelJob) -> None:
        """Cancel a job and answer with what became of it."""
        try:
            message.reply.ok(await self.cancel(message.job_id))
        except (ServiceError, ActorGone) as error:
            message.reply.fail(error)

    async def answer_end(self, message: m.AwaitEnd) -> None:
        """Answer with a job's end, once it has one, or that it cannot be written now."""
        try:
            entry = await self._entry(message.job_id)
            if entry is None:
                job = await self._store.ask(m.GetJob(job_id=message.job_id))
                message.reply.ok(None if job is None else m.JobEnd(job, None))
            else:
                message.reply.ok(m.JobEnd(await self._end_of(entry), entry.tracker.latest))
        except (ServiceError, ActorGone) as error:
            message.reply.fail(error)

    async def abandon(self, job_id: str) -> None:
        """Cancel a job whose caller does not wait for an answer."""
        if self._queue.get(job_id) is None:
            # Found later, it would run for no caller.
            await self.recovered.wait()
        try:
            await self.cancel(job_id)
        except ServiceError as error:
            logger.debug("an abandoned job needs no cancelling: %s", error.code)
        # Only now: before, the store might not have the job yet.
        self._store.tell_latest(m.CallerDone(job_id=job_id), key=(m.CallerDone, job_id))

    async def publish_unheard(self) -> None:
        """Publish the end of every job whose log has none: the scheduler died between the commit and the event."""
        for job_id in await self._hub.ask(m.OpenLogs()):
            if self._queue.get(job_id) is None:
                await self._publish_end(job_id)

    async def _publish_end(self, job_id: str) -> None:
        job: Job | None = None
        try:
            job = await self._store.ask(m.GetJob(job_id=job_id))
        except ServiceError as error:
            logger.warning("job %s: its end cannot be told (%s)", job_id, error.code)
        if job is None:
            # Its followers would wait for ever; now each asks for the job, and gets the reason.
            await self._hub.tell(m.CloseLog(job_id=job_id))
        elif job.status.terminal:
            await self._hub.tell(m.Publish(job_id=job_id, event=Finished(job=job), owner=job.owner))
            self._tell_webhooks(job)

    def _tell_webhooks(self, job: Job) -> None:
        """Tell of a delivery that the store has; what this misses the actor finds there later."""
        if self._webhooks is not None and job.delivery is not None:
            self._webhooks.tell_latest(m.DeliveryDue(job=job), key=(m.DeliveryDue, job.id))

    # --- a store that cannot write, or be read, for a while ---

    async def change(self, message: Callable[[], m.ChangeJob]) -> Job:
        """Ask the store once to change a job.

        Raises:
            ServiceError: it cannot, on a full disk for instance.
        """
        return await self._store.ask(message())

    async def unfinished(self) -> tuple[Job, ...]:
        """Ask the store once for every unfinished job.

        Raises:
            ServiceError: it cannot be read.
        """
        return await self._store.ask(m.Unfinished())

    async def give_back(self, entry: Entry) -> Job:
        """Ask the store once to put a halted job back into the queue; that counts as no death.

        Raises:
            ServiceError: it cannot.
        """
        # What the halt cut off may have been a question to the store: only the store knows the answer.
        stored = await self._store.ask(m.GetJob(job_id=entry.job.id))
        if stored is None or stored.status is not Status.GENERATING:
            return entry.job
        return await self._store.ask(m.Requeue(job_id=entry.job.id))

    async def ask_again(
        self,
        what: str,
        question: Callable[[], Awaitable[T]],
        *,
        troubled: Callable[[ServiceError], None],
        patient: Callable[[], bool] = lambda: True,
    ) -> T:
        """Ask the store until it can do it: the one place that waits for a disk.

        Args:
            what: begins the line in the log.
            question: asks once.
            troubled: told of each refusal, so that those who wait can be answered at once.
            patient: whether to ask again after a refusal.

        Raises:
            UnreadableRow: the job's record is broken.
            ServiceError: it refused, and is not asked again.
        """
        told = False
        while True:
            try:
                answer = await question()
            except UnreadableRow:
                # It stays so, however often it is asked.
                raise
            except ServiceError as error:
                self.store_trouble = error
                troubled(error)
                if not patient():
                    raise
                if not told:
                    logger.warning("%s: the job store cannot do it now, and is asked again (%s)", what, error.code)
                    told = True
                await trio.sleep(STORE_RETRY_SECONDS)
            else:
                self.store_trouble = None
                return answer
