"""Typed questions to the actors for routes and embedding programs: submit, jobs, images, engines, models."""

import errno
import logging
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.engine_addresses import EngineAddresses
from mflux_api.actors.leasing import leased
from mflux_api.actors.mailbox import ActorGone, ActorStopped, ActorSuspended, Address, Ask
from mflux_api.catalog import Catalog, Model
from mflux_api.catalog.lookup import find_model, not_downloaded
from mflux_api.config import Settings
from mflux_api.engine.interface import EngineDied, EngineId
from mflux_api.engine.protocol import Ready
from mflux_api.errors import (
    EngineUnavailable,
    ImageGone,
    InternalError,
    JobGone,
    JobNotFound,
    ModelNotDownloaded,
    ServiceRestarting,
    ShuttingDown,
)
from mflux_api.gateway.bytes_in_flight import BytesInFlight, default_limit
from mflux_api.gateway.event_stream import EventStream
from mflux_api.images.decode import compact_text
from mflux_api.images.encode import ImageFormat, convert_png, read_png_as_base64
from mflux_api.images.run_inputs import output_size, source_size
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Job, Status, StoredImage
from mflux_api.jobs.lora_tags import without_tags
from mflux_api.jobs.progress import Finished
from mflux_api.jobs.request import GenerateRequest, check_fields
from mflux_api.jobs.resolve import ResolvedRequest, resolve
from mflux_api.jobs.upscaling import check_upscaling, resolve_upscaling
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.storage.loras import LoraFiles
from mflux_api.storage.repository import Page, Totals
from mflux_api.storage.retention import Removed
from mflux_api.system.threads import read_in_thread

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.05
"""Before a question is put again to an actor that is being restarted."""
ENGINE_ANSWER_SECONDS = 2.0
"""How long the actors of one engine may take to say how it is doing."""

T = TypeVar("T")
M = TypeVar("M")


@attrs.frozen(kw_only=True)
class Addresses:
    """Every actor that can be asked from outside the tree."""

    scheduler: Address[m.SchedulerMessage]
    store: Address[m.StoreMessage]
    hub: Address[m.HubMessage]
    downloader: Address[m.DownloaderMessage]
    stats: Address[m.StatsMessage]
    engines: Mapping[EngineId, EngineAddresses]


@attrs.frozen(kw_only=True)
class JobView:
    """A job with what is only known while it is unfinished."""

    job: Job
    live: m.JobSnapshot | None


@attrs.frozen(kw_only=True)
class EngineView:
    """One engine as operators see it."""

    status: m.EngineStatus
    state: m.EngineState | None
    """``None`` while its actors do not answer."""
    residency: m.Residency | None

    @property
    def info(self) -> Ready | None:
        """What its child said of itself; ``None`` while none is up."""
        return None if self.state is None else self.state.info

    @property
    def models(self) -> tuple[str, ...]:
        """The models in its memory, the most recently used first."""
        return self.status.models if self.residency is None else self.residency.models

    @property
    def loading(self) -> str | None:
        """The model that is being loaded."""
        return self.status.loading if self.residency is None else self.residency.loading


class Gateway:
    """Typed questions to the actors.

    Every method raises :class:`ServiceRestarting` when its actor just died, and :class:`ShuttingDown` once the service
    has ended.
    """

    def __init__(self, addresses: Addresses, settings: Settings, catalog: Catalog, checkpoints: Checkpoints) -> None:
        self._to = addresses
        self._readers = trio.CapacityLimiter(4)
        self._decoders = trio.CapacityLimiter(2)
        self.loras = LoraFiles(settings.lora.dirs)
        limit = settings.server.max_in_flight_mb
        self.in_flight = BytesInFlight(default_limit() if limit is None else limit * 2**20)
        self.settings = settings
        self.catalog = catalog
        self.checkpoints = checkpoints

    async def submit(
        self,
        request: GenerateRequest,
        *,
        synchronous: bool = False,
        owner: str = "",
        key: IdempotencyKey | None = None,
    ) -> m.Accepted:
        """Check, resolve and queue a request whose fields are within their limits; when this returns the job is kept.

        With a ``key`` under which a job was accepted before, that job is the answer.

        Raises:
            InvalidParameter: a field is outside its limits.
            InvalidModel: no model has that name.
            ModelNotFound: it is a Flux1 model's name.
            ModelNotDownloaded: it is not on disk, and ``models.auto_download`` is off.
            QueueFull: too many jobs wait.
            ShuttingDown: the service is draining.
            EngineUnavailable: the engine does not start.
            IdempotencyConflict: the key was used before with another body.
            JobGone: the key's job was removed by retention.
        """
        most = self.settings.generation.max_batch_size
        check = partial(check_fields, max_images=most, needs_prompt=not self.upscales(request.model))
        check(request)
        checked = without_tags(request)
        check(checked)
        model = find_model(checked.model or self.settings.models.default, self.catalog)
        if model.upscales:
            check_upscaling(checked, model)
        if model.remote and not self.settings.models.auto_download and not await self._on_disk(model):
            raise not_downloaded(model)
        resolved = await (self._upscaling if model.upscales else self._generating)(checked, model)
        if resolved.init_images and not synchronous:
            # What waits is counted, and is what a start would read. A synchronous caller has its text in memory anyway.
            texts = await read_in_thread(lambda: tuple(map(compact_text, resolved.init_images)), limiter=self._decoders)
            resolved = attrs.evolve(resolved, init_images=texts)
        submit = m.Submit(request=resolved, synchronous=synchronous, owner=owner, key=key)
        try:
            return await self._submit(submit)
        except (ServiceRestarting, trio.Cancelled):
            if synchronous:
                # No caller will wait for it.
                self.abandon(submit.job_id)
            raise

    async def _submit(self, submit: m.Submit) -> m.Accepted:
        try:
            return await self._ask(self._to.scheduler, submit)
        except ServiceRestarting:
            # It may have died between the store's answer and its own; when it answers again it has recovered.
            live = (await self.snapshots()).get(submit.job_id)
            job = await self._ask(self._to.store, m.GetJob(job_id=submit.job_id))
            if job is None:
                raise
            return m.Accepted(job=job, position=(live.position if live is not None else None) or 0)

    async def accepted_before(self, key: IdempotencyKey) -> m.Accepted | None:
        """Return the job that was accepted under a key; ``None`` when there is none.

        Ask before anything of the request is checked: a file or a model may be gone since.

        Raises:
            IdempotencyConflict: the key was used before with another body.
            JobGone: the key's job was removed by retention.
        """
        return await self._ask(self._to.scheduler, m.FindAccepted(key=key))

    def upscales(self, name: object) -> bool:
        """Whether a request's ``model``, which is not checked yet, or the default where it has none, upscales."""
        name = name or self.settings.models.default
        model = self.catalog.get(name) if isinstance(name, str) else None
        return model is not None and model.upscales

    async def _upscaling(self, checked: GenerateRequest, model: Model) -> ResolvedRequest:
        size = await read_in_thread(source_size, checked.init_images[0], limiter=self._decoders)
        return resolve_upscaling(checked, model, size)

    async def _generating(self, checked: GenerateRequest, model: Model) -> ResolvedRequest:
        loras = await self._named(checked.lora_files)
        size: tuple[int, int] | None = None
        if checked.init_images:
            size = await read_in_thread(output_size, checked.init_images, limiter=self._decoders)
        steps = self.settings.generation.default_steps
        return resolve(checked, model, default_steps=steps, default_size=size, lora_names=loras)

    async def _named(self, loras: tuple[str, ...]) -> tuple[str, ...]:
        """Return every LoRA's one name, under which it is found again after a restart, too."""
        if not loras:
            return ()
        files = await read_in_thread(self.loras.resolve, loras, limiter=self._readers)
        return tuple(file.name for file in files)

    async def job(self, job_id: str) -> JobView:
        """Return one job as it is now.

        Raises:
            JobNotFound: there is none with that id.
        """
        job = await self._job(job_id)
        if job.status.terminal:
            return JobView(job=job, live=None)
        live = (await self._ask(self._to.scheduler, m.GetSnapshots(job_ids=(job_id,)))).get(job_id)
        if live is None:
            # It ended between the two questions.
            job = await self._job(job_id)
        return JobView(job=job, live=live)

    async def jobs(
        self, *, limit: int = 50, cursor: str | None = None, status: Status | None = None
    ) -> tuple[tuple[JobView, ...], str | None]:
        """Return a page of jobs, newest first, and the cursor of the next one."""
        page: Page = await self._ask(self._to.store, m.ListJobs(limit=limit, cursor=cursor, status=status))
        unfinished = tuple(job.id for job in page.jobs if not job.status.terminal)
        question = m.GetSnapshots(job_ids=unfinished)
        snapshots = await self._ask(self._to.scheduler, question) if unfinished else {}
        views = tuple([await self._view(job, snapshots.get(job.id)) for job in page.jobs])
        return views, page.next_cursor

    async def _view(self, job: Job, live: m.JobSnapshot | None) -> JobView:
        """A job of a page as it is now: one that has ended since, as it ended, if it is still there."""
        if job.status.terminal or live is not None:
            return JobView(job=job, live=live)
        with suppress(JobNotFound, JobGone):
            job = await self._job(job.id)
        return JobView(job=job, live=None)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job and return it; a finished one is returned as it is.

        Raises:
            JobNotFound: there is none with that id.
        """
        job = await self._ask(self._to.scheduler, m.CancelJob(job_id=job_id))
        if job is None:
            raise _unknown(job_id)
        return job

    def abandon(self, job_id: str) -> None:
        """Cancel a job without waiting for the answer, for callers that are being cancelled themselves."""
        self._to.scheduler.tell_latest(m.Abandon(job_id=job_id), key=(m.Abandon, job_id))

    def caller_done(self, job_id: str) -> None:
        """Say that the caller of a synchronous job has read what it wanted: retention may take the job now."""
        self._to.store.tell_latest(m.CallerDone(job_id=job_id), key=(m.CallerDone, job_id))

    async def prune(self, older_than: timedelta, *, dry_run: bool) -> Removed:
        """Remove the records of jobs that finished longer ago than that, or only say which they are."""
        return await self._ask(self._to.store, m.PruneJobs(older_than=older_than, dry_run=dry_run))

    async def follow(self, job_id: str, last_event_id: str | None = None, *, previews: bool = False) -> EventStream:
        """Follow a job's events; use the result as an async context manager and iterate over it.

        Args:
            job_id: the job.
            last_event_id: the event after which to go on; with the terminal event's own the stream has ended.
            previews: also follow events that carry a small image of what an image is coming to.

        Raises:
            JobNotFound: there is none with that id.
            ShuttingDown: it goes on at the next start only.
        """
        job = await self._job(job_id)
        subscription = await self._ask(
            self._to.hub, m.Subscribe(job_id=job_id, last_event_id=last_event_id, previews=previews)
        )
        try:
            # Read after subscribing: an end that this row does not show yet will come through the channel. The record
            # may be gone by then, when few are kept.
            with suppress(JobGone):
                job = await self._job(job_id)
        except BaseException:
            subscription.channel.close()
            raise

        async def look() -> Job:
            return (await self.job(job_id)).job

        return EventStream(job, subscription, look, last_event_id=last_event_id)

    async def finished(self, job_id: str) -> Job:
        """Wait until a job has ended and return it."""
        while True:
            try:
                async with await self.follow(job_id) as stream:
                    async for logged in stream:
                        if isinstance(logged.event, Finished):
                            return logged.event.job
            except ServiceRestarting:
                # A part of the service was restarted under us; the job goes on.
                await trio.sleep(RETRY_SECONDS)

    async def awaited_end(self, job_id: str) -> m.JobEnd:
        """Wait until a job has ended and return it, for a caller that must not wait for a disk.

        Raises:
            JobNotFound: there is none with that id.
            DiskFull: its end cannot be written now; the job ends when it can.
        """
        while True:
            try:
                end = await self._ask(self._to.scheduler, m.AwaitEnd(job_id=job_id))
            except ServiceRestarting:
                # The scheduler was restarted and takes the job up again.
                await trio.sleep(RETRY_SECONDS)
                continue
            if end is None:
                raise _unknown(job_id)
            if end.job.status.terminal:
                return end
            # A scheduler that cannot read the store yet does not know the job.
            await trio.sleep(RETRY_SECONDS)

    async def image_bytes(self, image: StoredImage) -> bytes:
        """Read a finished image's PNG file.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read.
        """
        return await self._read(partial(_file_bytes, Path(image.path)))

    async def image_size(self, image: StoredImage) -> int:
        """Return the size of a finished image's PNG file.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read.
        """
        return await self._read(partial(_file_size, Path(image.path)))

    async def image_base64(self, image: StoredImage, size: int) -> bytearray:
        """Read a finished image's PNG file of a known size as base64.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read, or is damaged.
        """
        return await self._read(partial(read_png_as_base64, Path(image.path), size))

    async def _read(self, read: Callable[[], T]) -> T:
        try:
            return await read_in_thread(read, limiter=self._readers)
        except (FileNotFoundError, NotADirectoryError):
            raise ImageGone("The image's file was removed from the output directory") from None
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error

    async def image_as(self, image: StoredImage, target: ImageFormat) -> bytes:
        """Read a finished image in another format.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read.
        """
        data = await self.image_bytes(image)
        try:
            return await read_in_thread(convert_png, data, target, limiter=self._readers)
        except (OSError, SyntaxError, ValueError) as error:
            # Pillow's words for a damaged file.
            raise _unreadable(error) from error

    async def model_hash(self, alias: str) -> str | None:
        """Return the short digest of a model's checkpoint; ``None`` when it is not on disk."""
        model = self.catalog.get(alias)
        return await read_in_thread(self.checkpoints.short_hash, model, limiter=self._readers)

    async def status(self) -> m.SchedulerStatus:
        """Return how busy the scheduler is."""
        return await self._ask(self._to.scheduler, m.GetStatus())

    async def snapshots(self) -> Mapping[str, m.JobSnapshot]:
        """Return every unfinished job: running ones first, then the queue in order."""
        return await self._ask(self._to.scheduler, m.GetSnapshots())

    async def engines(self) -> tuple[EngineView, ...]:
        """Return every engine, in their order, with what its actors say of it."""
        statuses = await self._ask(self._to.scheduler, m.GetEngines())
        return tuple([await self._engine_view(status) for status in statuses])

    async def _engine_view(self, status: m.EngineStatus) -> EngineView:
        to = self._to.engines[status.id]
        state: m.EngineState | None = None
        residency: m.Residency | None = None
        # Bounded: actors that are being restarted answer when they are back.
        with suppress(ActorGone), trio.move_on_after(ENGINE_ANSWER_SECONDS):
            state = await to.generator.ask(m.GetEngine())
            residency = await to.loader.ask(m.GetResidency())
        return EngineView(status=status, state=state, residency=residency)

    async def download_state(self, model: Model) -> m.DownloadState:
        """Return how far a model's download is, or why the last one failed."""
        return await self._ask(self._to.downloader, m.GetDownload(model=model.alias))

    async def download(self, model: Model) -> None:
        """Begin to download a model, whether a job needs it or not; nothing to do when it is on disk."""
        await self._ask(self._to.downloader, m.StartDownload(model=model.alias))

    async def load_model(self, model: Model) -> None:
        """Bring a model into the memory of an engine, in line with the jobs that need one; returns when it is there.

        Raises:
            ModelNotDownloaded: it is not on disk.
            OutOfMemory: it does not fit.
            EngineUnavailable: the engine died while it loaded, or is not up within ``engine.start_timeout_seconds``.
            GenerationFailed: the checkpoint cannot be used.
        """
        if not await self._on_disk(model):
            raise ModelNotDownloaded(
                f"Model '{model.alias}' is not on disk; POST /api/v1/models/{model.alias}/download first",
                {"model": model.alias, "endpoint": f"POST /api/v1/models/{model.alias}/download"},
            )
        loader = (await self._engine_for(model)).loader
        try:
            async with leased(loader, m.Acquire(model=model.alias)):
                logger.debug("model %s is in memory", model.alias)
        except ActorGone as gone:
            raise _gone(gone) from None
        except EngineDied as died:
            raise EngineUnavailable(
                f"The engine ended while it loaded '{model.alias}' ({died.reason}); try again or see the log"
            ) from None

    async def _engine_for(self, model: Model) -> EngineAddresses:
        """The engine that has the model, else one that could load it: the first that is up, if there is one."""
        statuses = await self._ask(self._to.scheduler, m.GetEngines())
        working = [status for status in statuses if status.condition is not m.EngineCondition.FAILED]
        if not working:
            raise EngineUnavailable.because(next((status.reason for status in statuses if status.reason), ""))

        def fitness(status: m.EngineStatus) -> tuple[bool, bool, bool]:
            up = status.condition is m.EngineCondition.READY
            return model.alias in status.models, up, status.condition is not m.EngineCondition.DEGRADED

        return self._to.engines[max(working, key=fitness).id]

    async def unload_model(self, model: Model) -> None:
        """Have a model out of the memory of every engine; nothing to do where it is not.

        Raises:
            ModelInUse: a job runs on it.
        """
        for engine in self._to.engines.values():
            try:
                await engine.loader.ask(m.Evict(model=model.alias))
            except (EngineDied, ActorSuspended):
                logger.debug("the engine is gone, and what it had in memory with it")
            except ActorGone as gone:
                raise _gone(gone) from None

    async def delete_model(self, model: Model) -> None:
        """Remove a model from memory and from disk.

        Raises:
            ModelNotDeletable: this service did not put it there.
            ModelNotDownloaded: there is nothing to remove.
            ModelInUse: a job runs on it or waits for its download.
        """
        await self._ask(self._to.downloader, m.DeleteModel(model=model.alias))

    async def _on_disk(self, model: Model) -> bool:
        return await read_in_thread(self.checkpoints.folder, model, limiter=self._readers) is not None

    async def totals(self) -> Totals:
        """Return the running counters of the store."""
        return await self._ask(self._to.store, m.GetTotals())

    async def counters(self) -> m.Counters:
        """Return the counters of this process."""
        return await self._ask(self._to.stats, m.GetCounters())

    async def drain(self, *, halt: bool = False) -> None:
        """Take no new work, and wait until nothing runs any more; with ``halt`` stop what runs.

        Then the streams of jobs that go on at the next start end.
        """
        while True:
            try:
                await self._ask(self._to.scheduler, m.Drain(halt=halt), control=True)
            except ServiceRestarting:
                # A scheduler that was restarted still takes no new work, but has forgotten who waits for its rest.
                await trio.sleep(RETRY_SECONDS)
            else:
                break
        with suppress(ActorGone):
            # Behind the terminal events of what has just ended, so not in the control lane.
            await self._to.hub.tell(m.EndStreams())

    async def _job(self, job_id: str) -> Job:
        job = await self._ask(self._to.store, m.GetJob(job_id=job_id))
        if job is None:
            raise _unknown(job_id)
        return job

    async def _ask(self, address: Address[M], message: Ask[T], *, control: bool = False) -> T:
        try:
            return await address.ask(message, control=control)
        except ActorGone as gone:
            raise _gone(gone) from None


def _gone(gone: ActorGone) -> ServiceRestarting | ShuttingDown:
    if isinstance(gone, ActorStopped):
        return ShuttingDown("The service has ended")
    return ServiceRestarting(f"The service's {gone} was restarted; try again")


def _file_size(path: Path) -> int:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        # Reading a pipe would wait for its other end.
        raise OSError(errno.EINVAL, "Not a regular file")
    return status.st_size


def _file_bytes(path: Path) -> bytes:
    _file_size(path)
    return path.read_bytes()


def _unknown(job_id: str) -> JobNotFound:
    shown = job_id[:32]
    return JobNotFound(f"Job '{shown}' not found", {"job_id": shown})


def _unreadable(error: OSError | SyntaxError | ValueError) -> InternalError:
    return InternalError(
        "The image's file cannot be read; check that the server may read generation.output_dir",
        {"reason": getattr(error, "strerror", None) or "the file is damaged"},
    )
