"""What the stats actor adds up: few series, whatever it is told, and histograms whose sums and counts are right."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Final

import attrs
import pytest

from mflux_api.actors.messages import metrics
from mflux_api.actors.messages.metrics import METRICS, Distribution, Metric, MetricValues, size_class
from mflux_api.actors.stats import MAX_SERIES, OTHER, Values
from mflux_api.jobs.job import Failure, Job, Status, StoredImage, Timings
from tests.support.requests import resolved_request

BEGAN: Final = datetime(2026, 11, 28, 12, tzinfo=UTC)
IMAGE: Final = StoredImage(path="/x.png", seed=1, width=64, height=64, sha256="")
JOB: Final = Job(
    id="0123456789ab",
    request=resolved_request(prompt="a red house"),
    created_at=BEGAN,
    started_at=BEGAN + timedelta(seconds=2),
    completed_at=BEGAN + timedelta(seconds=5),
    status=Status.COMPLETED,
    images=(IMAGE, IMAGE),
    timings=Timings(load=9.0, encode=0.5, denoise=1.0, decode=0.5, total=11.0),
)


def read(values: Values, metric: Metric) -> MetricValues:
    (found,) = [each for each in values.read() if each.metric is metric]
    return found


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ((64, 64), "512x512"),
        ((512, 512), "512x512"),
        ((256, 1024), "512x512"),
        ((528, 512), "1024x1024"),
        ((1536, 1536), "1536x1536"),
        ((2048, 2048), "larger"),
    ],
)
def test_size_counts_by_its_pixels(size: tuple[int, int], name: str) -> None:
    assert size_class(*size) == name


def test_completed_job_counts_its_wait_its_run_and_each_image() -> None:
    values = Values()
    values.add_job(JOB)
    model, size = JOB.model, "512x512"
    assert read(values, metrics.JOBS).counters == {(model, "completed"): 1}
    assert read(values, metrics.IMAGES).counters == {(model, size): 2}
    assert set(read(values, metrics.FAILURES).counters.values()) == {0}
    assert read(values, metrics.QUEUE_SECONDS).distributions[model,].total == 2.0
    assert read(values, metrics.RUN_SECONDS).distributions[model, size].total == 3.0
    # A second for each of the two, without the load.
    each = read(values, metrics.IMAGE_SECONDS).distributions[model, size]
    assert (sum(each.counts), each.total) == (2, 2.0)


def test_failed_job_counts_by_its_code_and_measures_no_image() -> None:
    values = Values()
    failed = attrs.evolve(
        JOB, status=Status.FAILED, failure=Failure(message="it broke", code="OOM_ERROR"), images=(), timings=None
    )
    values.add_job(failed)
    assert read(values, metrics.JOBS).counters == {(JOB.model, "failed"): 1}
    assert +Counter(read(values, metrics.FAILURES).counters) == {("OOM_ERROR",): 1}
    assert read(values, metrics.IMAGE_SECONDS).distributions == {}


def test_job_that_never_ran_has_waited_and_not_run() -> None:
    values = Values()
    values.add_job(attrs.evolve(JOB, status=Status.CANCELLED, started_at=None, images=(), timings=None))
    assert read(values, metrics.QUEUE_SECONDS).distributions[JOB.model,].total == 5.0
    assert read(values, metrics.RUN_SECONDS).distributions == {}


def test_clock_that_was_set_back_makes_no_negative_time() -> None:
    values = Values()
    values.add_job(attrs.evolve(JOB, completed_at=BEGAN - timedelta(hours=1), started_at=BEGAN - timedelta(hours=2)))
    assert read(values, metrics.QUEUE_SECONDS).distributions[JOB.model,].total == 0.0


def test_value_on_a_bound_is_in_its_bucket() -> None:
    values = Values()
    first, second, *_ = metrics.STEP_SECONDS.buckets
    for seconds in (first, second, 1e9):
        values.observe(metrics.STEP_SECONDS, seconds, "demo", "512x512")
    counts = read(values, metrics.STEP_SECONDS).distributions["demo", "512x512"].counts
    assert counts == (1, 1, *([0] * (len(metrics.STEP_SECONDS.buckets) - 2)), 1)


def test_series_of_a_metric_are_bounded_and_nothing_is_lost() -> None:
    values = Values()
    for number in range(MAX_SERIES + 50):
        values.count(metrics.REQUESTS, "GET", f"/{number}", "200")
        values.observe(metrics.REQUEST_SECONDS, 1.0, "GET", f"/{number}")
    counters = read(values, metrics.REQUESTS).counters
    assert len(counters) == MAX_SERIES + 1
    assert counters[OTHER, OTHER, OTHER] == 50
    distributions = read(values, metrics.REQUEST_SECONDS).distributions
    assert distributions[OTHER, OTHER] == Distribution(distributions[OTHER, OTHER].counts, 50.0)


def test_what_alerts_look_at_is_there_before_it_happens() -> None:
    values = Values(["0", "1"])
    assert read(values, metrics.RESTARTS).counters == {("0",): 0, ("1",): 0}
    assert ("OOM_ERROR",) in read(values, metrics.FAILURES).counters


def test_every_metric_has_a_name_of_its_own_and_ordered_buckets() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert [metric for metric in METRICS if list(metric.buckets) != sorted(set(metric.buckets))] == []
