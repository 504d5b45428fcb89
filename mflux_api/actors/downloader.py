"""The downloader: brings models to disk, once for all jobs that wait, and takes them away again.

A download runs in a child process for as long as it is wanted: by jobs that wait, or by a client that asked for it by
name.
"""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import assert_never

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, ActorSuspended, Address, Mailbox, send_lossy
from mflux_api.catalog import Catalog, Model
from mflux_api.catalog.lookup import not_downloaded
from mflux_api.engine.interface import EngineDied
from mflux_api.errors import (
    InternalError,
    ModelInUse,
    ModelNotFound,
    ServiceError,
    ServiceRestarting,
)
from mflux_api.hub.client import DownloadOptions, download_repository
from mflux_api.hub.protocol import DownloadProgress, DownloadRequest
from mflux_api.jobs.job import Failure
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.supervisor import Started
from mflux_api.system.threads import read_in_thread, run_in_thread

logger = logging.getLogger(__name__)

MAX_THREADS = 4
"""Looks at the disk with the models at one time: one that does not answer must not take the threads of others."""
MAX_CHILDREN = 2
"""Downloads at a time; more would only share the same line."""
SPEED_SECONDS = 10.0
"""The stretch of time that the speed is measured over."""

DEFAULT_OPTIONS = DownloadOptions()

_Source = tuple[str, str | None]


@attrs.define(eq=False)
class _Download:
    """One repository on its way, or the failure of the last try."""

    model: Model
    waiting: list[m.EnsureOnDisk] = attrs.field(factory=list)
    asked_for: bool = False
    """A client wants it whether a job needs it or not."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    transfer: m.Transfer = attrs.field(factory=m.Transfer)
    failure: Failure | None = None
    ended: trio.Event = attrs.field(factory=trio.Event)
    samples: deque[tuple[float, int]] = attrs.field(factory=deque)

    @property
    def joinable(self) -> bool:
        return not self.ended.is_set() and not self.scope.cancel_called

    def wanted(self) -> bool:
        """Drop the jobs that wait no more; return whether it is still wanted."""
        self.waiting = [each for each in self.waiting if each.reply.wanted]
        return self.asked_for or bool(self.waiting)

    def note(self, progress: DownloadProgress) -> None:
        """Take how far the child is, and pass it on."""
        now = trio.current_time()
        if self.transfer.bytes_total is None:
            # What an earlier try left was not counted yet, and would look like speed.
            self.samples.clear()
        self.samples.append((now, progress.bytes_done))
        while self.samples[0][0] < now - SPEED_SECONDS:
            self.samples.popleft()
        (began, first), total = self.samples[0], progress.bytes_total
        speed = (progress.bytes_done - first) / (now - began) if now > began else None
        eta = (total - progress.bytes_done) / speed if speed and total is not None else None
        self.transfer = m.Transfer(
            bytes_done=progress.bytes_done,
            bytes_total=total,
            bytes_per_second=None if speed is None else round(max(speed, 0.0), 1),
            eta_seconds=None if eta is None else round(max(eta, 0.0), 1),
        )
        self.tell()

    def tell(self) -> None:
        """Tell all that wait how far it is."""
        for each in self.waiting:
            send_lossy(each.updates, self.transfer)


class Downloader:
    """Downloads by repository, each with those who wait for it."""

    def __init__(
        self,
        mailbox: Mailbox[m.DownloaderMessage],
        loaders: Sequence[Address[m.LoaderMessage]],
        catalog: Catalog,
        checkpoints: Checkpoints,
        *,
        automatic: bool,
        options: DownloadOptions = DEFAULT_OPTIONS,
    ) -> None:
        self._mailbox = mailbox
        self._loaders = loaders
        self._catalog = catalog
        self._checkpoints = checkpoints
        self._automatic = automatic
        self._options = options

    async def run(self, status: Started) -> None:
        """Serve the mailbox until cancelled; then no child is left."""
        self._downloads: dict[_Source, _Download] = {}
        self._deleting: dict[str, trio.Event] = {}
        """By repository: all its revisions go together."""
        self._children = trio.CapacityLimiter(MAX_CHILDREN)
        self._threads = trio.CapacityLimiter(MAX_THREADS)
        await run_in_thread(self._checkpoints.empty_trash, limiter=self._threads)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            status.started()
            while True:
                self._handle(await self._mailbox.receive())

    def _handle(self, message: m.DownloaderMessage) -> None:
        match message:
            case m.EnsureOnDisk():
                self._nursery.start_soon(self._ensure, message)
            case m.StartDownload():
                self._nursery.start_soon(self._start, message)
            case m.DownloadAbandoned():
                for download in self._downloads.values():
                    if not download.wanted():
                        download.scope.cancel()
            case m.GetDownload():
                message.reply.ok(self._state(message.model))
            case m.DeleteModel():
                self._nursery.start_soon(self._delete_and_answer, message)
            case _:
                assert_never(message)

    def _state(self, alias: str) -> m.DownloadState:
        model = self._catalog.get(alias)
        download = None if model is None else self._downloads.get(_source(model))
        if download is None:
            return m.DownloadState()
        return m.DownloadState(
            transfer=None if download.ended.is_set() else download.transfer, failure=download.failure
        )

    # --- downloads ---

    async def _ensure(self, message: m.EnsureOnDisk) -> None:
        try:
            model = self._model(message.model)
            if await self._is_there(model):
                message.reply.ok(None)
                return
            if not self._automatic:
                raise not_downloaded(model)
            download = await self._join(model)
        except ServiceError as error:
            message.reply.fail(error)
            return
        download.waiting.append(message)
        download.tell()
        if not download.wanted():
            # The job has gone meanwhile, and its word came before it was written down here.
            download.scope.cancel()

    async def _start(self, message: m.StartDownload) -> None:
        try:
            model = self._model(message.model)
            if model.remote and not await self._is_there(model):
                (await self._join(model)).asked_for = True
        except ServiceError as error:
            message.reply.fail(error)
            return
        message.reply.ok(None)

    async def _is_there(self, model: Model) -> bool:
        await self._deletion_of(model.repo)
        return await read_in_thread(self._checkpoints.folder, model, limiter=self._threads) is not None

    async def _deletion_of(self, repo: str) -> None:
        while (deleting := self._deleting.get(repo)) is not None:
            await deleting.wait()

    async def _join(self, model: Model) -> _Download:
        """Return the running download of a model's repository; one is begun if there is none."""
        source = _source(model)
        while True:
            await self._deletion_of(model.repo)
            download = self._downloads.get(source)
            if download is not None and download.joinable:
                return download
            if download is None or download.ended.is_set():
                break
            await download.ended.wait()
        download = self._downloads[source] = _Download(model)
        self._nursery.start_soon(self._download, source, download)
        return download

    async def _download(self, source: _Source, download: _Download) -> None:
        model = download.model
        order = DownloadRequest(
            repo=model.repo,
            revision=model.revision,
            cache_dir=str(self._checkpoints.cache_dir),
            licence=model.licence,
            files=model.files,
        )
        error: ServiceError | None = None
        with download.scope:
            try:
                async with self._children:
                    logger.info("downloading %s", model.repo)
                    done = await download_repository(order, self._options, download.note)
                    logger.info("downloaded %s at %s, %.2f GB", model.repo, done.commit[:12], done.bytes_total / 1e9)
            except ServiceError as failed:
                error = failed
            except Exception as defect:
                # After a restart it would meet this model again, and in the end take the whole tree along.
                logger.error("the download of %s: a defect: %s", model.repo, type(defect).__name__)
                logger.debug("the download of %s: a defect", model.repo, exc_info=defect)
                error = InternalError("The service failed on this download; the log has the details")
        download.ended.set()
        if download.scope.cancelled_caught:
            logger.info("the download of %s was stopped; what has arrived is kept", model.repo)
            error = None
        if error is None:
            self._forget(source, download)
        else:
            logger.warning("the download of %s failed: %s", model.repo, error.code)
            download.failure = Failure.from_error(error)
        for each in download.waiting:
            if error is not None:
                each.reply.fail(type(error)(error.message, error.details))
            elif download.scope.cancelled_caught:
                # It came in the moment of the stop, and asks again.
                each.reply.abandon()
            else:
                each.reply.ok(None)

    # --- deleting ---

    async def _delete_and_answer(self, message: m.DeleteModel) -> None:
        try:
            await self._delete(self._model(message.model))
        except ServiceError as error:
            message.reply.fail(error)
        except ActorGone:
            message.reply.fail(ServiceRestarting("The model loader was restarted; try again"))
        else:
            message.reply.ok(None)

    async def _delete(self, model: Model) -> None:
        await self._deletion_of(model.repo)
        # From here on a job that needs it waits until it is gone, and downloads it anew.
        done = self._deleting[model.repo] = trio.Event()
        try:
            await self._delete_alone(model)
        finally:
            del self._deleting[model.repo]
            done.set()

    async def _delete_alone(self, model: Model) -> None:
        await read_in_thread(self._checkpoints.check_deletable, model, limiter=self._threads)
        # Downloads of a model quantized here go on: they are its base's.
        downloads = {} if model.quantization == "runtime" else self._downloads_of(model.repo)
        await self._stop(downloads.values())
        for each in self._checkpoints.sharing_files(model, self._catalog):
            for loader in self._loaders:
                # An engine that dies over it, or has failed, has the model in memory no more either.
                with suppress(EngineDied, ActorSuspended):
                    await loader.ask(m.Evict(model=each.alias))
        try:
            await run_in_thread(self._checkpoints.delete, model, limiter=self._threads)
        except OSError as error:
            raise InternalError(
                f"Model '{model.alias}' cannot be removed ({error.strerror}); check models.cache_dir's permissions",
                {"model": model.alias},
            ) from None
        for source, download in downloads.items():
            self._forget(source, download)
        logger.info("deleted %s", model.alias)

    def _downloads_of(self, repo: str) -> dict[_Source, _Download]:
        return {source: download for source, download in self._downloads.items() if source[0] == repo}

    def _forget(self, source: _Source, download: _Download) -> None:
        """Take a download that has ended off the books, unless another has its place."""
        if self._downloads.get(source) is download:
            del self._downloads[source]

    async def _stop(self, downloads: Iterable[_Download]) -> None:
        """Stop all of these downloads, or none of them."""
        running = [download for download in downloads if not download.ended.is_set()]
        for download in running:
            if any(each.reply.wanted for each in download.waiting):
                raise ModelInUse(
                    f"Model '{download.model.alias}' is being downloaded for a job; cancel the job first",
                    {"model": download.model.alias},
                )
        for download in running:
            download.scope.cancel()
            await download.ended.wait()

    def _model(self, alias: str) -> Model:
        model = self._catalog.get(alias)
        if model is None:
            raise ModelNotFound(f"Model '{alias}' not found", {"model": alias})
        return model


def _source(model: Model) -> _Source:
    return model.repo, model.revision
