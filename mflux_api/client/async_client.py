"""The client of programs on asyncio or Trio: the methods of :class:`Client`, to be awaited."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import anyio
import httpx

from mflux_api.client import answers as a
from mflux_api.client import calls
from mflux_api.client.calls import Call
from mflux_api.client.errors import ServerUnreachable, UnexpectedAnswer
from mflux_api.client.following import Following
from mflux_api.client.transport import CANCEL_SECONDS, CHUNK_BYTES, RETRYABLE, Connection, new_key, stream_request
from mflux_api.jobs.request import GenerateRequest

T = TypeVar("T")


class AsyncClient:
    """A running server; use it as a context manager, or call :meth:`aclose`.

    Every method raises the :class:`mflux_api.ServiceError` with which the server refuses, :class:`ServerUnreachable`
    where none answers, and :class:`UnexpectedAnswer` where something else does.
    """

    def __init__(self, url: str = "http://localhost:7861", *, api_key: str | None = None, retries: int = 3) -> None:
        """Connect to nothing yet.

        Args:
            url: the server's address, as ``http://host:port``, with its path prefix where it has one.
            api_key: a key, where the server has keys.
            retries: how often, at most 3, a call is sent again that may be sent twice, where no whole answer came
                from a server that was there.

        Raises:
            ValueError: the address or the key cannot be one.
            ServerUnreachable: a variable of the environment names a proxy that cannot be used.
        """
        self._connection = Connection(url, api_key, retries=retries)
        self._http = httpx.AsyncClient(**self._connection.options())

    @property
    def url(self) -> str:
        """The server's address."""
        return self._connection.base

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    # --- jobs ------------------------------------------------------------------------------------------------------

    async def submit(self, request: GenerateRequest, *, idempotency_key: str | None = None) -> a.Submitted:
        """Queue a job; when this returns, the server keeps it.

        Args:
            request: what to generate.
            idempotency_key: with the same one this is the same job; by default a fresh one.
        """
        return await self.send(calls.submit(request, idempotency_key or new_key()))

    async def generate(self, request: GenerateRequest) -> a.Job:
        """Queue a job, wait for its end and return it; one that is not waited for any more is cancelled.

        Raises:
            ServiceError: it was refused, failed or was cancelled; the class says why.
        """
        job_id = (await self.submit(request)).job_id
        try:
            return await self.wait(job_id)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True), anyio.move_on_after(CANCEL_SECONDS), suppress(Exception):
                await self.cancel(job_id)
            raise

    async def wait(self, job_id: str) -> a.Job:
        """Wait for a job's end and return it.

        Raises:
            ServiceError: it failed or was cancelled; the class says why.
        """
        async with self.stream(job_id) as events:
            async for event in events:
                if isinstance(event, a.Finished):
                    return a.succeeded(event.job)
        return a.succeeded(await self.job(job_id))

    async def job(self, job_id: str) -> a.Job:
        """Return a job as it is now."""
        return await self.send(calls.job(job_id))

    async def jobs(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        status: str | None = None,
        q: str | None = None,
        model: str | None = None,
        lora: str | None = None,
        edit: bool | None = None,
    ) -> a.JobPage:
        """Return a page of the jobs that meet every condition, newest first.

        Args:
            limit: how many.
            cursor: the ``next_cursor`` of the page before.
            status: one, or several separated by commas.
            q: words that all stand in the prompt.
            model: an alias.
            lora: the name of one.
            edit: whether they are made from an image.
        """
        call = calls.jobs(limit=limit, cursor=cursor, status=status, q=q, model=model, lora=lora, edit=edit)
        return await self.send(call)

    async def cancel(self, job_id: str) -> str:
        """Cancel a job and return its status; a finished one keeps its own."""
        return str((await self.send(calls.cancel(job_id)))["status"])

    async def cancel_all(self) -> a.BulkCancel:
        """Cancel the jobs that are not finished, as many as one call does; ask again where there are more."""
        return await self.send(calls.cancel_all())

    async def image(
        self,
        job_id: str,
        index: int = 0,
        *,
        format: str | None = None,  # noqa: A002
        size: int | None = None,
    ) -> bytes:
        """Return one image of a job as a file.

        Args:
            job_id: the job.
            index: which, from 0.
            format: ``png``, ``jpeg`` or ``webp``; by default PNG, as it is stored.
            size: of the longer side, for a thumbnail.
        """
        return await self.send(calls.image(job_id, index, format=format, size=size))

    @asynccontextmanager
    async def stream(self, job_id: str, *, previews: bool = False) -> AsyncIterator[AsyncIterator[a.Event]]:
        """Follow a job: :class:`Progress` events, each :class:`PartialImage` of it, and last one :class:`Finished`.

        A connection that is cut is made again, and goes on where it was.

        Args:
            job_id: the job.
            previews: whether events may carry a small JPEG of what an image is coming to.
        """
        events = self._follow(Following(self._connection.base, job_id, previews=previews))
        try:
            # The first one says how the job is now: who has entered the block misses nothing.
            yield _Events(await anext(events, None), events)
        finally:
            await events.aclose()

    async def _follow(self, following: Following) -> AsyncGenerator[a.Event, None]:
        while True:
            error: Exception = ServerUnreachable(self._connection.base, None)
            try:
                async with aclosing(self._connection_of(following)) as events:
                    async for event in events:
                        yield event
            except RETRYABLE as failed:
                error = failed
            if following.ended:
                return
            if not self._connection.may_come_back(error) or (pause := following.pause()) is None:
                raise error
            await anyio.sleep(pause)

    async def _connection_of(self, following: Following) -> AsyncGenerator[a.Event, None]:
        request = stream_request(following.job_id, following.params(), following.headers())
        with self._connection.explained():
            async with self._http.stream(**request) as response:
                self._connection.reached = True
                if response.status_code == 204:
                    following.ended = True
                elif response.status_code != 200:
                    raise calls.refusal(self._connection.base, response.status_code, await response.aread())
                async with _chunks_of(response) as chunks:
                    async for chunk in chunks:
                        for event in following.feed(chunk):
                            yield event
                        if following.ended:
                            return

    # --- models, LoRAs, the server ---------------------------------------------------------------------------------

    async def models(self) -> tuple[a.ModelInfo, ...]:
        """Return every model that a request can name."""
        return (await self.send(calls.models())).models

    async def model_status(self, model: str) -> a.ModelStatus:
        """Say where a model is, and how far its download."""
        return await self.send(calls.model_status(model))

    async def download_model(self, model: str) -> a.ModelStatus:
        """Begin to download a model; answers at once."""
        return await self.send(calls.model_action(model, "download"))

    async def load_model(self, model: str) -> a.ModelStatus:
        """Bring a model into memory; answers when it is there."""
        return await self.send(calls.model_action(model, "load"))

    async def unload_model(self, model: str) -> a.ModelStatus:
        """Remove a model from memory."""
        return await self.send(calls.model_action(model, "unload"))

    async def delete_model(self, model: str) -> a.ModelStatus:
        """Remove from the server's disk what it downloaded or quantized."""
        return await self.send(calls.delete_model(model))

    async def loras(self) -> a.LoraList:
        """Return the LoRAs that a request can name, and what is left out."""
        return await self.send(calls.loras())

    async def add_lora(self, file: Path, name: str | None = None, *, overwrite: bool = False) -> a.Lora:
        """Upload a LoRA.

        Args:
            file: a ``.safetensors`` file.
            name: what it is called there; by default as the file.
            overwrite: whether one of that name is replaced.

        Raises:
            OSError: the file cannot be read.
        """
        async with await anyio.open_file(file, "rb") as opened:

            async def read() -> AsyncIterator[bytes]:
                while chunk := await opened.read(CHUNK_BYTES):
                    yield chunk

            return await self.send(calls.add_lora(name or file.stem, overwrite=overwrite), content=read())

    async def delete_lora(self, name: str) -> None:
        """Remove a LoRA's file from the server's disk."""
        await self.send(calls.delete_lora(name))

    async def queue(self) -> a.Queue:
        """Return what runs and what waits."""
        return await self.send(calls.queue())

    async def health(self) -> a.Health:
        """Return how the server is."""
        return await self.send(calls.health())

    async def send(self, call: Call[T], *, content: AsyncIterator[bytes] | None = None) -> T:
        """Send a call and return its answer; what may be sent twice is tried again."""
        pauses = self._connection.pauses(call)
        while True:
            try:
                return await self._send(call, content)
            except RETRYABLE as error:
                if not self._connection.may_come_back(error) or (pause := next(pauses, None)) is None:
                    raise
                await anyio.sleep(pause)

    async def _send(self, call: Call[T], content: AsyncIterator[bytes] | None) -> T:
        request: Mapping[str, Any] = self._connection.request(call)
        with self._connection.explained():
            response = await self._http.request(**request, content=content)
        self._connection.reached = True
        if response.is_redirect:
            raise UnexpectedAnswer(self._connection.base, response.status_code)
        return call.read(self._connection.base, response.status_code, response.content)


class _Events:
    """Events, of which the first has come already; not a generator, which would have to be closed."""

    def __init__(self, first: a.Event | None, others: AsyncIterator[a.Event]) -> None:
        self._first = first
        self._others = others

    def __aiter__(self) -> "_Events":
        return self

    async def __anext__(self) -> a.Event:
        first, self._first = self._first, None
        return await anext(self._others) if first is None else first


@asynccontextmanager
async def _chunks_of(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """Iterate over a body; httpx leaves generators suspended where a reader leaves early, which Trio warns of."""
    chunks = response.aiter_bytes()
    try:
        yield chunks
    finally:
        try:
            await response.aclose()
        finally:
            # It is closed: whatever they waited for ends them.
            with suppress(httpx.HTTPError, httpx.StreamError):
                await anext(chunks, None)
