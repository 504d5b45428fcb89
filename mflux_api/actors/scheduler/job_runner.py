"""One attempt at one job: takes a lease, runs, follows the events, saves the images, measures the time."""

import base64
import errno
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.decoding import Decoding
from mflux_api.actors.engine_addresses import EngineAddresses
from mflux_api.actors.leasing import leased
from mflux_api.actors.mailbox import ActorGone, ActorSuspended, Address
from mflux_api.actors.scheduler.partial_images import PartialImages
from mflux_api.actors.scheduler.stopwatch import Stopwatch
from mflux_api.engine import protocol as p
from mflux_api.engine.interface import EngineId, Received
from mflux_api.errors import DiskFull, InternalError, OutOfMemory, ServiceError
from mflux_api.images.run_inputs import RunInputs
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job, Stage, StoredImage, Timings
from mflux_api.jobs.memory_advice import MemoryAdvice
from mflux_api.jobs.progress import PartialImage, Progress, ProgressTracker
from mflux_api.jobs.resolve import ResolvedRequest
from mflux_api.storage.image_files import ImageFiles
from mflux_api.system.nurseries import unwrapped_nursery
from mflux_api.system.threads import run_in_thread

logger = logging.getLogger(__name__)

Publish = Callable[[Progress], None]

REMOVERS = 2
"""Threads that remove images: those that save may all be waiting for the disk."""


class SaveFailed(Exception):
    """An image was generated but cannot be kept; ``error`` is what the client sees."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.message)
        self.error = error


class NoLease(ActorGone):
    """The engine's actors, or the decoder, ended before the job had a lease."""


SHORT_REST_SECONDS = 0.25
"""A job that has so little to do after its last step lets the next one come to its engine."""


@attrs.frozen(kw_only=True)
class Callbacks:
    """Who is told of an attempt."""

    publish: Publish
    """Told of every progress."""
    show: Callable[[PartialImage], None]
    """Given every partial image."""
    warn: Callable[[str], None]
    """Told of every warning of the engine."""
    engine_leaving: Callable[[], None]
    """Called when the engine will be free in a moment: what the next job needs before it can run may be done now."""
    engine_freed: Callable[[], None]
    """Called when the engine has no more to do for it; images may still be being saved then."""


@attrs.frozen(kw_only=True)
class Ran:
    """What a run that came to its end was."""

    timings: Timings
    device: str | None
    """The kind of device that it ran on."""


class JobRunner:
    """Runs attempts; shared by the scheduler's job tasks."""

    def __init__(
        self,
        engines: Mapping[EngineId, EngineAddresses],
        files: ImageFiles,
        decoding: Decoding,
        encoders: trio.CapacityLimiter,
        model_hash: Callable[[str], str | None],
        advice: MemoryAdvice,
        stats: Address[m.StatsMessage],
    ) -> None:
        self._engines = engines
        self._files = files
        self._decoding = decoding
        self._encoders = encoders
        self._removers = trio.CapacityLimiter(REMOVERS)
        self._model_hash = model_hash
        self._stats = stats
        self.advice = advice
        """What jobs are told that do not fit in memory."""
        self.estimates = Estimates()
        """What the attempts so far have taught about how long jobs take."""
        self._run_ids = itertools.count(1)

    async def run(
        self,
        job: Job,
        engine: EngineId,
        tracker: ProgressTracker,
        images: list[StoredImage],
        late: list[StoredImage],
        previewed: trio.Event,
        told: Callbacks,
        together: m.Together | None = None,
    ) -> Ran:
        """Generate the job's images on an engine, appending each to ``images`` once it is on disk.

        Args:
            job: the job, whose request is run.
            engine: the engine that was chosen for it.
            tracker: turns what happens into progress.
            images: gets what is saved.
            late: gets what was on disk only when the attempt was over; nothing will ever point to it.
            previewed: set once someone follows its previews.
            told: who is told of it.
            together: the jobs that it shares its passes with.

        Raises:
            EngineDied: the engine ended with the job inside.
            ActorGone: the loader or the generator was restarted; :class:`NoLease` while the job waited for a lease.
            SaveFailed: an image cannot be written.
            ServiceError: the engine refuses the job.
        """
        started = trio.current_time()
        inputs = await self._inputs(job.request)
        to = self._engines[engine]
        while True:
            told.publish(tracker.stage(Stage.LOADING))
            try:
                # What follows the run goes on saving when the lease is back and the engine is free.
                async with unwrapped_nursery() as nursery:
                    async with self._leased(job, to, tracker, told.publish, nursery) as lease:
                        if lease.load_seconds > 0 and not job.request.low_ram:
                            self.estimates.add_load(job.model, lease.device, lease.load_seconds)
                        partials = PartialImages(job, self._decoding, self._encoders, told.show)
                        attempt = _Attempt(job, lease, to, tracker, images, late, told, partials, previewed, together)
                        timings = await self._run(attempt, inputs, nursery)
                    told.engine_freed()
                return Ran(timings=attrs.evolve(timings, total=trio.current_time() - started), device=lease.device)
            except m.StaleLease:
                logger.debug("job %s: the engine was replaced before the run began", job.id)

    async def discard(self, images: Iterable[StoredImage]) -> None:
        """Remove images that no job will show; one that cannot be removed is left, and its job goes on."""
        for image in images:
            await self._tidy(partial(self._files.discard, image))

    async def discard_all(self, job: Job) -> None:
        """Remove every image of a job that a killed process had begun, and of which no row tells."""
        await self._tidy(partial(self._files.discard_all, job.id, job.created_at, job.request.num_images))

    async def _tidy(self, remove: Callable[[], None]) -> None:
        # Waited for: the next attempt gives its images the same names.
        await run_in_thread(partial(_try_to, remove), limiter=self._removers)

    @asynccontextmanager
    async def _leased(
        self, job: Job, to: EngineAddresses, tracker: ProgressTracker, publish: Publish, nursery: trio.Nursery
    ) -> AsyncIterator[m.Lease]:
        updates, news = trio.open_memory_channel[p.LoadProgress](1)

        async def follow() -> None:
            with news:
                async for progress in news:
                    publish(tracker.loading(progress.bytes_done, progress.bytes_total))

        granted = False
        nursery.start_soon(follow)
        try:
            async with leased(
                to.loader, m.Acquire(model=job.model, low_ram=job.request.low_ram, updates=updates)
            ) as lease:
                granted = True
                updates.close()
                yield lease
        except ActorSuspended:
            raise
        except ActorGone as gone:
            if granted:
                raise
            raise NoLease(*gone.args) from None

    async def _inputs(self, request: ResolvedRequest) -> RunInputs:
        """The images that the request carries, decoded before the engine is taken."""
        try:
            return await self._decoding.run_inputs(request)
        except ActorGone as gone:
            # The job had not begun.
            raise NoLease(*gone.args) from None

    async def _run(self, attempt: "_Attempt", inputs: RunInputs, nursery: trio.Nursery) -> Timings:
        job, request = attempt.job, attempt.job.request
        # Room for all that one run can report, so that the generator never waits for us.
        events, reports = trio.open_memory_channel[Received](
            p.most_events(request.num_images, request.steps) + p.LOSSY_EVENTS
        )
        run = m.Run(
            lease=attempt.lease,
            request=request,
            run_id=next(self._run_ids),
            events=events,
            inputs=inputs,
            previews=attempt.previewed.is_set(),
            together=attempt.together,
        )
        answered = False
        nursery.start_soon(self._follow, attempt, reports)
        try:
            async with unwrapped_nursery() as asking:
                if not run.previews:
                    asking.start_soon(_pass_on_followers, attempt, run)
                timings = await attempt.to.generator.ask(run)
                asking.cancel_scope.cancel("the run is over")
            answered = True
        except OutOfMemory as error:
            raise self.advice.error(job.model, low_ram=request.low_ram) from error
        finally:
            if not answered:
                attempt.to.generator.tell_latest(m.CancelRun(run_id=run.run_id), key=run.run_id)
        return timings

    async def _follow(self, attempt: "_Attempt", reports: trio.MemoryReceiveChannel[Received]) -> None:
        async with unwrapped_nursery() as nursery:
            nursery.start_soon(attempt.partials.run)
            await self._follow_reports(attempt, reports)
            # Of a finished image no one needs what it was coming to.
            nursery.cancel_scope.cancel("the run is over")

    async def _follow_reports(self, attempt: "_Attempt", reports: trio.MemoryReceiveChannel[Received]) -> None:
        stopwatch = Stopwatch(self.estimates, attempt.job.request, attempt.lease.device, self._stats)
        tracker, publish = attempt.tracker, attempt.told.publish
        with reports:
            async for report in reports:
                match report.event:
                    case p.LoadProgress() as progress:
                        publish(tracker.loading(progress.bytes_done, progress.bytes_total))
                    case p.StageChanged(stage=stage):
                        stopwatch.stage_began(stage)
                        publish(tracker.stage(Stage(stage)))
                    case p.StepDone() as done:
                        stopwatch.step_done(done)
                        publish(tracker.step(done.step, done.steps, image=done.image, images=done.images))
                        self._note_last_step(attempt, done)
                    case p.RunWarning(message=message):
                        attempt.told.warn(message)
                    case p.PreviewMade(index=index):
                        # The first of its pass; of the others a follower could not say which they are.
                        if index == tracker.latest.image:
                            (jpeg,) = report.blobs
                            publish(tracker.preview(base64.b64encode(jpeg).decode()))
                    case p.PartialImageMade() as made:
                        stopwatch.partial_image_made()
                        attempt.partials.offer(made, report.blobs[0])
                    case p.ImageDone() as image:
                        publish(tracker.stage(Stage.SAVING))
                        attempt.images.append(await self._save(attempt, image, report.blobs[0]))
                        stopwatch.image_saved()
                        publish(tracker.image_saved(len(attempt.images)))
                    case other:
                        raise RuntimeError(f"the generator passed a {type(other).__name__} on")

    def _note_last_step(self, attempt: "_Attempt", done: p.StepDone) -> None:
        """Let the next job come where little is left of this one."""
        request = attempt.job.request
        if done.step < done.steps or done.image + done.images < request.num_images:
            return
        rest = self.estimates.rest(request, attempt.lease.device)
        if rest is not None and rest * done.batch <= SHORT_REST_SECONDS:
            attempt.told.engine_leaving()

    async def _save(self, attempt: "_Attempt", image: p.ImageDone, rgb: bytes) -> StoredImage:
        job = attempt.job

        def save() -> StoredImage:
            return self._files.save(
                job,
                image.index,
                seed=image.seed,
                width=image.width,
                height=image.height,
                rgb=rgb,
                model_hash=self._model_hash(job.model),
            )

        try:
            stored = await run_in_thread(save, limiter=self._encoders)
        except OSError as failed:
            raise SaveFailed(_save_error(failed)) from failed
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            # Removing it here would keep the engine for as long as a disk does not answer.
            attempt.late.append(stored)
            raise
        return stored


@attrs.frozen(eq=False)
class _Attempt:
    """One attempt at a job on a leased model, and who is told of it."""

    job: Job
    lease: m.Lease
    to: EngineAddresses
    tracker: ProgressTracker
    images: list[StoredImage]
    late: list[StoredImage]
    told: Callbacks
    partials: PartialImages
    previewed: trio.Event
    together: m.Together | None


async def _pass_on_followers(attempt: _Attempt, run: m.Run) -> None:
    """Have the engine make previews when someone begins to follow them."""
    await attempt.previewed.wait()
    attempt.to.generator.tell_latest(m.ShowPreviews(run_id=run.run_id), key=(m.ShowPreviews, run.run_id))


def _try_to(remove: Callable[[], None]) -> None:
    try:
        remove()
    except OSError as error:
        logger.warning("an abandoned image stays on disk (%s)", error.strerror)


def _save_error(error: OSError) -> ServiceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("No space left in the output directory; free some and try again")
    return InternalError(
        "The image cannot be written to the output directory; check that generation.output_dir is writable",
        {"reason": error.strerror or type(error).__name__},
    )
