"""The metrics of one service: what each of them is, and its values as they are read."""

from collections.abc import Mapping
from typing import Final

import attrs

PREFIX: Final = "mflux_api_"

SIZES: Final = ((512 * 512, "512x512"), (1024 * 1024, "1024x1024"), (1536 * 1536, "1536x1536"))
"""Classes of image sizes: up to so many pixels, whatever the shape."""
LARGER: Final = "larger"


def size_class(width: int, height: int) -> str:
    """Return the class of an image's size; every size would be a series of its own."""
    return next((name for most, name in SIZES if width * height <= most), LARGER)


@attrs.frozen(kw_only=True)
class Metric:
    """A counter, or a histogram where it has buckets."""

    name: str
    """Without :data:`PREFIX`, and a counter without its ``_total``."""
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds in seconds, in their order; the one without a bound is not among them."""


_STEP = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_IMAGE = (0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_WAIT = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
_REQUEST = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0)

JOBS: Final = Metric(name="jobs", help="Jobs that ended", labels=("model", "outcome"))
FAILURES: Final = Metric(name="job_failures", help="Jobs that failed, by the code of their error", labels=("code",))
IMAGES: Final = Metric(name="images", help="Images of jobs that ended", labels=("model", "size"))
QUEUE_SECONDS: Final = Metric(
    name="job_queue_seconds",
    help="From acceptance to the first attempt, of jobs that ended",
    labels=("model",),
    buckets=_WAIT,
)
RUN_SECONDS: Final = Metric(
    name="job_run_seconds",
    help="From the first attempt to the end, of jobs that ran",
    labels=("model", "size"),
    buckets=_IMAGE,
)
STEP_SECONDS: Final = Metric(
    name="step_seconds",
    help="One denoising step, of all images of its pass; those that compile are left out",
    labels=("model", "size"),
    buckets=_STEP,
)
IMAGE_SECONDS: Final = Metric(
    name="image_seconds",
    help="The engine's time for one image of a completed job, without loading",
    labels=("model", "size"),
    buckets=_IMAGE,
)
LOADS: Final = Metric(name="model_loads", help="Models that were loaded", labels=("engine", "model"))
LOAD_SECONDS: Final = Metric(name="model_load_seconds", help="One load of a model", labels=("model",), buckets=_IMAGE)
EVICTIONS: Final = Metric(
    name="model_evictions",
    help="Models that left memory: for the room of another, idle for too long, or as they were told",
    labels=("engine", "model", "reason"),
)
RESTARTS: Final = Metric(
    name="engine_restarts", help="Engine processes that died and were replaced", labels=("engine",)
)
REQUESTS: Final = Metric(
    name="http_requests", help="HTTP requests that were answered", labels=("method", "route", "status")
)
REQUEST_SECONDS: Final = Metric(
    name="http_request_seconds",
    help="From a request's head to its answer's; streams go on",
    labels=("method", "route"),
    buckets=_REQUEST,
)

METRICS: Final = (
    JOBS,
    FAILURES,
    IMAGES,
    QUEUE_SECONDS,
    RUN_SECONDS,
    STEP_SECONDS,
    IMAGE_SECONDS,
    LOADS,
    LOAD_SECONDS,
    EVICTIONS,
    RESTARTS,
    REQUESTS,
    REQUEST_SECONDS,
)
"""Every metric that is counted as things happen; what is so at one moment is asked for when it is read."""


@attrs.frozen
class Distribution:
    """The values that one series of a histogram was given."""

    counts: tuple[int, ...]
    """How many fell into each bucket; the last is the one without a bound."""
    total: float
    """Their sum."""


@attrs.frozen(kw_only=True)
class MetricValues:
    """One metric as it is now: its series by the values of their labels."""

    metric: Metric
    counters: Mapping[tuple[str, ...], float] = attrs.field(factory=dict)
    distributions: Mapping[tuple[str, ...], Distribution] = attrs.field(factory=dict)
