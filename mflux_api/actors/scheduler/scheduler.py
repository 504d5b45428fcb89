"""The scheduler: which job runs next, on which engine, and what becomes of it.

Its receive loop only decides. Every accepted, running or cancelled job has a task of its own in the scheduler's
nursery that does the asking; a running job's cancel scope is the job's.
"""

import logging
from collections.abc import Mapping
from functools import partial
from typing import assert_never

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, ActorSuspended, Address, Mailbox
from mflux_api.actors.scheduler.admission import Admission
from mflux_api.actors.scheduler.draining import Draining
from mflux_api.actors.scheduler.endings import Endings
from mflux_api.actors.scheduler.engine_states import EngineStates
from mflux_api.actors.scheduler.entries import OVER, Entry, JobEvent, JobState
from mflux_api.actors.scheduler.gatherings import Gathering, Gatherings
from mflux_api.actors.scheduler.job_plan import note_progress
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.actors.scheduler.job_runner import Callbacks, JobRunner, NoLease, SaveFailed
from mflux_api.actors.scheduler.model_on_disk import ModelOnDisk
from mflux_api.actors.scheduler.recovery import Recovery
from mflux_api.actors.scheduler.retries import Retries
from mflux_api.config import SchedulerSettings
from mflux_api.engine.interface import EngineDied, EngineId
from mflux_api.errors import EngineUnavailable, InternalError, ModelNotDownloaded, ServiceError
from mflux_api.jobs.job import Job, Status, StoredImage
from mflux_api.jobs.progress import PartialImage, Progress
from mflux_api.supervisor import Started
from mflux_api.system.nurseries import unwrapped_nursery

logger = logging.getLogger(__name__)

MAX_SAVING = 2
"""Passes of one engine that may still be saving, or about to, when it is given the next: a slow disk must not collect
pixels."""

DISCARD_SECONDS = 5.0
"""For removing the images of an attempt that is over; then its engine goes to another job."""

_SLICE = 8
"""Jobs that are looked at in one go: an ETA takes 0.1 ms of one core, or 1 ms with many callers, or loads between."""


class Scheduler:
    """Dispatch, attempts, and the state of every engine as its loader tells it."""

    def __init__(
        self,
        mailbox: Mailbox[m.SchedulerMessage],
        *,
        store: Address[m.StoreMessage],
        hub: Address[m.HubMessage],
        stats: Address[m.StatsMessage],
        webhooks: Address[m.WebhooksMessage] | None = None,
        loaders: Mapping[EngineId, Address[m.LoaderMessage]],
        model_on_disk: ModelOnDisk,
        job_runner: JobRunner,
        settings: SchedulerSettings,
        preload: str | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._store = store
        self._hub = hub
        self._stats = stats
        self._webhooks = webhooks
        self._loaders = loaders
        self._model_on_disk = model_on_disk
        self._job_runner = job_runner
        self._settings = settings
        self._draining_begun = False
        self._preload = preload
        self._preloaded = False

    async def run(self, status: Started) -> None:
        """Recover what the store has unfinished, then serve the mailbox until cancelled."""
        self._queue = JobQueue(self._job_runner.estimates, self._settings.max_affinity_skips)
        self._engines = EngineStates(self._loaders)
        self._busy: dict[EngineId, list[Entry]] = {}
        # Of the newest attempt on each engine: jobs of one engine end in the order in which they ran.
        self._newest: dict[EngineId, trio.Event] = {}
        for engine, loader in self._loaders.items():
            loader.tell_latest(m.ReportEngine(), key=(m.SCHEDULER, engine))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._endings = Endings(
                self._queue,
                nursery,
                store=self._store,
                hub=self._hub,
                stats=self._stats,
                webhooks=self._webhooks,
                settled=self._settled,
            )
            self._draining = Draining(self._queue, self._endings, begun=self._draining_begun)
            self._admission = Admission(
                self._queue,
                self._draining,
                nursery,
                store=self._store,
                hub=self._hub,
                settings=self._settings,
                unavailable=self._engines.unavailable,
                store_trouble=lambda: self._endings.store_trouble,
                enqueue=self._enqueue,
                accepted=self._accepted,
            )
            self._retries = Retries(
                self._queue,
                self._endings,
                self._draining,
                settings=self._settings,
                advice=self._job_runner.advice,
                publish=self._publish,
                enqueue=self._enqueue,
                discard_images=self._discard_images,
                settled=self._settled,
            )
            self._recovery = Recovery(
                self._queue,
                self._endings,
                self._draining,
                self._retries,
                nursery,
                hub=self._hub,
                job_runner=self._job_runner,
                enqueue=self._enqueue,
                dispatch=self._dispatch,
            )
            self._gatherings = Gatherings(self._settings.batch_window_ms / 1000, self._queue, nursery)
            await nursery.start(self._recovery.run)
            status.started()
            self._dispatch()
            while True:
                self._handle(await self._mailbox.receive())

    def _handle(self, message: m.SchedulerMessage) -> None:
        match message:
            case m.Submit():
                self._admission.submit(message)
            case m.CheckAdmission():
                self._admission.check(message)
            case m.FindAccepted():
                self._nursery.start_soon(self._admission.find, message)
            case m.CancelJob():
                self._nursery.start_soon(self._endings.answer_cancel, message)
            case m.AwaitEnd():
                self._nursery.start_soon(self._endings.answer_end, message)
            case m.Abandon():
                self._nursery.start_soon(self._endings.abandon, message.job_id)
            case m.WantPreviews():
                entry = self._queue.get(message.job_id)
                if entry is not None:
                    entry.previewed.set()
            case m.GetSnapshots():
                if len(message.job_ids) <= _SLICE:
                    message.reply.ok(self._queue.snapshots(self._engines.usable(), message.job_ids))
                else:
                    self._nursery.start_soon(self._answer_snapshots, message)
            case m.GetQueue():
                jobs = self._queue.snapshots(self._engines.usable(), limit=message.limit)
                message.reply.ok(m.QueueListing(jobs=jobs, total=self._queue.waiting()))
            case m.GetStatus():
                message.reply.ok(self._status())
            case m.GetEngines():
                message.reply.ok(self._engines.all())
            case m.CountLoraJobs():
                message.reply.ok(self._queue.tally.jobs_with_loras(message.names))
            case m.Drain():
                self._draining_begun = True
                self._draining.drain(message)
            case m.EngineChanged():
                self._note(message.status)
                self._dispatch()
            case _:
                assert_never(message)

    async def _answer_snapshots(self, message: m.GetSnapshots) -> None:
        """Answer for many jobs; other messages are handled in between."""
        found: dict[str, m.JobSnapshot] = {}
        for first in range(0, len(message.job_ids), _SLICE):
            found |= self._queue.snapshots(self._engines.usable(), message.job_ids[first : first + _SLICE])
            await trio.lowlevel.checkpoint()
        message.reply.ok(found)

    def _status(self) -> m.SchedulerStatus:
        trouble, unavailable = self._endings.store_trouble, self._engines.unavailable()
        return m.SchedulerStatus(
            active=self._queue.active(),
            queued=self._queue.tally.queued(),
            draining=self._draining.begun,
            degraded=unavailable is not None or self._recovery.unread or bool(self._retries.stuck),
            store_trouble=None if trouble is None else trouble.message,
            engine_trouble=None if unavailable is None else unavailable.details["reason"],
            preloading=None if self._preloaded else self._preload,
            preload_problem=self._engines.preload_problem(),
            warming_up=any(engine.warming_up for engine in self._engines.all()),
        )

    # --- engines ---

    def _note(self, status: m.EngineStatus) -> None:
        self._engines.note(status)
        self._preloaded = self._preloaded or status.preloaded
        for entry in self._queue.at_work():
            if entry.state is not JobState.RUNNING or entry.engine is None:
                continue
            if entry.engine.id == status.id and status.loading == entry.job.model:
                entry.began = True

    def _fail_sync_without_engine(self) -> None:
        """Answer synchronous callers where no engine is left; the others' jobs wait in the queue for one."""
        unavailable = self._engines.unavailable()
        if unavailable is not None:
            self._endings.fail_waiting_sync(unavailable)

    def _is_free(self, engine: EngineId) -> bool:
        saving = {
            entry.companions or entry
            for entry in self._queue.at_work()
            if (entry.state is JobState.SAVING or entry.leaving)
            and entry.engine is not None
            and entry.engine.id == engine
        }
        return all(entry.leaving for entry in self._busy.get(engine, ())) and len(saving) < MAX_SAVING

    def _free(self, engine: EngineId, entry: Entry) -> bool:
        """Take a job from its engine, which is free without any; return whether it had this one."""
        entries = self._busy.get(engine, [])
        if entry not in entries:
            return False
        entries.remove(entry)
        if not entries:
            del self._busy[engine]
        return True

    # --- the queue ---

    def _enqueue(self, entry: Entry) -> int:
        """Put a job into the queue and have its model brought to disk, if it is not there; return its place."""
        position = self._queue.enqueue(entry)
        if self._model_on_disk.concerns(entry.job):
            entry.on(JobEvent.DOWNLOAD_BEGAN)
            entry.scope = trio.CancelScope()
            self._nursery.start_soon(self._wait_for_model, entry, entry.scope)
        return position

    def _accepted(self, entry: Entry, told: bool) -> None:
        # An asynchronous job stays when its caller is gone: it was accepted, and its id may be read elsewhere.
        if entry.job.synchronous and not told:
            self._nursery.start_soon(self._endings.abandon, entry.job.id)
        if self._draining.begun:
            self._draining.fail_waiting_sync()
        self._dispatch()

    async def _wait_for_model(self, entry: Entry, scope: trio.CancelScope) -> None:
        failure: ServiceError | None = None
        with scope:
            try:
                await self._model_on_disk.wait(entry.job, entry.tracker, self._publish)
            except ServiceError as error:
                failure = error
        if scope.cancelled_caught or entry.state is not JobState.DOWNLOADING:
            return
        if failure is not None:
            self._queue.take(entry)
            await self._endings.fail(entry, failure)
            return
        entry.on(JobEvent.DOWNLOADED)
        self._dispatch()

    # --- running ---

    def _dispatch(self) -> None:
        self._fail_sync_without_engine()
        while not self._draining.begun:
            joined = self._gatherings.next()
            if joined is not None:
                companion, gathering = joined
                self._give(companion, gathering.engine, gathering)
                continue
            usable = self._engines.usable()
            free = [engine for engine in usable if self._is_free(engine.id)]
            chosen = self._queue.next(free, {engine.id for engine in usable}, self._settings.max_affinity_skips)
            if chosen is None:
                return
            entry, engine = chosen
            self._give(entry, engine, self._gatherings.begin(entry, engine))

    def _give(self, entry: Entry, engine: m.EngineStatus, gathering: Gathering | None) -> None:
        """Give a job to an engine."""
        entry.engine, entry.failed_on, entry.companions = engine, None, gathering
        entry.began = entry.leaving = False
        entry.on(JobEvent.DISPATCHED)
        entry.scope = trio.CancelScope()
        self._busy.setdefault(engine.id, []).append(entry)
        self._nursery.start_soon(self._work, entry, engine.id, entry.scope, gathering)

    async def _work(self, entry: Entry, engine: EngineId, scope: trio.CancelScope, gathering: Gathering | None) -> None:
        before = self._newest.get(engine)
        passed = self._newest[engine] = entry.passed = trio.Event()

        def engine_leaving() -> None:
            entry.leaving = True
            self._dispatch()

        def engine_freed() -> None:
            if self._free(engine, entry):
                if entry.state is JobState.RUNNING:
                    entry.on(JobEvent.ENGINE_FREED)
                self._dispatch()

        told = Callbacks(
            publish=self._publish,
            show=self._show,
            warn=entry.warn,
            engine_leaving=engine_leaving,
            engine_freed=engine_freed,
        )
        try:
            with scope:
                await self._attempt(entry, engine, told, before, gathering)
            if entry.state is JobState.HALTED:
                await self._retries.requeue_halted(entry)
        finally:
            if entry.late:
                # The job ended while a file was being written.
                with trio.CancelScope(shield=True):
                    await self._remove(entry, [])
            passed.set()
            if gathering is not None:
                gathering.leave(entry)
            entry.engine = entry.companions = None
            self._free(engine, entry)
        self._settled()

    async def _attempt(
        self,
        entry: Entry,
        engine: EngineId,
        told: Callbacks,
        before: trio.Event | None,
        gathering: Gathering | None,
    ) -> None:
        start = partial(m.StartJob, job_id=entry.job.id)
        if not await self._retries.persist(entry, partial(self._endings.change, start)):
            return
        if entry.job.status is not Status.GENERATING:
            # A drain does not wait for a disk that cannot be written.
            self._retries.back_to_queue(entry)
            return
        entry.tracker.begin_attempt(entry.job.engine_deaths + 1)
        entry.images.clear()
        requeue = partial(m.Requeue, job_id=entry.job.id)
        if gathering is not None:
            await gathering.closed.wait()
        try:
            done = await self._job_runner.run(
                await self._with_inputs(entry.job),
                engine,
                entry.tracker,
                entry.images,
                entry.late,
                entry.previewed,
                told,
                None if gathering is None else gathering.together(entry),
            )
        except EngineDied as died:
            logger.warning("job %s: the engine died (%s)", entry.job.id, died.reason)
            entry.out_of_memory, entry.failed_on = died.out_of_memory, engine
            self._engines.forget_child(entry.engine)
            await self._retries.retry(entry, partial(requeue, engine_died=True))
        except ActorSuspended:
            # Its actors kept failing before the job was with them: it goes elsewhere, or waits.
            await self._retries.retry(entry, requeue)
        except ActorGone as gone:
            entry.failed_on = engine
            # Actors that fail before they have begun with a job do not fail because of it.
            began = entry.began or not isinstance(gone, NoLease)
            await self._retries.retry(entry, partial(requeue, service_died=began))
        except EngineUnavailable as error:
            # It does not come up, and had not begun with the job. A caller waits for no second one of that kind.
            entry.failed_on = engine
            if entry.job.synchronous and not any(other.id != engine for other in self._engines.usable()):
                await self._endings.fail(entry, error)
            else:
                await self._retries.retry(entry, requeue)
        except m.ModelRefused as refused:
            # It died over this model; another engine may not, and no engine is asked twice.
            again = engine not in entry.refused_by
            entry.refused_by.add(engine)
            if again and any(other.id not in entry.refused_by for other in self._engines.usable()):
                entry.failed_on = engine
                await self._retries.retry(entry, requeue)
            else:
                await self._endings.fail(entry, refused)
        except ModelNotDownloaded:
            # It was deleted after it had been looked for: that counts as no death, and it is looked for again.
            await self._retries.retry(entry, requeue)
        except SaveFailed as failed:
            await self._endings.fail(entry, failed.error)
        except ServiceError as error:
            await self._endings.fail(entry, error)
        except Exception as error:
            # A defect. After a restart it would meet this job again, and in the end take the whole tree along.
            logger.error("job %s: a defect: %s", entry.job.id, type(error).__name__)
            logger.debug("job %s: a defect", entry.job.id, exc_info=error)
            await self._endings.fail(entry, InternalError("The service failed on this job; the log has the details"))
        else:
            if before is not None:
                await before.wait()
            completed = m.Completed(images=tuple(entry.images), timings=done.timings, device=done.device)
            await self._endings.finish(entry, completed)

    async def _with_inputs(self, job: Job) -> Job:
        """Return a job with its images, which only the store holds while it waits."""
        if not job.request.inputs:
            return job
        inputs = await self._store.ask(m.GetInputs(job_id=job.id))
        return attrs.evolve(job, request=job.request.with_inputs(inputs))

    async def _discard_images(self, entry: Entry) -> None:
        """Remove what an attempt saved that is over while its job is not: nothing will ever point to it."""
        images, entry.images = entry.images, []
        await self._remove(entry, images)

    async def _remove(self, entry: Entry, images: list[StoredImage]) -> None:
        """Remove these images, and those that were late; the engine is not kept for a disk."""
        late, entry.late = entry.late, []
        async with unwrapped_nursery() as nursery:
            nursery.start_soon(self._let_engine_go, entry)
            await self._job_runner.discard([*images, *late])
            nursery.cancel_scope.cancel()

    async def _let_engine_go(self, entry: Entry) -> None:
        """Give the engine to another job when what is left of this attempt takes long: it waits for a disk."""
        await trio.sleep(DISCARD_SECONDS)
        engine = None if entry.engine is None else entry.engine.id
        if engine is not None and self._free(engine, entry):
            # It does not end in this attempt, so no job of the engine has to end behind it.
            entry.passed.set()
            self._dispatch()

    # --- telling ---

    def _settled(self) -> None:
        """A job has moved on: a drain may be done, or the next one due."""
        self._draining.answer_when_quiet()
        self._dispatch()

    def _publish(self, progress: Progress) -> None:
        entry = self._queue.get(progress.id)
        if entry is None or entry.state in OVER:
            return
        note_progress(entry)
        timed = attrs.evolve(progress, eta_seconds=self._queue.eta(entry, self._engines.usable()))
        self._hub.tell_lossy(m.Publish(job_id=progress.id, event=timed, owner=entry.job.owner))

    def _show(self, image: PartialImage) -> None:
        self._hub.tell_lossy(m.Show(image=image))
