"""The client against a real server over a scripted engine: without an event loop, on asyncio and on Trio."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mflux_api.client import AsyncClient, Client, Event, Finished, Progress, ServerUnreachable
from mflux_api.errors import GenerationFailed, InvalidParameter, JobCancelled, JobNotFound, LoraNotFound, NotFound
from mflux_api.jobs.job import Status
from tests.support.harness import REQUEST, request
from tests.support.lora_files import write_lora
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Fail, Hold, Script

KINDS = ("sync", "asyncio", "trio")


@attrs.frozen
class Caller:
    """Calls one method of a client, wherever that client runs."""

    kind: str
    url: str
    retries: int = 3

    async def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self.kind == "sync":

            def call() -> Any:
                with Client(self.url, retries=self.retries) as client:
                    return getattr(client, name)(*arguments, **options)

            return await trio.to_thread.run_sync(call)

        async def acall(client: AsyncClient) -> Any:
            return await getattr(client, name)(*arguments, **options)

        return await self._with_async(acall)

    async def followed(self, job_id: str, **options: Any) -> list[Event]:
        """Return all events of a job."""
        if self.kind == "sync":

            def follow() -> list[Event]:
                with Client(self.url) as client, client.stream(job_id, **options) as events:
                    return list(events)

            return await trio.to_thread.run_sync(follow)

        async def afollow(client: AsyncClient) -> list[Event]:
            async with client.stream(job_id, **options) as events:
                return [event async for event in events]

        events: list[Event] = await self._with_async(afollow)
        return events

    async def _with_async(self, work: Callable[[AsyncClient], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with AsyncClient(self.url, retries=self.retries) as client:
                return await work(client)

        if self.kind == "trio":
            return await main()
        return await trio.to_thread.run_sync(lambda: asyncio.run(main()))


@asynccontextmanager
async def calling(folder: Path, kind: str, script: Script | None = None) -> AsyncIterator[tuple[Api, Caller]]:
    async with scripted_api(folder, script) as api:
        yield api, Caller(kind, f"http://127.0.0.1:{api.port}")


@pytest.mark.parametrize("kind", KINDS)
async def test_client_generates_and_reads_what_became_of_it(tmp_path: Path, kind: str) -> None:
    async with calling(tmp_path, kind) as (api, call):
        job = await call("generate", REQUEST)
        assert (job.status, job.result.seeds, job.prompt, job.seconds is not None) == (
            Status.COMPLETED,
            (5,),
            "a red house",
            True,
        )
        stored = (await api.service.job(job.id)).images[0]
        assert await call("image", job.id) == await trio.Path(stored.path).read_bytes()
        assert (await call("image", job.id, format="jpeg", size=32))[:2] == b"\xff\xd8"
        assert await call("job", job.id) == job
        page = await call("jobs", limit=1, status="completed,failed", q="red house")
        assert [each.id for each in page.jobs] == [job.id]
        assert (await call("jobs", edit=True)).jobs == ()
        with pytest.raises(JobNotFound):
            await call("job", "000000000000")
        with pytest.raises(NotFound):
            await call("job", "../queue")


@pytest.mark.parametrize("kind", KINDS)
async def test_client_follows_a_job_to_its_one_end(tmp_path: Path, kind: str) -> None:
    async with calling(tmp_path, kind) as (_, call):
        submitted = await call("submit", REQUEST)
        *before, last = await call.followed(submitted.job_id)
        assert before
        assert all(isinstance(event, Progress) for event in before)
        assert isinstance(last, Finished)
        assert (last.job.status, last.job.progress) == (Status.COMPLETED, 1.0)
        # The end of a finished job is told again.
        assert (await call.followed(submitted.job_id))[-1] == last


@pytest.mark.parametrize("kind", KINDS)
async def test_refusals_failures_and_cancels_are_classes(tmp_path: Path, kind: str) -> None:
    hold = Hold()
    async with calling(tmp_path, kind, Script(at={"denoising": Fail(), "decoding": hold})) as (_, call):
        with pytest.raises(InvalidParameter) as refused:
            await call("submit", attrs.evolve(REQUEST, width=100))
        assert refused.value.details["field"] == "width"
        with pytest.raises(GenerationFailed):
            await call("generate", REQUEST)
        job_id = (await call("submit", REQUEST)).job_id
        await hold.reached.wait()
        assert (await call("queue")).active.job_id == job_id
        assert await call("cancel", job_id) == "cancelled"
        with pytest.raises(JobCancelled):
            await call("wait", job_id)


@pytest.mark.parametrize("kind", KINDS)
async def test_client_knows_models_loras_and_health(tmp_path: Path, kind: str) -> None:
    async with calling(tmp_path, kind) as (_, call):
        models = {model.title: model for model in await call("models")}
        assert models["demo"].downloaded
        assert (await call("load_model", "demo")).loaded
        assert not (await call("unload_model", "demo")).loaded
        assert (await call("model_status", "demo")).status == "ready"
        write_lora(tmp_path / "mine.safetensors", seed=1)
        added = await call("add_lora", tmp_path / "mine.safetensors", "theirs")
        assert (added.name, added.size_bytes) == ("theirs.safetensors", (tmp_path / "mine.safetensors").stat().st_size)
        assert [each.name for each in (await call("loras")).loras] == ["theirs.safetensors"]
        await call("delete_lora", "theirs")
        with pytest.raises(LoraNotFound):
            await call("delete_lora", "theirs")
        assert (await call("health")).status == "healthy"


@pytest.mark.parametrize("kind", KINDS)
async def test_server_that_is_not_there_is_told_in_the_systems_words(kind: str) -> None:
    call = Caller(kind, "http://127.0.0.1:1", retries=0)
    with pytest.raises(ServerUnreachable) as gone:
        await call("health")
    assert str(gone.value) == "no server answers at http://127.0.0.1:1 (connection refused)"


async def test_program_that_is_cancelled_cancels_its_job(tmp_path: Path) -> None:
    hold = Hold()
    async with (
        calling(tmp_path, "trio", Script(at={"denoising": hold})) as (api, call),
        AsyncClient(call.url) as client,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.generate, REQUEST)
            await hold.reached.wait()
            nursery.cancel_scope.cancel()
        [job] = (await call("jobs")).jobs
        assert job.status is Status.CANCELLED
        assert (await api.service.job(job.id)).status is Status.CANCELLED


async def test_submission_that_is_sent_again_is_one_job(tmp_path: Path) -> None:
    async with calling(tmp_path, "trio") as (_, call):
        first = await call("submit", request(1), idempotency_key="a key")
        assert (await call("submit", request(1), idempotency_key="a key")).job_id == first.job_id
        assert (await call("submit", request(1))).job_id != first.job_id


async def test_follower_that_leaves_in_the_middle_leaves_nothing_open(tmp_path: Path) -> None:
    hold = Hold()
    async with calling(tmp_path, "trio", Script(at={"denoising": hold})) as (_, call), AsyncClient(call.url) as client:
        job_id = (await client.submit(REQUEST)).job_id
        async with client.stream(job_id) as events:
            async for event in events:
                assert isinstance(event, Progress)
                break
        hold.release.set()
        # Its connection is not the one that is used again.
        assert (await client.wait(job_id)).status is Status.COMPLETED
