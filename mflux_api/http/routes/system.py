"""``/api/v1/health``, ``system``, ``queue`` and ``stats``; probes at ``/livez``, ``/readyz`` and ``/``."""

import platform
from collections.abc import Mapping
from functools import partial
from typing import Final

import attrs
import psutil
from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.actors import messages as m
from mflux_api.errors import EngineUnavailable, ServiceRestarting, ShuttingDown
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.models import EngineView
from mflux_api.http.operations import Operation
from mflux_api.http.probes import Probes, Question
from mflux_api.http.responses import json_response
from mflux_api.http.routes.system_schemas import (
    ActiveJob,
    DegradedHealthResponse,
    EngineItem,
    HealthResponse,
    ProbeResponse,
    QueuedJob,
    QueueResponse,
    StatsResponse,
    SystemEngine,
    SystemMemory,
    SystemResponse,
)
from mflux_api.http.security.guard import caller
from mflux_api.http.security.hosts import HostRules
from mflux_api.version import package_version

OPERATIONS = (
    Operation(
        method="head",
        path="/",
        summary="Whether a server is there: an empty 200",
        scope=None,
    ),
    Operation(method="get", path="/livez", summary="Whether the process answers", scope=None, response=ProbeResponse),
    Operation(
        method="get",
        path="/readyz",
        summary="Whether new work is taken and an engine can run it, with engine.preload at once; 503 while not",
        scope=None,
        response=ProbeResponse,
        errors=(ShuttingDown, EngineUnavailable),
    ),
    Operation(
        method="get",
        path="/api/v1/health",
        summary="Whether the service works",
        scope=None,
        response=HealthResponse,
        also_describes=(DegradedHealthResponse,),
    ),
    Operation(
        method="get", path="/api/v1/system", summary="Device and memory", scope=Scope.READ, response=SystemResponse
    ),
    Operation(
        method="get", path="/api/v1/queue", summary="What runs and what waits", scope=Scope.READ, response=QueueResponse
    ),
    Operation(method="get", path="/api/v1/stats", summary="Running totals", scope=Scope.READ, response=StatsResponse),
)


_RELEASE: Final = package_version()


async def health_of(gateway: Gateway) -> HealthResponse:
    """Return whether the service works."""
    try:
        load = await gateway.status()
    except ServiceRestarting:
        load = m.SchedulerStatus(active=0, queued=0, draining=False, degraded=True)
    answer = HealthResponse(
        status="draining" if load.draining else "degraded" if load.degraded else "healthy",
        version=_RELEASE,
        models_available=len(gateway.catalog),
        active_jobs=load.active,
        queue_length=load.queued,
    )
    problem = load.engine_trouble or load.store_trouble
    if not load.degraded or problem is None:
        return answer
    return DegradedHealthResponse(**attrs.asdict(answer), problem=problem)


async def alive() -> ProbeResponse:
    """Return the answer of a process that answers."""
    return ProbeResponse(status="ok")


async def ready(gateway: Gateway) -> ProbeResponse:
    """Return the answer of a service that takes new work.

    Raises:
        ShuttingDown: it is draining.
        EngineUnavailable: no engine is left, or the default model is to be loaded ahead and never was, or warms up.
    """
    load = await gateway.status()
    if load.draining:
        raise ShuttingDown("The service is shutting down and takes no new work")
    if load.degraded:
        raise EngineUnavailable.because(load.engine_trouble or "")
    if load.preloading is not None and load.warming_up:
        raise EngineUnavailable(
            f"The default model '{load.preloading}' is in memory and being warmed up; try again in a minute",
            {"reason": "it is being warmed up"},
        )
    if load.preloading is not None:
        reason = load.preload_problem or "it is being loaded"
        raise EngineUnavailable(
            f"The default model '{load.preloading}' is not in memory yet ({reason}); POST "
            f"/api/v1/models/{load.preloading}/load, or a job, also brings it there",
            {"reason": reason},
        )
    return ProbeResponse(status="ok")


def probes(gateway: Gateway, hosts: HostRules, headers: Mapping[str, str]) -> Probes:
    """Return the answers of the same routes to plain questions.

    Args:
        gateway: what is asked.
        hosts: which hosts are answered.
        headers: what every answer has.
    """
    questions: dict[str, Question] = {
        "/api/v1/health": partial(health_of, gateway),
        "/livez": alive,
        "/readyz": partial(ready, gateway),
    }

    def answered(path: str, seconds: float) -> None:
        gateway.count_request(method="GET", route=path, status=200, seconds=seconds)

    return Probes(questions, hosts.allow, headers, answered)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("system", __name__)

    @routes.get("/api/v1/health")
    async def health() -> Response:
        return json_response(await health_of(gateway))

    @routes.route("/", methods=["HEAD"])
    async def root() -> Response:
        return Response(b"")

    @routes.get("/livez")
    async def livez() -> Response:
        return json_response(await alive())

    @routes.get("/readyz")
    async def readyz() -> Response:
        return json_response(await ready(gateway))

    @routes.get("/api/v1/system")
    async def system() -> Response:
        engines = await gateway.engines()
        first = engines[0]
        info = first.info
        memory = psutil.virtual_memory()
        return json_response(
            SystemResponse(
                active_model=next(iter(first.models), None),
                mlx_memory_gb=_gigabytes(first.state.active_bytes if first.state is not None else 0),
                system_memory_gb=SystemMemory(
                    total=_gigabytes(memory.total),
                    used=_gigabytes(memory.total - memory.available),
                    free=_gigabytes(memory.available),
                ),
                device=info.device_name if info is not None else f"{platform.machine()} (the engine is starting)",
                engine=_engine(first),
                engines=tuple(_listed(engine) for engine in engines),
                problem=(await gateway.status()).store_trouble,
            )
        )

    @routes.get("/api/v1/queue")
    async def queue() -> Response:
        listing = await gateway.queue()
        sees = caller().sees
        # Of another's job only its place counts.
        shown = {job_id: state.prompt for job_id, state in listing.jobs.items() if sees.shows(state.owner)}
        running = [
            ActiveJob(
                job_id=job_id if job_id in shown else None,
                prompt=shown.get(job_id),
                progress=state.progress.progress,
                eta_seconds=state.progress.eta_seconds,
            )
            for job_id, state in listing.jobs.items()
            if state.position is None
        ]
        queued = tuple(
            QueuedJob(
                job_id=job_id if job_id in shown else None,
                position=state.position,
                priority=state.priority,
                prompt=shown.get(job_id),
                eta_seconds=state.progress.eta_seconds,
            )
            for job_id, state in listing.jobs.items()
            if state.position is not None
        )
        return json_response(QueueResponse(active=running[0] if running else None, queued=queued, total=listing.total))

    @routes.get("/api/v1/stats")
    async def stats() -> Response:
        totals, counters = await gateway.totals(), await gateway.counters()
        return json_response(
            StatsResponse(
                total_generations=totals.generations,
                total_images=totals.images,
                average_time_seconds=round(totals.seconds / totals.generations, 2) if totals.generations else 0.0,
                uptime_hours=round(counters.uptime_seconds / 3600, 3),
            )
        )

    return routes


def _engine(engine: EngineView) -> SystemEngine:
    state, info = engine.state, engine.info
    return SystemEngine(
        running=info is not None,
        degraded=state is None or state.degraded,
        backend=info.device if info is not None else None,
        precision=info.precision if info is not None else None,
        blas=info.blas or None if info is not None else None,
        peak_memory_gb=_gigabytes(state.peak_bytes if state is not None else 0),
        versions=info.versions if info is not None else {},
    )


def _listed(engine: EngineView) -> EngineItem:
    """One entry of the list of engines: what the scheduler knows, and what its actors add to it."""
    state, info = engine.state, engine.info
    return EngineItem(
        id=engine.status.id,
        status=engine.status.condition.value,
        problem=engine.status.reason or None,
        incarnation=state.incarnation if state is not None else engine.status.incarnation,
        device=info.device_name if info is not None else None,
        backend=engine.status.device,
        models=engine.models,
        loading=engine.loading,
        memory_gb=_gigabytes(state.active_bytes if state is not None else 0),
        peak_memory_gb=_gigabytes(state.peak_bytes if state is not None else 0),
        device_memory_gb=_gigabytes(info.memory_bytes) if info is not None and info.memory_bytes else None,
    )


def _gigabytes(count: int) -> float:
    return round(count / 1e9, 2)
