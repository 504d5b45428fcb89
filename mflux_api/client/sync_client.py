"""The client of programs without an event loop."""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from mflux_api.client import answers as a
from mflux_api.client import calls
from mflux_api.client.calls import Call
from mflux_api.client.errors import ServerUnreachable, UnexpectedAnswer
from mflux_api.client.following import Following
from mflux_api.client.transport import CHUNK_BYTES, RETRYABLE, Connection, new_key, stream_request
from mflux_api.jobs.request import GenerateRequest

T = TypeVar("T")


class Client:
    """A running server; use it as a context manager, or call :meth:`close`.

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
        self._http = httpx.Client(**self._connection.options())

    @property
    def url(self) -> str:
        """The server's address."""
        return self._connection.base

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    # --- jobs ------------------------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest, *, idempotency_key: str | None = None) -> a.Submitted:
        """Queue a job; when this returns, the server keeps it.

        Args:
            request: what to generate.
            idempotency_key: with the same one this is the same job; by default a fresh one.
        """
        return self.send(calls.submit(request, idempotency_key or new_key()))

    def generate(self, request: GenerateRequest) -> a.Job:
        """Queue a job, wait for its end and return it; one that is not waited for any more is cancelled.

        Raises:
            ServiceError: it was refused, failed or was cancelled; the class says why.
        """
        job_id = self.submit(request).job_id
        try:
            return self.wait(job_id)
        except (KeyboardInterrupt, SystemExit):
            with suppress(Exception):
                self.cancel(job_id)
            raise

    def wait(self, job_id: str) -> a.Job:
        """Wait for a job's end and return it.

        Raises:
            ServiceError: it failed or was cancelled; the class says why.
        """
        with self.stream(job_id) as events:
            for event in events:
                if isinstance(event, a.Finished):
                    return a.succeeded(event.job)
        return a.succeeded(self.job(job_id))

    def job(self, job_id: str) -> a.Job:
        """Return a job as it is now."""
        return self.send(calls.job(job_id))

    def jobs(
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
        return self.send(call)

    def cancel(self, job_id: str) -> str:
        """Cancel a job and return its status; a finished one keeps its own."""
        return str(self.send(calls.cancel(job_id))["status"])

    def cancel_all(self) -> a.BulkCancel:
        """Cancel the jobs that are not finished, as many as one call does; ask again where there are more."""
        return self.send(calls.cancel_all())

    def image(
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
        return self.send(calls.image(job_id, index, format=format, size=size))

    @contextmanager
    def stream(self, job_id: str, *, previews: bool = False) -> Iterator[Iterator[a.Event]]:
        """Follow a job: :class:`Progress` events, each :class:`PartialImage` of it, and last one :class:`Finished`.

        A connection that is cut is made again, and goes on where it was.

        Args:
            job_id: the job.
            previews: whether events may carry a small JPEG of what an image is coming to.
        """
        events = self._follow(Following(self._connection.base, job_id, previews=previews))
        try:
            # The first one says how the job is now: who has entered the block misses nothing.
            first = [event for event in [next(events, None)] if event is not None]
            yield chain(first, events)
        finally:
            events.close()

    def _follow(self, following: Following) -> Generator[a.Event, None, None]:
        while True:
            error: Exception = ServerUnreachable(self._connection.base, None)
            try:
                yield from self._connection_of(following)
            except RETRYABLE as failed:
                error = failed
            if following.ended:
                return
            if not self._connection.may_come_back(error) or (pause := following.pause()) is None:
                raise error
            time.sleep(pause)

    def _connection_of(self, following: Following) -> Iterator[a.Event]:
        request = stream_request(following.job_id, following.params(), following.headers())
        with self._connection.explained(), self._http.stream(**request) as response:
            self._connection.reached = True
            if response.status_code == 204:
                following.ended = True
            elif response.status_code != 200:
                raise calls.refusal(self._connection.base, response.status_code, response.read())
            for chunk in response.iter_bytes():
                yield from following.feed(chunk)
                if following.ended:
                    return

    # --- models, LoRAs, the server ---------------------------------------------------------------------------------

    def models(self) -> tuple[a.ModelInfo, ...]:
        """Return every model that a request can name."""
        return self.send(calls.models()).models

    def model_status(self, model: str) -> a.ModelStatus:
        """Say where a model is, and how far its download."""
        return self.send(calls.model_status(model))

    def download_model(self, model: str) -> a.ModelStatus:
        """Begin to download a model; answers at once."""
        return self.send(calls.model_action(model, "download"))

    def load_model(self, model: str) -> a.ModelStatus:
        """Bring a model into memory; answers when it is there."""
        return self.send(calls.model_action(model, "load"))

    def unload_model(self, model: str) -> a.ModelStatus:
        """Remove a model from memory."""
        return self.send(calls.model_action(model, "unload"))

    def delete_model(self, model: str) -> a.ModelStatus:
        """Remove from the server's disk what it downloaded or quantized."""
        return self.send(calls.delete_model(model))

    def loras(self) -> a.LoraList:
        """Return the LoRAs that a request can name, and what is left out."""
        return self.send(calls.loras())

    def add_lora(self, file: Path, name: str | None = None, *, overwrite: bool = False) -> a.Lora:
        """Upload a LoRA.

        Args:
            file: a ``.safetensors`` file.
            name: what it is called there; by default as the file.
            overwrite: whether one of that name is replaced.

        Raises:
            OSError: the file cannot be read.
        """
        with file.open("rb") as opened:
            chunks = iter(lambda: opened.read(CHUNK_BYTES), b"")
            return self.send(calls.add_lora(name or file.stem, overwrite=overwrite), content=chunks)

    def delete_lora(self, name: str) -> None:
        """Remove a LoRA's file from the server's disk."""
        self.send(calls.delete_lora(name))

    def queue(self) -> a.Queue:
        """Return what runs and what waits."""
        return self.send(calls.queue())

    def health(self) -> a.Health:
        """Return how the server is."""
        return self.send(calls.health())

    def send(self, call: Call[T], *, content: Iterator[bytes] | None = None) -> T:
        """Send a call and return its answer; what may be sent twice is tried again."""
        pauses = self._connection.pauses(call)
        while True:
            try:
                return self._send(call, content)
            except RETRYABLE as error:
                if not self._connection.may_come_back(error) or (pause := next(pauses, None)) is None:
                    raise
                time.sleep(pause)

    def _send(self, call: Call[T], content: Iterator[bytes] | None) -> T:
        request: Mapping[str, Any] = self._connection.request(call)
        with self._connection.explained():
            response = self._http.request(**request, content=content)
        self._connection.reached = True
        if response.is_redirect:
            raise UnexpectedAnswer(self._connection.base, response.status_code)
        return call.read(self._connection.base, response.status_code, response.content)
