"""What Prometheus reads: requests are counted by their route, and the service's metrics written in its format.

Nothing is registered with prometheus-client's own registry, which all services of a process would share.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

import attrs
import psutil
import trio
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString
from quart import Response, g, request
from quart_trio import QuartTrio

from mflux_api.actors import messages as m
from mflux_api.actors.messages.metrics import PREFIX, Distribution, MetricValues
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.measurements import Measurements
from mflux_api.gateway.models import EngineView
from mflux_api.version import package_version

NO_ROUTE: Final = "none"
"""The route of a request that no route takes; its path is the client's invention."""
OTHER_METHOD: Final = "other"
_OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0"
_OPEN_METRICS_VERSIONS: Final = frozenset({"0.0.1", "1.0.0"})
"""Those that a client may ask for and is given 1.0.0: Prometheus lists both."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def install(app: QuartTrio, gateway: Gateway) -> None:
    """Count the app's requests. To be installed first: what refuses a request comes after."""

    @app.before_request
    async def begin() -> None:
        g.request_began = trio.current_time()

    @app.after_request
    async def count(response: Response) -> Response:
        # An exception in a hook before may leave it out.
        began = g.get("request_began", trio.current_time())
        gateway.count_request(
            method=method_label(),
            route=route_label(),
            status=response.status_code,
            seconds=trio.current_time() - began,
        )
        return response


def method_label() -> str:
    """Return the current request's method, or that it is another one: a client may send any word."""
    return request.method if request.method in _METHODS else OTHER_METHOD


def route_label() -> str:
    """Return the rule of the current request's route, never the path that was asked for."""
    return NO_ROUTE if request.url_rule is None else request.url_rule.rule


@attrs.frozen(kw_only=True)
class Reading:
    """Everything that one answer tells."""

    measured: Measurements
    bytes_in_flight: int
    max_queue: int


def write(reading: Reading, accept: str) -> tuple[bytes, str]:
    """Return the metrics and their content type; it may take a while, and belongs into a thread.

    Args:
        reading: what they are.
        accept: which format the client takes, as its header says.
    """
    registry = CollectorRegistry()
    registry.register(_Read(reading))
    ProcessCollector(registry=registry)
    # Of the client's own header the library fails on versions that are not numbers.
    encode, content_type = choose_encoder(_OPEN_METRICS if _takes_open_metrics(accept) else "")
    return encode(registry), content_type


def _takes_open_metrics(accept: str) -> bool:
    """Whether a client takes OpenMetrics of the version that is written here; it gets the plain format otherwise."""
    for media_type, *parameters in (each.split(";") for each in accept.lower().split(",")):
        values = dict(each.replace(" ", "").partition("=")[::2] for each in parameters)
        known = values.get("version", "1.0.0") in _OPEN_METRICS_VERSIONS
        if media_type.strip() == "application/openmetrics-text" and known and values.get("q", "1").strip("0.") != "":
            return True
    return False


class _Read(Collector):
    """One reading as prometheus-client takes it."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Family]:
        measured = self._reading.measured
        yield _gauges("info", "The release that runs", ("version",), [((package_version(),), 1)])
        yield _gauge("unanswered", "Parts of the service that did not answer and are left out", measured.unanswered)
        yield _gauge("bytes_in_flight", "Bytes of bodies and answers in memory", self._reading.bytes_in_flight)
        if measured.followers is not None:
            yield _gauge("followers", "Streams of events that are followed", measured.followers)
        if measured.webhooks is not None:
            yield _gauge("webhooks_waiting", "Webhooks that are still to be delivered", measured.webhooks)
        if measured.status is not None:
            yield from _of_scheduler(measured.status, self._reading.max_queue)
        if measured.engines is not None:
            yield from _of_engines(measured.engines)
        memory = psutil.virtual_memory()
        yield _gauge("machine_memory_bytes", "Memory of the machine", memory.total)
        yield _gauge("machine_memory_available_bytes", "What of it is available", memory.available)
        if measured.counters is not None:
            yield _gauge("uptime_seconds", "Since the service started", measured.counters.uptime_seconds)
            for values in measured.counters.metrics:
                yield _counted(values)


def _of_scheduler(status: m.SchedulerStatus, max_queue: int) -> Iterator[Family]:
    states = [(("queued",), status.queued), (("generating",), status.active)]
    yield _gauges("jobs_unfinished", "Jobs that are not finished", ("state",), states)
    yield _gauge("queue_limit", "How many jobs may wait (scheduler.max_queue)", max_queue)
    ready = not status.draining and not status.degraded and status.preloading is None
    yield _gauge("ready", "1 while /readyz answers 200", ready)
    yield _gauge("draining", "1 while the service takes no new work and ends", status.draining)
    yield _gauge("degraded", "1 while no engine is left that could run a job", status.degraded)
    yield _gauge("store_trouble", "1 while the job store cannot write", status.store_trouble is not None)


def _of_engines(engines: Sequence[EngineView]) -> Iterator[Family]:
    conditions = [
        ((engine.status.id, condition.value), engine.status.condition is condition)
        for engine in engines
        for condition in m.EngineCondition
    ]
    yield _gauges("engine_condition", "1 for the condition of an engine", ("engine", "condition"), conditions)
    states = [((engine.status.id,), engine.state) for engine in engines]
    active = [(labels, state.active_bytes) for labels, state in states if state is not None]
    peak = [(labels, state.peak_bytes) for labels, state in states if state is not None]
    yield _gauges("engine_memory_bytes", "Memory that MLX has in use", ("engine",), active)
    yield _gauges("engine_peak_memory_bytes", "The most that it had in use", ("engine",), peak)
    models = [((engine.status.id, model), 1) for engine in engines for model in engine.models]
    yield _gauges("model_in_memory", "1 for each model in an engine's memory", ("engine", "model"), models)


def _gauge(name: str, text: str, value: float) -> Family:
    return GaugeMetricFamily(PREFIX + name, text, value=float(value))


def _gauges(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for series, value in values:
        family.add_metric(series, float(value))
    return family


def _counted(values: MetricValues) -> CounterMetricFamily | HistogramMetricFamily:
    metric = values.metric
    name, labels = PREFIX + metric.name, metric.labels
    if not metric.buckets:
        counter = CounterMetricFamily(name, metric.help, labels=labels)
        for series, count in values.counters.items():
            counter.add_metric(series, count)
        return counter
    histogram = HistogramMetricFamily(name, metric.help, labels=labels)
    for series, distribution in values.distributions.items():
        histogram.add_metric(series, _cumulative(metric.buckets, distribution), distribution.total)
    return histogram


def _cumulative(bounds: Sequence[float], distribution: Distribution) -> list[tuple[str, float]]:
    """Return how many values there are up to each bound, as the format has it."""
    names = [*map(floatToGoString, bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(distribution.counts)), strict=True))
