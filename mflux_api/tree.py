"""The composition root: every mailbox, actor and supervisor of one service; the one place that knows them all.

::

    root            one_for_one
    ├── engines     one_for_one; an engine that gives up is not counted, and starts again after 1, 2, 4 … 60 s
    │   └── engine 0    one_for_all: generator, model_loader
    ├── core        rest_for_one: job_store, event_hub, scheduler
    ├── downloader
    ├── decoder
    ├── stats
    ├── webhooks    where webhooks.enabled
    └── http_front  added by Service.serve_http
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import attrs
import trio

from mflux_api.access.access import SharedAccess
from mflux_api.actors import messages as m
from mflux_api.actors.decoder import Decoder
from mflux_api.actors.decoding import Decoding
from mflux_api.actors.downloader import Downloader
from mflux_api.actors.engine_addresses import EngineAddresses
from mflux_api.actors.engine_disk import local_disk
from mflux_api.actors.event_hub import EventHub
from mflux_api.actors.generator.generator import Generator
from mflux_api.actors.generator.oom_evidence import OOMEvidence
from mflux_api.actors.generator.options import GeneratorOptions
from mflux_api.actors.generator.quarantine import Quarantine
from mflux_api.actors.job_store import JobStore
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.actors.model_loader.model_loader import ModelLoader
from mflux_api.actors.scheduler.job_runner import JobRunner
from mflux_api.actors.scheduler.model_on_disk import ModelOnDisk
from mflux_api.actors.scheduler.scheduler import Scheduler
from mflux_api.actors.stats import Stats
from mflux_api.actors.webhooks.signing import Signer
from mflux_api.actors.webhooks.webhooks import Webhooks
from mflux_api.config import Settings
from mflux_api.engine.interface import EngineId, EngineStarter
from mflux_api.engine.local import LocalEngine, LocalEngineOptions
from mflux_api.errors import ServiceFailed
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.questions import Addresses
from mflux_api.hub.client import DownloadOptions
from mflux_api.images.child.client import DecoderOptions
from mflux_api.jobs.memory_advice import MemoryAdvice
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.storage.image_files import ImageFiles
from mflux_api.storage.loras import LoraFiles
from mflux_api.storage.repository import Repository
from mflux_api.storage.retention import Retention
from mflux_api.supervisor import ChildSpec, Isolation, Started, Strategy, Supervisor

M = TypeVar("M")

ENCODER_THREADS = 2


@attrs.frozen(kw_only=True)
class TreeOptions:
    """What a service is built with besides its settings."""

    repository: Repository
    engines: Mapping[EngineId, EngineStarter]
    """How to start the child of each engine."""
    access: SharedAccess
    """The keys: whose images a webhook's URLs open."""
    signer: Signer | None = None
    """What webhooks are signed with; ``None`` where they are off."""
    previews: bool = True
    on_hung: Callable[[], None] = lambda: None
    """Called when a part of the service does not stop; ending the process may be all that is left."""


class SupervisionTree:
    """One service: build it, run ``root``, and close it."""

    def __init__(self, settings: Settings, options: TreeOptions) -> None:
        self._boxes = _Mailboxes(options.engines, webhooks=options.signer is not None)
        actors = _Actors(settings, options, self._boxes)
        self.root = _supervisors(self._boxes, actors, options.on_hung)
        self.gateway = Gateway(self._boxes.gateway_addresses(), settings, actors.catalog, actors.checkpoints)

    def close(self) -> None:
        """Answer everyone who still waits for an actor, or asks one from now on: it will not come back."""
        for mailbox in self._boxes.all():
            mailbox.close()


def local_engines(settings: Settings) -> Mapping[EngineId, EngineStarter]:
    """Return the engines of this machine: one child process with MLX."""
    options = LocalEngineOptions(
        start_timeout=settings.engine.start_timeout_seconds,
        heartbeat_timeout=settings.engine.heartbeat_seconds,
        devices=settings.engine.devices,
        fast_path=settings.engine.fast_path,
        kernels=settings.kernels_dir,
        home=settings.child_home,
    )
    return {"0": partial(LocalEngine.start, options=options)}


# --- first: mailboxes, which outlive their actors ---


class _EngineMailboxes:
    def __init__(self, engine: EngineId) -> None:
        self.generator: Mailbox[m.GeneratorMessage] = Mailbox(f"{m.GENERATOR} {engine}", role=m.GENERATOR)
        self.loader: Mailbox[m.LoaderMessage] = Mailbox(f"{m.MODEL_LOADER} {engine}", role=m.MODEL_LOADER)

    def addresses(self, sender: str) -> EngineAddresses:
        return EngineAddresses(loader=_address(self.loader, sender), generator=_address(self.generator, sender))


class _Mailboxes:
    def __init__(self, engines: Sequence[EngineId] | Mapping[EngineId, object], *, webhooks: bool = False) -> None:
        self.store: Mailbox[m.StoreMessage] = Mailbox(m.JOB_STORE)
        self.hub: Mailbox[m.HubMessage] = Mailbox(m.EVENT_HUB, work_capacity=1024)
        self.scheduler: Mailbox[m.SchedulerMessage] = Mailbox(m.SCHEDULER)
        self.downloader: Mailbox[m.DownloaderMessage] = Mailbox(m.DOWNLOADER)
        self.decoder: Mailbox[m.DecoderMessage] = Mailbox(m.DECODER)
        self.stats: Mailbox[m.StatsMessage] = Mailbox(m.STATS, work_capacity=1024)
        self.webhooks: Mailbox[m.WebhooksMessage] | None = Mailbox(m.WEBHOOKS) if webhooks else None
        self.engines = {engine: _EngineMailboxes(engine) for engine in engines}

    def all(self) -> list[Mailbox[Any]]:
        own: list[Mailbox[Any]] = [
            self.store,
            self.hub,
            self.scheduler,
            self.downloader,
            self.decoder,
            self.stats,
            *(() if self.webhooks is None else (self.webhooks,)),
        ]
        return own + [box for engine in self.engines.values() for box in (engine.generator, engine.loader)]

    def engine_addresses(self, sender: str) -> dict[EngineId, EngineAddresses]:
        return {engine: boxes.addresses(sender) for engine, boxes in self.engines.items()}

    def loaders(self, sender: str) -> dict[EngineId, Address[m.LoaderMessage]]:
        return {engine: _address(boxes.loader, sender) for engine, boxes in self.engines.items()}

    def webhooks_address(self, sender: str) -> Address[m.WebhooksMessage] | None:
        return None if self.webhooks is None else _address(self.webhooks, sender)

    def gateway_addresses(self) -> Addresses:
        return Addresses(
            scheduler=_address(self.scheduler, m.GATEWAY),
            store=_address(self.store, m.GATEWAY),
            hub=_address(self.hub, m.GATEWAY),
            downloader=_address(self.downloader, m.GATEWAY),
            decoder=_address(self.decoder, m.GATEWAY),
            stats=_address(self.stats, m.GATEWAY),
            webhooks=self.webhooks_address(m.GATEWAY),
            engines=self.engine_addresses(m.GATEWAY),
        )


def _address(mailbox: Mailbox[M], sender: str) -> Address[M]:
    return Address(mailbox, sender=sender, asks=m.ASK_GRAPH)


# --- second: actors, which know one another by address only ---


@attrs.frozen
class _EngineActors:
    generator: Generator
    loader: ModelLoader


class _Actors:
    def __init__(self, settings: Settings, options: TreeOptions, boxes: _Mailboxes) -> None:
        self.catalog = settings.catalog()
        self.checkpoints = Checkpoints(settings.models.cache_dir)
        files = ImageFiles(settings.generation.output_dir, metadata=settings.generation.metadata)
        self.store = JobStore(
            boxes.store, options.repository, Retention.from_settings(settings), delivers=options.signer is not None
        )
        self.hub = EventHub(boxes.hub)
        self.stats = Stats(boxes.stats, options.engines)
        self.downloader = Downloader(
            boxes.downloader,
            tuple(boxes.loaders(m.DOWNLOADER).values()),
            self.catalog,
            self.checkpoints,
            automatic=settings.models.auto_download,
            options=DownloadOptions(home=settings.child_home),
        )
        self.webhooks = _webhooks(settings, options, boxes)
        self.decoder = Decoder(boxes.decoder, options=DecoderOptions(home=settings.child_home))
        evidence, quarantine = OOMEvidence(), Quarantine(settings.scheduler.max_attempts)
        self.engines = {
            engine: self._engine(engine, start, settings, options, boxes, evidence, quarantine)
            for engine, start in options.engines.items()
        }
        self.scheduler = Scheduler(
            boxes.scheduler,
            store=_address(boxes.store, m.SCHEDULER),
            hub=_address(boxes.hub, m.SCHEDULER),
            stats=_address(boxes.stats, m.SCHEDULER),
            webhooks=boxes.webhooks_address(m.SCHEDULER),
            loaders=boxes.loaders(m.SCHEDULER),
            model_on_disk=ModelOnDisk(_address(boxes.downloader, m.SCHEDULER), self.catalog),
            job_runner=JobRunner(
                boxes.engine_addresses(m.SCHEDULER),
                files,
                Decoding(_address(boxes.decoder, m.SCHEDULER).ask, urgent=True),
                trio.CapacityLimiter(ENCODER_THREADS),
                lambda alias: self.checkpoints.short_hash(self.catalog.get(alias)),
                MemoryAdvice(self.catalog),
                _address(boxes.stats, m.SCHEDULER),
            ),
            settings=settings.scheduler,
            preload=_preload(settings),
        )

    def _engine(
        self,
        engine: EngineId,
        start: EngineStarter,
        settings: Settings,
        options: TreeOptions,
        boxes: _Mailboxes,
        evidence: OOMEvidence,
        quarantine: Quarantine,
    ) -> _EngineActors:
        own = boxes.engines[engine]
        disk = local_disk(self.checkpoints, LoraFiles.from_settings(settings))
        generator = Generator(
            engine,
            own.generator,
            start,
            GeneratorOptions(
                step_timeout=settings.engine.step_timeout_seconds,
                silence=settings.engine.silence_seconds,
                cancel_grace=settings.scheduler.cancel_grace_seconds,
                oom_evidence=evidence,
                quarantine=quarantine,
                previews=options.previews,
            ),
            _address(own.loader, m.GENERATOR),
            _address(boxes.stats, m.GENERATOR),
            disk,
        )
        loader = ModelLoader(
            engine,
            own.loader,
            _address(own.generator, m.MODEL_LOADER),
            _address(boxes.scheduler, m.MODEL_LOADER),
            _address(boxes.stats, m.MODEL_LOADER),
            self.catalog,
            settings.memory,
            disk,
            start_timeout=settings.engine.start_timeout_seconds,
            preload=_preload(settings),
        )
        return _EngineActors(generator, loader)


def _webhooks(settings: Settings, options: TreeOptions, boxes: _Mailboxes) -> Webhooks | None:
    if options.signer is None or boxes.webhooks is None:
        return None
    # Imported here: only a service that sends them pays for the modules that render jobs, h11 and TLS.
    from mflux_api.actors.webhooks.sender import HttpSender
    from mflux_api.http.webhook_body import WebhookBodies

    told = settings.webhooks
    return Webhooks(
        boxes.webhooks,
        _address(boxes.store, m.WEBHOOKS),
        told,
        signer=options.signer,
        sender=HttpSender(allow_private=told.allow_private_addresses, timeout=told.timeout_seconds),
        make_body=WebhookBodies(options.access, told.public_url or settings.server.root_path),
    )


def _preload(settings: Settings) -> str | None:
    return settings.models.default if settings.engine.preload else None


# --- third: supervisors, which start them in order and restart what fails ---


def _supervisors(boxes: _Mailboxes, actors: _Actors, on_hung: Callable[[], None]) -> Supervisor:
    failed: set[EngineId] = set()
    engines = Supervisor(
        "engines", [_engine_spec(engine, boxes, actors, failed, on_hung) for engine in actors.engines], on_hung=on_hung
    )

    async def run_scheduler(status: Started) -> None:
        # A scheduler that starts asks the loaders; of an engine that has failed there is none that could answer.
        for engine in failed:
            _tell_failed(engine, boxes)
        await actors.scheduler.run(status)

    core = Supervisor(
        "core",
        [
            _child(boxes.store, actors.store.run),
            _child(boxes.hub, actors.hub.run),
            _child(boxes.scheduler, run_scheduler),
        ],
        strategy=Strategy.REST_FOR_ONE,
        on_hung=on_hung,
    )
    webhooks: list[ChildSpec] = []
    if boxes.webhooks is not None and actors.webhooks is not None:
        webhooks = [_child(boxes.webhooks, actors.webhooks.run)]
    # Side by side: what fails in one of them costs the others nothing.
    return Supervisor(
        "root",
        [
            ChildSpec(name="engines", run=engines.run, stop_seconds=math.inf),
            ChildSpec(name="core", run=core.run, stop_seconds=math.inf),
            _child(boxes.downloader, actors.downloader.run),
            _child(boxes.decoder, actors.decoder.run),
            _child(boxes.stats, actors.stats.run),
            *webhooks,
        ],
        on_hung=on_hung,
    )


def _engine_spec(
    engine: EngineId, boxes: _Mailboxes, actors: _Actors, failed: set[EngineId], on_hung: Callable[[], None]
) -> ChildSpec:
    own, actor = boxes.engines[engine], actors.engines[engine]
    supervisor = Supervisor(
        f"engine {engine}",
        [_child(own.generator, actor.generator.run), _child(own.loader, actor.loader.run)],
        strategy=Strategy.ONE_FOR_ALL,
        on_hung=on_hung,
    )

    def isolate(_: ServiceFailed) -> None:
        own.generator.suspend()
        own.loader.suspend()
        failed.add(engine)
        _tell_failed(engine, boxes)

    def start() -> None:
        failed.discard(engine)
        own.generator.resume()
        own.loader.resume()

    isolation = Isolation(on_start=start, on_failed=isolate)
    return ChildSpec(name=supervisor.name, run=supervisor.run, isolation=isolation, stop_seconds=math.inf)


def _tell_failed(engine: EngineId, boxes: _Mailboxes) -> None:
    status = m.EngineStatus(id=engine, condition=m.EngineCondition.FAILED, reason="its actors keep failing")
    _address(boxes.scheduler, m.ENGINES).tell_latest(m.EngineChanged(status=status), key=engine)


def _child(mailbox: Mailbox[M], run: Callable[[Started], Awaitable[None]]) -> ChildSpec:
    return ChildSpec(name=mailbox.name, run=run, on_exit=mailbox.fail_in_flight)
