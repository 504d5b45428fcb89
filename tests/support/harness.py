"""A generator alone, and a whole service, over scripted engines."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import attrs
import trio

from mflux_api.actors import messages as m
from mflux_api.actors.engine_disk import EngineDisk
from mflux_api.actors.generator.generator import Generator
from mflux_api.actors.generator.options import GeneratorOptions
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.config import GenerationSettings, JobSettings, LoraSettings, ModelSettings, SchedulerSettings, Settings
from mflux_api.engine.interface import Received
from mflux_api.engine.protocol import LoadModel, Ready, Run
from mflux_api.gateway.gateway import Gateway
from mflux_api.jobs.job import Job, StoredImage, Timings
from mflux_api.jobs.progress import Finished, Progress, StreamEvent
from mflux_api.jobs.request import GenerateRequest
from mflux_api.jobs.resolve import ResolvedRequest
from mflux_api.service import Service, open_service
from mflux_api.storage.checkpoints import EMBEDDED
from mflux_api.storage.lora_folders import LoraFile
from mflux_api.supervisor import Started
from tests.support.requests import resolved_request
from tests.support.scripted_engine import Script

DEADLINE_SECONDS = 15.0
"""Deadline of what is expected to happen at once."""

REQUEST = GenerateRequest(prompt="a red house", model="demo", seed=5, width=64, height=64, steps=2, guidance=1.0)
RESOLVED = resolved_request(prompt="a red house", seed=5, steps=2)
"""What a job on :data:`REQUEST` runs."""


@attrs.define
class Bench:
    """A running generator and what a test says to it."""

    script: Script
    mailbox: Mailbox[m.GeneratorMessage]
    loader: Mailbox[m.LoaderMessage]
    events: list[Received] = attrs.field(factory=list)
    runs: int = 0
    _told: list[bool] = attrs.field(factory=list)

    @property
    def to(self) -> Address[m.GeneratorMessage]:
        return Address(self.mailbox, sender=m.SCHEDULER, asks=m.ASK_GRAPH)

    async def up(self) -> None:
        """Wait for a child, also where the engine is degraded meanwhile."""

        async def is_up() -> bool:
            return (await self.state()).info is not None

        await eventually(is_up)

    async def load(self) -> m.Resident:
        return await self.to.ask(m.LoadModel(command=LoadModel(model="demo", path=str(EMBEDDED))))

    async def lease(self) -> m.Lease:
        resident = await self.load()
        return m.Lease(id=1, engine=resident.engine, incarnation=resident.incarnation, model="demo", load_seconds=0.5)

    async def generate(
        self, lease: m.Lease | None = None, request: ResolvedRequest = RESOLVED, *, previews: bool = False
    ) -> Timings:
        """Generate, following the events; the message's run id is ``self.runs``."""
        lease = lease or await self.lease()
        send, receive = trio.open_memory_channel[Received](10_000)
        self.runs += 1
        self.events.clear()
        try:
            return await self.to.ask(
                m.Run(lease=lease, request=request, run_id=self.runs, events=send, previews=previews)
            )
        finally:
            while True:
                try:
                    self.events.append(receive.receive_nowait())
                except (trio.WouldBlock, trio.EndOfChannel):
                    break

    async def state(self) -> m.EngineState:
        return await self.to.ask(m.GetEngine())

    def reported(self) -> list[bool]:
        """Whether the loader was told that the engine is degraded, at each change since the last call."""
        told, self._told = self._told, []
        return told

    async def listen(self) -> NoReturn:
        """Take what the loader is told."""
        while True:
            message = await self.loader.receive()
            assert isinstance(message, m.GeneratorChanged)
            degraded = message.state.degraded
            self._told.append(degraded)


DEFAULT_OPTIONS = GeneratorOptions()


async def _nothing(*_: object) -> None:
    return None


async def _no_loras(names: tuple[str, ...]) -> tuple[LoraFile, ...]:
    return ()


NO_DISK = EngineDisk(locate=_nothing, measure=_nothing, quantized=lambda model: None, locate_loras=_no_loras)


@asynccontextmanager
async def generator(script: Script, options: GeneratorOptions = DEFAULT_OPTIONS) -> AsyncIterator[Bench]:
    """Run a generator for as long as the block lasts; then no engine is left."""
    mailbox: Mailbox[m.GeneratorMessage] = Mailbox(m.GENERATOR)
    loader: Mailbox[m.LoaderMessage] = Mailbox(m.MODEL_LOADER)
    to_loader = Address(loader, sender=m.GENERATOR, asks=m.ASK_GRAPH)
    to_stats: Address[m.StatsMessage] = Address(Mailbox(m.STATS), sender=m.GENERATOR, asks=m.ASK_GRAPH)
    bench = Bench(script, mailbox, loader)
    actor = Generator("0", mailbox, script.start, options, to_loader, to_stats, NO_DISK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(actor.run, Started())
        nursery.start_soon(bench.listen)
        yield bench
        nursery.cancel_scope.cancel()
    assert script.alive == 0


def request(seed: int = 5, *, num_images: int = 1, prompt: str = "a red house") -> GenerateRequest:
    """A small job."""
    return attrs.evolve(REQUEST, seed=seed, num_images=num_images, prompt=prompt)


def settings(folder: Path, *, keep: int = 1000, delete_images: bool = False, **scheduler: float) -> Settings:
    """Settings with every path below a folder."""
    return Settings(
        models=ModelSettings(cache_dir=folder / "models"),
        generation=GenerationSettings(output_dir=folder / "output"),
        jobs=JobSettings(keep_completed=keep, delete_images=delete_images),
        lora=LoraSettings(dirs=(folder / "loras",)),
        scheduler=attrs.evolve(SchedulerSettings(), **scheduler),  # type: ignore[arg-type]
    )


@asynccontextmanager
async def scripted_service(
    folder: Path, script: Script, *, keep: int = 1000, delete_images: bool = False, **scheduler: float
) -> AsyncIterator[Service]:
    """A service over scripted engines in real time; when the block ends nothing of it is left."""
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(DEADLINE_SECONDS):
        options = settings(folder, keep=keep, delete_images=delete_images, **scheduler)
        async with open_service(options, start_engine=script.start) as service:
            yield service
    assert script.alive == 0
    assert trio.lowlevel.current_statistics().tasks_living == before


async def run_inline(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    """Stand in for ``trio.to_thread.run_sync`` where time is virtual: it would pass while a thread works."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


@asynccontextmanager
async def service_of(folder: Path, scripts: Mapping[str, Script]) -> AsyncIterator[Service]:
    """A service over several scripted engines by their ids; when the block ends nothing of it is left."""
    starters = {engine: script.start for engine, script in scripts.items()}
    async with open_service(settings(folder), start_engine=starters) as service:
        yield service
    assert [script.alive for script in scripts.values()] == [0] * len(scripts)


async def condition_of(service: Service, engine: str = "0") -> m.EngineCondition:
    """How an engine is doing, as the gateway tells it."""
    (view,) = [each for each in await gateway(service).engines() if each.status.id == engine]
    return view.status.condition


async def engine_info(service: Service) -> Ready | None:
    """What the first engine's child said of itself; ``None`` while none is up."""
    state = (await gateway(service).engines())[0].state
    return None if state is None else state.info


async def model_in_memory(of: Gateway) -> str | None:
    """The model that the first engine used last."""
    return next(iter((await of.engines())[0].models), None)


def gateway(service: Service) -> Gateway:
    """What the HTTP routes of a service use."""
    return service._gateway


async def ended(service: Service, job_id: str) -> Job:
    """Follow a job to its end; every rule about its events is checked on the way."""
    async with service.events(job_id) as stream:
        return checked([event async for event in stream])


def checked(events: Sequence[StreamEvent]) -> Job:
    """The job in the last event, after a look at all of them."""
    *progress, last = events
    assert isinstance(last, Finished)
    assert last.job.status.terminal
    values = []
    for event in progress:
        assert isinstance(event, Progress)
        assert not event.status.terminal or event.progress == last.job.progress
        values.append(event.progress)
    assert values == sorted(values)
    assert all(0.0 <= value <= 1.0 for value in values)
    return last.job


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until something that is not announced has come about."""
    while True:
        value = condition()
        if value if isinstance(value, bool) else await value:
            return
        await trio.sleep(0.01)


async def settled(service: Service, jobs: int) -> bool:
    """Whether there are that many jobs and all are finished."""
    views, _ = await gateway(service).jobs()
    return len(views) == jobs and all(view.job.status.terminal for view in views)


def rgb(image: StoredImage) -> bytes:
    """The pixels of an image on disk."""
    from PIL import Image

    with Image.open(image.path) as rgb_image:
        return rgb_image.tobytes()


def runs(script: Script) -> list[tuple[Run, tuple[bytes, ...]]]:
    """Every run that an engine was given, in order, with its blobs."""
    return [
        (command, blobs)
        for engine in script.engines
        for command, blobs in zip(engine.received, engine.blobs, strict=True)
        if isinstance(command, Run)
    ]


def loads_of(script: Script) -> int:
    """How often an engine was told to load a model."""
    return sum(isinstance(command, LoadModel) for engine in script.engines for command in engine.received)


def seeds_run(script: Script) -> list[int]:
    """The first seed of every run that an engine was given, in order."""
    return [run.seeds[0] for run, _ in runs(script)]


def images(folder: Path) -> list[str]:
    """Every file below the output folder."""
    return sorted(path.name for path in (folder / "output").rglob("*") if path.is_file())
