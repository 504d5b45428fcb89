"""The tools' service behind a URL: a running server, asked over its REST API."""

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import httpx
import msgspec
import trio

from mflux_api.errors import JobNotFound, ServiceError, ServiceRestarting, ShuttingDown, by_code
from mflux_api.images.encode import ImageTarget
from mflux_api.jobs.job import is_job_id
from mflux_api.jobs.progress import Progress
from mflux_api.mcp.backend import JobState, ModelState, Unreachable
from mflux_api.mcp.event_lines import EventTooLong, read_events
from mflux_api.storage.image_files import ImageFiles
from mflux_api.system.network_variables import is_loopback
from mflux_api.system.threads import read_in_thread, run_in_thread

T = TypeVar("T")

MAX_ANSWER_BYTES: Final = 4 * 2**20
"""Of JSON: the table of models has 30 kB."""
MAX_IMAGE_BYTES: Final = 96 * 2**20
"""Of an image: 22 MP without compression are 67 MB."""
PAUSES: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0)
"""Seconds before each try to follow a job again whose server does not answer."""
# A stream says something every 15 s.
_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
_ENDS: Final = frozenset({"complete", "failed", "cancelled"})
_KEY_ERRORS: Final = frozenset({"UNAUTHORIZED", "FORBIDDEN"})


@attrs.frozen(kw_only=True)
class _Result:
    seeds: tuple[int, ...] = ()


@attrs.frozen(kw_only=True)
class _Job:
    """What is read of a job."""

    id: str
    status: str
    model: str
    progress: float
    created_at: datetime
    stage: str | None = None
    position: int | None = None
    eta_seconds: float | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    result: _Result | None = None
    error: str | None = None
    code: str | None = None
    details: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class _Submitted:
    job_id: str


@attrs.frozen(kw_only=True)
class _Config:
    base_arch: str
    supports_guidance: bool


@attrs.frozen(kw_only=True)
class _Model:
    """What is read of a model."""

    title: str
    description: str
    downloaded: bool
    size_gb: float | None
    licence: str
    gated: bool
    default_steps: int
    native_size: tuple[int, int]
    config: _Config


@attrs.frozen(kw_only=True)
class _Models:
    models: tuple[_Model, ...]


@attrs.frozen(kw_only=True)
class _Refusal:
    error: str
    code: str
    details: dict[str, Any] = attrs.field(factory=dict)


class RemoteBackend:
    """A server; see :class:`~mflux_api.mcp.backend.Backend` for the methods."""

    max_images: int | None = None
    """The server says it when there are too many."""

    def __init__(self, client: httpx.AsyncClient, base: str, output_dir: Path) -> None:
        """Take where the server is.

        Args:
            client: sends the requests.
            base: the server's address.
            output_dir: where its images go on this machine.
        """
        self._client = client
        self._base = base
        self._folder = output_dir

    async def submit(self, body: Mapping[str, Any], *, waits: bool) -> str:
        """Queue a job and return its id; a try whose answer was lost is made again, and is the same job."""
        headers = {"Idempotency-Key": secrets.token_hex(16), "Content-Type": "application/json"}
        content = await read_in_thread(_to_json, body)
        try:
            data = await self._ask("POST", "generate", content=content, headers=headers)
        except Unreachable:
            data = await self._ask("POST", "generate", content=content, headers=headers)
        return self._checked(self._read(data, _Submitted).job_id)

    @asynccontextmanager
    async def follow(self, job_id: str) -> AsyncIterator[AsyncIterator[Progress]]:
        """Follow a job: its progress, until its end."""
        async with aclosing(self._follow(_known(job_id))) as events:
            yield events

    async def _follow(self, job_id: str) -> AsyncGenerator[Progress, None]:
        pauses = iter(PAUSES)
        while True:
            ended = False
            # Whatever cuts a stream: a server that is started again goes on with its jobs.
            with suppress(httpx.TransportError, EventTooLong, Unreachable, ShuttingDown, ServiceRestarting):
                async with (
                    self._answer("GET", f"jobs/{job_id}/stream", {"images": "url"}) as response,
                    aclosing(read_events(response.aiter_bytes())) as events,
                ):
                    async for event in events:
                        # The server closes the stream behind the end; one that is left open cannot be used again.
                        ended = ended or event.name in _ENDS
                        if event.name == "progress":
                            pauses = iter(PAUSES)
                            yield self._read(event.data, Progress)
            if ended:
                return
            if (pause := next(pauses, None)) is None:
                raise self._unreachable("it does not answer any more")
            await trio.sleep(pause)

    async def job(self, job_id: str) -> JobState:
        """Return a job as it is now."""
        data = await self._ask("GET", f"jobs/{_known(job_id)}", {"images": "url"})
        job = self._read(data, _Job)
        ended = job.status in ("completed", "failed", "cancelled")
        error = None if job.error is None else by_code(job.code or "")(job.error, job.details)
        seconds = (job.completed_at - job.started_at).total_seconds() if job.completed_at and job.started_at else None
        return JobState(
            id=self._checked(job.id),
            status=job.status,
            model=job.model,
            progress=job.progress,
            created_at=job.created_at,
            stage=job.stage,
            position=job.position,
            eta_seconds=job.eta_seconds,
            seconds=seconds,
            seeds=job.result.seeds if ended and job.result is not None else (),
            error=error,
            warnings=job.warnings,
        )

    async def cancel(self, job_id: str) -> JobState:
        """Cancel a job; a finished one is returned as it is."""
        await self._ask("DELETE", f"jobs/{_known(job_id)}")
        return await self.job(job_id)

    async def file(self, job: JobState, index: int) -> Path:
        """Return where on this machine a finished image's PNG file lies; it is brought here once.

        It has the name that a server gives it: one that shares the folder has written it already.
        """
        files = ImageFiles(self._folder)
        path = files.path(job.id, job.created_at, index)
        if not await read_in_thread(path.is_file):
            data = await self.image(job, index, ImageTarget())
            await run_in_thread(files.put, job.id, job.created_at, index, data)
        return path

    async def image(self, job: JobState, index: int, target: ImageTarget) -> bytes:
        """Return a finished image in a format and size."""
        parameters: dict[str, str] = {"format": target.format}
        if target.side is not None:
            parameters["size"] = str(target.side)
        if target.quality is not None:
            parameters["quality"] = str(target.quality)
        path = f"jobs/{_known(job.id)}/images/{index}"
        return await self._ask("GET", path, parameters, most=MAX_IMAGE_BYTES)

    async def models(self) -> tuple[ModelState, ...]:
        """Return every model of the server's table; which is the default one it does not say."""
        answer = self._read(await self._ask("GET", "models"), _Models)
        return tuple(
            ModelState(
                name=model.title,
                description=model.description,
                kind="upscaler" if model.config.base_arch == "seedvr2" else "generator",
                downloaded=model.downloaded,
                size_gb=model.size_gb,
                licence=model.licence + (" (gated)" if model.gated else ""),
                default_steps=model.default_steps,
                supports_guidance=model.config.supports_guidance,
                native_width=model.native_size[0],
                native_height=model.native_size[1],
            )
            for model in answer.models
        )

    async def _ask(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        most: int = MAX_ANSWER_BYTES,
    ) -> bytes:
        try:
            async with self._answer(method, path, parameters, content=content, headers=headers) as response:
                return await self._body(response, most)
        except httpx.TimeoutException:
            raise self._unreachable("it takes too long") from None
        except (httpx.TransportError, httpx.DecodingError):
            raise self._unreachable("no server answers there") from None

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; the answer is not read yet, and is a success.

        Raises:
            ServiceError: the server refused, in its own words.
            Unreachable: what answers is not this service.
            TransportError: no server answers.
        """
        url = f"{self._base}/api/v1/{path}"
        async with self._client.stream(method, url, params=parameters, content=content, headers=headers) as response:
            if response.status_code != 200:
                raise self._refusal(await self._body(response, MAX_ANSWER_BYTES), response.status_code)
            yield response

    async def _body(self, response: httpx.Response, most: int) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > most:
                raise self._unreachable(f"it answers with more than {most // 2**20} MB")
        return bytes(body)

    def _refusal(self, body: bytes, status: int) -> ServiceError | Unreachable:
        try:
            refused = msgspec.json.decode(body, type=_Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._unreachable(f"what answers there is not an mflux-api server: it says {status}")
        needs = "; set MFLUX_API_KEYS to a key with the scopes 'read' and 'generate'"
        return by_code(refused.code)(refused.error + needs * (refused.code in _KEY_ERRORS), refused.details)

    def _read(self, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._unreachable("what answers there is not an mflux-api server that this version knows") from None

    def _checked(self, job_id: str) -> str:
        """Return a job's id, which becomes a part of paths."""
        if not is_job_id(job_id):
            raise self._unreachable("what answers there is not an mflux-api server that this version knows")
        return job_id

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(f"The server at {self._base} cannot be asked ({why}); check --url, and that it runs")


@asynccontextmanager
async def open_remote(base: str, key: str | None, output_dir: Path) -> AsyncIterator[RemoteBackend]:
    """Ask a server for as long as the block lasts.

    Args:
        base: its address.
        key: an API key of it.
        output_dir: where its images go on this machine.

    Raises:
        ConnectionError: a variable of the environment names a proxy that cannot be used.
    """
    headers = {} if key is None else {"X-API-Key": key}
    try:
        # This very machine is asked through no proxy.
        client = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, trust_env=not is_loopback(base))
    except (ValueError, ImportError, httpx.InvalidURL):
        raise ConnectionError(
            f"the server at {base} cannot be asked: a variable such as HTTPS_PROXY or ALL_PROXY names a proxy that "
            "cannot be used; unset it, or name the server in NO_PROXY"
        ) from None
    async with client:
        yield RemoteBackend(client, base, output_dir)


def _to_json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _known(job_id: str) -> str:
    """Return an id that jobs can have, which becomes a part of a path.

    Raises:
        JobNotFound: no job has such a one.
    """
    if not is_job_id(job_id):
        shown = job_id[:32]
        raise JobNotFound(f"Job '{shown}' not found", {"job_id": shown})
    return job_id
