"""The public face: :func:`open_service`, the :class:`Service` that it hands out, and a job's :class:`Result`."""

import itertools
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Literal, overload

import attrs
import trio

from mflux_api.access.access import SharedAccess
from mflux_api.actors import messages as m
from mflux_api.actors.webhooks.signing import read_signer
from mflux_api.catalog.lookup import find_model
from mflux_api.config import SecuritySettings, Settings
from mflux_api.engine.interface import EngineId, EngineStarter
from mflux_api.errors import JobCancelled, ServiceFailed, ServiceRestarting, ShuttingDown
from mflux_api.gateway.event_stream import EventStream
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.jobs import JobView
from mflux_api.gateway.listings import DownloadView, JobList, LoraView, ModelView
from mflux_api.gateway.models import EngineView
from mflux_api.images.encode import ImageTarget
from mflux_api.jobs.job import Job, Status, StoredImage, Timings
from mflux_api.jobs.parse import validate
from mflux_api.jobs.progress import JobEvent, StreamEvent
from mflux_api.jobs.request import GenerateRequest
from mflux_api.jobs.search import JobFilter, fold
from mflux_api.storage.in_memory import InMemoryRepository
from mflux_api.storage.repository import Repository
from mflux_api.supervisor import ChildSpec, DidNotStop, Ended, Started, Supervisor
from mflux_api.system.threads import read_in_thread
from mflux_api.tree import SupervisionTree, TreeOptions, local_engines

_AS_STORED = ImageTarget()

LEAVE_SECONDS = 1.0
"""At the end of the block: what giving the running jobs back may take; it is a write to the disk for each."""


@attrs.frozen(kw_only=True)
class Result:
    """What a completed job left."""

    job: Job

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """The images on disk, in order."""
        return self.job.images

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image; each can be generated again alone."""
        return tuple(image.seed for image in self.job.images)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what was asked for and was not done; empty as a rule."""
        return self.job.warnings

    @property
    def timings(self) -> Timings:
        """Seconds spent in each part of the engine."""
        return self.job.timings or Timings()


class Service:
    """One running service. Get it from :func:`open_service`; its methods may be called from any task inside."""

    def __init__(self, gateway: Gateway, root: Supervisor, access: SharedAccess) -> None:
        self._gateway = gateway
        self._root = root
        self._fronts = itertools.count(1)
        self._end_by = math.inf
        self._halted = False
        self._access = access
        # Synchronous jobs of this program that it has not heard the end of: retention does not take them.
        self._awaited: set[str] = set()

    @property
    def settings(self) -> Settings:
        """What the service was opened with."""
        return self._gateway.settings

    async def submit(self, request: GenerateRequest, *, synchronous: bool = False) -> Job:
        """Queue a job; when this returns the job is kept.

        Args:
            request: what to generate.
            synchronous: the caller waits for the end: where no engine is left, or the service stops, the job fails at
                once instead of waiting for one, or for the next start. Its record stays until its end was told, by
                :meth:`result`, :meth:`events` or :meth:`cancel`.

        Raises:
            ServiceError: the request is refused; the class says why.
        """
        job = (await self._gateway.submit(validate(request), synchronous=synchronous)).job
        if synchronous:
            self._awaited.add(job.id)
        return job

    async def job(self, job_id: str) -> Job:
        """Return a job as it is now.

        Raises:
            JobNotFound: there is none with that id.
        """
        return (await self._gateway.job(job_id)).job

    async def view(self, job_id: str) -> JobView:
        """Return a job as it is now, with its progress and its place in the queue while it is unfinished.

        Raises:
            JobNotFound: there is none with that id.
        """
        return await self._gateway.job(job_id)

    async def image(self, image: StoredImage, target: ImageTarget = _AS_STORED) -> bytes:
        """Read one of a job's images as a file.

        Args:
            image: one of :attr:`Job.images`.
            target: the format and size; by default the PNG file as it is on disk.

        Raises:
            ImageGone: the file was removed.
            InternalError: it is there and cannot be read.
        """
        return await self._gateway.image_as(image, target)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job; a finished one is returned as it is.

        Raises:
            JobNotFound: there is none with that id.
        """
        job = await self._gateway.cancel(job_id)
        self._end_told(job_id)
        return job

    def _end_told(self, job_id: str) -> None:
        if job_id in self._awaited:
            self._awaited.discard(job_id)
            self._gateway.caller_done(job_id)

    async def jobs(self, *, where: JobFilter | None = None, limit: int = 50, cursor: str | None = None) -> JobList:
        """Return a page of jobs, newest first.

        Args:
            where: conditions that all have to be met; by default there are none.
            limit: how many at most; a search in a long list may find fewer and still have a next page.
            cursor: the ``next_cursor`` of the page before.
        """
        where = where or JobFilter()
        where = attrs.evolve(where, words=tuple(map(fold, where.words)))
        views, following = await self._gateway.search(where, limit=limit, cursor=cursor)
        return JobList(jobs=tuple(view.job for view in views), next_cursor=following)

    @overload
    def events(
        self, job_id: str, *, previews: bool = False, partial_images: Literal[False] = False
    ) -> AbstractAsyncContextManager[AsyncIterator[JobEvent]]: ...

    @overload
    def events(
        self, job_id: str, *, previews: bool = False, partial_images: Literal[True]
    ) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]: ...

    @asynccontextmanager
    async def events(
        self, job_id: str, *, previews: bool = False, partial_images: bool = False
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """Follow a job: an async iterator of :class:`Progress`, and last one :class:`Finished`.

        Args:
            job_id: the job.
            previews: have more of them, whose ``preview`` is a small JPEG of what an image is coming to.
            partial_images: also have a :class:`PartialImage` for each that the request asked for; a follower that is
                behind goes without.

        Raises:
            JobNotFound: there is none with that id.
            ServiceRestarting: while iterating: the stream was cut and the job goes on; follow it again.
        """
        follow = self._gateway.follow(job_id, previews=previews, partial_images=lambda _: partial_images)
        async with await follow as stream:
            yield _Events(stream)
            if stream.ended:
                self._end_told(job_id)

    async def result(self, job_id: str) -> Result:
        """Wait for a job's end and return what it left.

        Raises:
            JobNotFound: there is none with that id.
            JobCancelled: it was cancelled.
            ServiceError: it failed; the class says why.
        """
        job = await self._gateway.finished(job_id)
        self._end_told(job_id)
        if job.status is Status.CANCELLED:
            raise JobCancelled(f"Job '{job.id}' was cancelled", {"job_id": job.id})
        if job.failure is not None:
            raise job.failure.to_error()
        return Result(job=job)

    async def engines(self) -> tuple[EngineView, ...]:
        """Return every engine: its device, its models and its memory."""
        return await self._gateway.engines()

    async def models(self) -> tuple[ModelView, ...]:
        """Return every model that a request can name, and where it lies."""
        return await self._gateway.model_views()

    async def download(self, model: str) -> None:
        """Begin to download a model; nothing to do where it is on disk. :meth:`downloads` says how far it is.

        Raises:
            InvalidModel: no model is called so.
        """
        await self._gateway.download(find_model(model, self._gateway.catalog))

    async def downloads(self) -> tuple[DownloadView, ...]:
        """Return the downloads that go on, and those whose last try failed."""
        return await self._gateway.downloads()

    async def loras(self) -> tuple[LoraView, ...]:
        """Return every LoRA that a request can name, and what it holds."""
        return await self._gateway.lora_views()

    async def unload(self, model: str) -> None:
        """Have a model out of the memory of every engine; nothing to do where it is not.

        Raises:
            ModelNotFound: no model is called so.
            ModelInUse: a job runs on it.
        """
        await self._gateway.unload_model(find_model(model, self._gateway.catalog))

    async def drain(self, *, halt: bool = False) -> None:
        """Take no new work, and wait until nothing runs any more.

        Args:
            halt: stop what runs: asynchronous jobs go back to the queue, synchronous ones fail with ``SHUTTING_DOWN``.
        """
        self._halted = self._halted or halt
        await self._gateway.drain(halt=halt)

    async def leave(self) -> None:
        """Give the running jobs back to the queue, unless they were halted before: an orderly end counts no death.

        :func:`open_service` does it at the end of its block; it takes at most :data:`LEAVE_SECONDS`, also while the
        caller is being cancelled.
        """
        if not self._halted:
            # The tree may have ended, or end meanwhile: then there is nothing to give back.
            with trio.CancelScope(shield=True), trio.move_on_after(LEAVE_SECONDS), suppress(ShuttingDown):
                await self.drain(halt=True)

    def end_by(self, deadline: float) -> None:
        """Say until when, in Trio's time, HTTP answers that are on their way when the service ends may be sent."""
        self._end_by = deadline

    async def reload_keys(self, security: SecuritySettings | None = None) -> int:
        """Read the API keys again, and return how many there are; streams of keys that are gone end.

        Args:
            security: settings that were read again; by default those that the service was opened with.

        Raises:
            ConfigError: they cannot be used; the keys stay as they were.
        """
        access = self._access.current
        return 0 if access is None else await read_in_thread(access.reload, security)

    async def serve_http(
        self,
        binds: Sequence[str] | None = None,
        *,
        task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve the REST API until cancelled; reports the URLs when it listens.

        Args:
            binds: addresses as ``host:port``; port 0 takes a free one. By default those of ``[server]``.
            task_status: gets the URLs, as :meth:`trio.Nursery.start` passes it.

        Raises:
            BindError: an address cannot be listened on.
            ConfigError: ``security.keys_file`` cannot be used.
        """
        # Imported here: an embedding program without HTTP does not pay for the web stack.
        from mflux_api.http.front import HttpFront
        from mflux_api.http.server import open_sockets

        access = await self._access.get()
        server = self.settings.server
        sockets = open_sockets(binds if binds is not None else [_bind(server.host, server.port)])
        front = HttpFront(self._gateway, access, sockets, lambda: self._end_by)
        # Each call has a front of its own: the end of one must not take another's along.
        name = f"{m.HTTP_FRONT} {next(self._fronts)}"
        try:
            urls = await self._root.add(ChildSpec(name=name, run=front.run))
            task_status.started(urls)
            await trio.sleep_forever()
        finally:
            # When the whole tree has ended, this child has ended with it.
            with trio.CancelScope(shield=True), suppress(Ended):
                await self._root.remove(name)
            for socket in sockets:
                socket.close()


def _bind(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


class _Events:
    """A job's events without their place in the log."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    def __aiter__(self) -> "_Events":
        return self

    async def __anext__(self) -> StreamEvent:
        return (await self._stream.__anext__()).event


@asynccontextmanager
async def open_service(
    settings: Settings | None = None,
    *,
    repository: Repository | None = None,
    start_engine: EngineStarter | Mapping[EngineId, EngineStarter] | None = None,
    previews: bool = True,
    on_hung: Callable[[], None] = lambda: None,
) -> AsyncIterator[Service]:
    """Run a service for as long as the block lasts: no sockets, no signals, no global state.

    When the block ends, however it ends, a running job goes back to the queue of its repository, which counts as no
    death. To let it end instead, ``await service.drain()`` first.

    Args:
        settings: by default ``Settings()``, with paths in the working directory.
        repository: where jobs are kept; by default in memory.
        start_engine: starts the engine, or each of several by its id; by default one child process with MLX.
        previews: whether runs make previews for those who ask; they cost the first run of a model a second.
        on_hung: called when a part of the service does not stop in time. Its threads are abandoned and the block ends
            with ``ServiceFailed``; should it wait for something else, only the end of the process ends it.

    Raises:
        ServiceFailed: the supervision tree gave up, or a part of it did not stop. The caller's own exceptions pass
            through as they are.
        ConfigError: webhooks are on and have no secret, or none that can be used.
    """
    if repository is None:
        # Retention bounds it, and says in the log what it drops.
        repository = InMemoryRepository(keep_finished=None)
    settings = settings or Settings()
    engines = _engines(settings, start_engine)
    access = SharedAccess(settings.security, settings.state_dir)
    signer = await read_in_thread(read_signer, settings.webhooks) if settings.webhooks.enabled else None
    options = TreeOptions(
        repository=repository, engines=engines, access=access, signer=signer, previews=previews, on_hung=on_hung
    )
    tree = SupervisionTree(settings, options)
    service = Service(tree.gateway, tree.root, access)
    callers: BaseException | None = None
    failure: ServiceFailed | None = None
    ended = trio.Event()
    status = Started()
    # A cancel from outside reaches the caller's block first: the tree is needed to give the running jobs back.
    tree_scope = trio.CancelScope(shield=True)
    try:
        async with trio.open_nursery() as nursery:

            async def run_tree() -> None:
                nonlocal failure
                try:
                    with tree_scope:
                        await tree.root.run(status)
                except ServiceFailed as error:
                    failure = error
                finally:
                    # Before the caller's block has ended: what it does in a shielded scope may still ask.
                    tree.close()
                    status.event.set()
                    ended.set()
                    nursery.cancel_scope.cancel()

            nursery.start_soon(run_tree, name="supervision tree")
            try:
                await status.event.wait()
                if not ended.is_set():
                    yield service
            except BaseException as error:
                callers = _without(trio.Cancelled, error)
                if callers is None:
                    raise
                # Kept aside so that the nursery does not wrap it in a group.
            finally:
                if status.event.is_set() and not ended.is_set():
                    await service.leave()
                tree_scope.cancel()
                nursery.cancel_scope.cancel()
    except BaseException as error:
        # When the caller is cancelled from outside, so is the nursery; the caller's exception comes first, and what
        # goes on although it was cancelled is told in any case.
        told = callers is not None or isinstance(failure, DidNotStop)
        if not told or _without(trio.Cancelled, error) is not None:
            raise
    if callers is not None:
        if failure is None:
            raise callers
        # What the caller saw of the tree's end is not the caller's own.
        own = _without((ServiceRestarting, ShuttingDown, ServiceFailed), callers)
        if own is not None:
            raise own from failure
    if failure is not None:
        raise failure


def _engines(
    settings: Settings, start_engine: EngineStarter | Mapping[EngineId, EngineStarter] | None
) -> Mapping[EngineId, EngineStarter]:
    if start_engine is None:
        return local_engines(settings)
    return start_engine if isinstance(start_engine, Mapping) else {"0": start_engine}


def _without(
    kinds: type[BaseException] | tuple[type[BaseException], ...], error: BaseException
) -> BaseException | None:
    """Return the error, or what is left of the group, without exceptions of those kinds."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(kinds)[1]
    return None if isinstance(error, kinds) else error
