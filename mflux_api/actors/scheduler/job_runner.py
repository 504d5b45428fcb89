"""One attempt at one job, as the job's task sees it: lease, run, follow, save."""

import base64
import errno
import itertools
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import assert_never

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, Address
from mflux_api.engine.interface import EngineDied
from mflux_api.errors import DiskFull, InternalError, OutOfMemory, ServiceError
from mflux_api.images.run_inputs import RunInputs, references_and_start, source
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job, Stage, StoredImage, Timings
from mflux_api.jobs.memory_advice import MemoryAdvice
from mflux_api.jobs.progress import Progress, ProgressTracker
from mflux_api.jobs.resolve import ResolvedRequest
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.loras import LoraFiles

logger = logging.getLogger(__name__)

Publish = Callable[[Progress], None]


class SaveFailed(Exception):
    """An image was generated but cannot be kept; ``error`` is what the client sees."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.message)
        self.error = error


class JobRunner:
    """Runs attempts; shared by the scheduler's job tasks."""

    def __init__(
        self,
        loader: Address[m.LoaderMessage],
        generator: Address[m.GeneratorMessage],
        files: ImageFiles,
        encoders: trio.CapacityLimiter,
        model_hash: Callable[[str], str | None],
        loras: LoraFiles,
        advice: MemoryAdvice,
    ) -> None:
        self._loader = loader
        self._generator = generator
        self._files = files
        self._encoders = encoders
        self._model_hash = model_hash
        self._loras = loras
        self.advice = advice
        """What jobs are told that do not fit in memory."""
        self.estimates = Estimates()
        """What the attempts so far have taught about how long jobs take."""
        self._run_ids = itertools.count(1)

    async def run(self, job: Job, tracker: ProgressTracker, images: list[StoredImage], publish: Publish) -> Timings:
        """Generate the job's images, appending each to ``images`` once it is on disk.

        Raises:
            EngineDied: the engine ended with the job inside.
            ActorGone: the loader or the generator was restarted.
            SaveFailed: an image cannot be written.
            ServiceError: the engine refuses the job.
        """
        started = trio.current_time()
        inputs = await self._inputs(job.request)
        while True:
            publish(tracker.stage(Stage.LOADING))
            lease = await self._loader.ask(m.Acquire(model=job.model, low_ram=job.request.low_ram))
            try:
                timings = await self._run(job, inputs, lease, tracker, images, publish)
                return attrs.evolve(timings, total=trio.current_time() - started)
            except OutOfMemory as error:
                raise self.advice.error(job.model, low_ram=job.request.low_ram) from error
            except m.StaleLease:
                logger.debug("job %s: the engine was replaced before the run began", job.id)
            finally:
                self._release(lease)

    def discard(self, images: Iterable[StoredImage]) -> None:
        """Remove images that no job will show; one that cannot be removed is left, and its job goes on."""
        for image in images:
            self._tidy(partial(self._files.discard, image))

    def discard_all(self, job: Job) -> None:
        """Remove every image of a job that a killed process had begun, and of which no row tells."""
        self._tidy(partial(self._files.discard_all, job.id, job.created_at, job.request.num_images))

    def _tidy(self, remove: Callable[[], None]) -> None:
        try:
            remove()
        except OSError as error:
            logger.warning("an abandoned image stays on disk (%s)", error.strerror)

    async def _inputs(self, request: ResolvedRequest) -> RunInputs:
        """What the request names, read from text and disk before the engine is taken."""
        if not request.init_images and not request.lora_files:
            return RunInputs()

        def prepare() -> RunInputs:
            if request.upscaling is not None:
                return RunInputs(source=source(request))
            references, start = references_and_start(request)
            paths = tuple(str(file.path) for file in self._loras.resolve(request.lora_files))
            return RunInputs(references=references, start=start, lora_paths=paths)

        return await trio.to_thread.run_sync(prepare, limiter=self._encoders)

    def _release(self, lease: m.Lease) -> None:
        try:
            self._loader.tell_nowait(m.Release(lease_id=lease.id), control=True)
        except ActorGone:
            logger.debug("the loader is gone, and its leases with it")

    async def _run(
        self,
        job: Job,
        inputs: RunInputs,
        lease: m.Lease,
        tracker: ProgressTracker,
        images: list[StoredImage],
        publish: Publish,
    ) -> Timings:
        count, steps = job.request.num_images, job.request.steps
        # Room for all that one run can report, so that the generator never waits for us.
        events, reports = trio.open_memory_channel[m.RunEvent](count * (2 * steps + 5) + 8)
        generate = m.Run(lease=lease, request=job.request, run_id=next(self._run_ids), events=events, inputs=inputs)
        timings: Timings | None = None
        error: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                nonlocal error
                try:
                    await self._follow(job, reports, tracker, images, publish)
                except SaveFailed as failed:
                    error = failed
                    nursery.cancel_scope.cancel()

            nursery.start_soon(follow)
            try:
                timings = await self._generator.ask(generate)
            except (ServiceError, EngineDied, ActorGone, m.StaleLease) as failed:
                error = failed
                nursery.cancel_scope.cancel()
            finally:
                if timings is None:
                    self._stop(generate)
        if error is not None:
            raise error
        if timings is None:
            raise ActorGone(self._generator.name)
        return timings

    def _stop(self, generate: m.Run) -> None:
        try:
            self._generator.tell_nowait(m.CancelRun(run_id=generate.run_id), control=True)
        except ActorGone:
            logger.debug("the generator is gone, and its run with it")

    async def _follow(
        self,
        job: Job,
        reports: trio.MemoryReceiveChannel[m.RunEvent],
        tracker: ProgressTracker,
        images: list[StoredImage],
        publish: Publish,
    ) -> None:
        stopwatch = Stopwatch(self.estimates, job.request)
        with reports:
            async for report in reports:
                match report:
                    case m.Entered():
                        stopwatch.stage_began()
                        publish(tracker.stage(Stage(report.stage)))
                    case m.Stepped():
                        stopwatch.step_done(report.images)
                        publish(tracker.step(report.step, report.steps, image=report.image, images=report.images))
                    case m.Previewed():
                        # The first of its pass; of the others nobody could say which they are.
                        if report.index == tracker.latest.image:
                            publish(tracker.preview(base64.b64encode(report.jpeg).decode()))
                    case m.Generated():
                        publish(tracker.stage(Stage.SAVING))
                        images.append(await self._save(job, report))
                        stopwatch.image_saved()
                        publish(tracker.image_saved(len(images)))
                    case _:
                        assert_never(report)

    async def _save(self, job: Job, generated: m.Generated) -> StoredImage:
        def save() -> StoredImage:
            return self._files.save(
                job,
                generated.index,
                seed=generated.seed,
                width=generated.width,
                height=generated.height,
                rgb=generated.rgb,
                model_hash=self._model_hash(job.model),
            )

        try:
            stored = await trio.to_thread.run_sync(save, limiter=self._encoders)
        except OSError as failed:
            raise SaveFailed(_save_error(failed)) from failed
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            # The job ended while the file was being written; nothing will ever point to it.
            self.discard([stored])
            raise
        return stored


class Stopwatch:
    """Measures one run for the estimates: each step, and what an image takes besides."""

    def __init__(self, estimates: Estimates, request: ResolvedRequest) -> None:
        self._estimates = estimates
        self._request = request
        self._image_began = self._last = trio.current_time()
        self._stepping = 0.0

    def stage_began(self) -> None:
        """The engine entered another stage."""
        self._last = trio.current_time()

    def step_done(self, images: int) -> None:
        """A denoising step of so many images ended."""
        now = trio.current_time()
        self._estimates.add_step(self._request, (now - self._last) / images)
        self._stepping += now - self._last
        self._last = now

    def image_saved(self) -> None:
        """An image is on disk."""
        now = trio.current_time()
        self._estimates.add_rest(self._request, now - self._image_began - self._stepping)
        self._image_began, self._stepping = now, 0.0


def _save_error(error: OSError) -> ServiceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("No space left in the output directory; free some and try again")
    return InternalError(
        "The image cannot be written to the output directory; check that generation.output_dir is writable",
        {"reason": error.strerror or type(error).__name__},
    )
