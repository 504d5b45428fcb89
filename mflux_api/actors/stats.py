"""Counters and histograms of this process. Lossy by contract: an actor that counts never waits."""

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NoReturn, assert_never

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import Mailbox
from mflux_api.actors.messages import metrics
from mflux_api.actors.messages.metrics import Distribution, Metric, MetricValues, size_class
from mflux_api.engine.interface import EngineId
from mflux_api.errors import (
    DiskFull,
    EngineCrashed,
    GenerationFailed,
    InternalError,
    InvalidParameter,
    OutOfMemory,
    ServerCrashed,
)
from mflux_api.jobs.job import Job, Status
from mflux_api.supervisor import Started

CODES = tuple(
    error.code
    for error in (
        DiskFull,
        EngineCrashed,
        GenerationFailed,
        InternalError,
        InvalidParameter,
        OutOfMemory,
        ServerCrashed,
    )
)
"""Of failures that are counted from the start: Prometheus sees no increase in a series that begins with its first."""

MAX_SERIES = 1000
"""Series of one metric; what would be a further one counts as :data:`OTHER`. Labels are few by themselves."""
OTHER = "other"


class Stats:
    """Adds up what it is told."""

    def __init__(self, mailbox: Mailbox[m.StatsMessage], engines: Iterable[EngineId] = ()) -> None:
        self._mailbox = mailbox
        self._engines = tuple(engines)
        self._started = time.monotonic()

    async def run(self, status: Started) -> NoReturn:
        """Serve the mailbox until cancelled."""
        values = Values(self._engines)
        status.started()
        while True:
            message = await self._mailbox.receive()
            match message:
                case m.JobEnded(job=job):
                    values.add_job(job)
                case m.StepMeasured():
                    size = size_class(message.width, message.height)
                    values.observe(metrics.STEP_SECONDS, message.seconds, message.model, size)
                case m.ModelLoaded():
                    values.count(metrics.LOADS, message.engine, message.model)
                    values.observe(metrics.LOAD_SECONDS, message.seconds, message.model)
                case m.ModelEvicted():
                    values.count(metrics.EVICTIONS, message.engine, message.model, message.reason.value)
                case m.EngineRestarted():
                    values.count(metrics.RESTARTS, message.engine)
                case m.RequestAnswered():
                    values.count(metrics.REQUESTS, message.method, message.route, str(message.status))
                    values.observe(metrics.REQUEST_SECONDS, message.seconds, message.method, message.route)
                case m.GetCounters():
                    uptime = time.monotonic() - self._started
                    message.reply.ok(m.Counters(uptime_seconds=uptime, metrics=values.read()))
                case _:
                    assert_never(message)


class Values:
    """The series of every metric."""

    def __init__(self, engines: Iterable[EngineId] = ()) -> None:
        self._counters: dict[Metric, Counter[tuple[str, ...]]] = defaultdict(Counter)
        self._buckets: dict[Metric, dict[tuple[str, ...], list[int]]] = defaultdict(dict)
        self._sums: dict[Metric, dict[tuple[str, ...], float]] = defaultdict(lambda: defaultdict(float))

        for code in CODES:
            self.count(metrics.FAILURES, code, amount=0)
        for engine in engines:
            self.count(metrics.RESTARTS, engine, amount=0)

    def count(self, metric: Metric, *labels: str, amount: int = 1) -> None:
        """Add to a counter."""
        series = self._counters[metric]
        series[_within_bounds(series, labels)] += amount

    def observe(self, metric: Metric, seconds: float, *labels: str, times: int = 1) -> None:
        """Add a value to a histogram, so often."""
        series = self._buckets[metric]
        key = _within_bounds(series, labels)
        counts = series.setdefault(key, [0] * (len(metric.buckets) + 1))
        counts[bisect_left(metric.buckets, seconds)] += times
        self._sums[metric][key] += seconds * times

    def add_job(self, job: Job) -> None:
        """Count the end of a job."""
        size = size_class(*job.request.size)
        self.count(metrics.JOBS, job.model, job.status.value)
        if job.failure is not None:
            self.count(metrics.FAILURES, job.failure.code)
        self.count(metrics.IMAGES, job.model, size, amount=len(job.images))
        ended = job.completed_at or job.created_at
        started = job.started_at or ended
        # By the wall clock, which may have been set back meanwhile.
        self.observe(metrics.QUEUE_SECONDS, max(0.0, (started - job.created_at).total_seconds()), job.model)
        if job.started_at is not None:
            self.observe(metrics.RUN_SECONDS, max(0.0, (ended - started).total_seconds()), job.model, size)
        if job.status is Status.COMPLETED and job.timings is not None and job.images:
            spent, images = job.timings, len(job.images)
            each = (spent.encode + spent.denoise + spent.decode) / images
            self.observe(metrics.IMAGE_SECONDS, each, job.model, size, times=images)

    def read(self) -> tuple[MetricValues, ...]:
        """Return every metric as it is now, those without a series too."""
        return tuple(
            MetricValues(
                metric=metric,
                counters=dict(self._counters.get(metric, {})),
                distributions={
                    labels: Distribution(tuple(counts), self._sums[metric][labels])
                    for labels, counts in self._buckets.get(metric, {}).items()
                },
            )
            for metric in metrics.METRICS
        )


def _within_bounds(series: Mapping[tuple[str, ...], object], labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels under which a value counts."""
    return labels if labels in series or len(series) < MAX_SERIES else (OTHER,) * len(labels)
