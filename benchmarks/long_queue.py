"""What each call and event costs the scheduler's queue when it is long, against a queue of 1,000 jobs.

The queue alone, in one thread, without a store or an engine: a ratio near 1 says that a long queue costs no more.

Run: ``uv run --group dev python -m benchmarks.long_queue [CALLERS]``: so many callers (by default 1) have as many jobs
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from benchmarks.report import Report, Table, options_parser
from mflux_api.actors import messages as m
from mflux_api.actors.scheduler.entries import Entry, JobEvent
from mflux_api.actors.scheduler.job_queue import JobQueue
from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.job import Job
from mflux_api.jobs.resolve import ResolvedRequest

LENGTHS = (1_000, 10_000, 100_000)
CALLS = 200
MODELS = ("flux2-klein-4b", "flux2-klein-9b", "demo")
SIZES = ((512, 512), (768, 512), (1024, 1024))
ENGINES = (m.EngineStatus(id="0", condition=m.EngineCondition.READY, models=("demo",), device="cpu"),)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def request(number: int) -> ResolvedRequest:
    """Return a request; one after the other they differ in model, size, steps and images."""
    width, height = SIZES[number // 3 % 3]
    return ResolvedRequest(
        prompt="a red house",
        model=MODELS[number % 3],
        seed=number,
        width=width,
        height=height,
        steps=4 + number % 5,
        guidance=1.0,
        num_images=1 + number % 2,
    )


def submit(queue: JobQueue, number: int, callers: int) -> Entry:
    """Put a job into the queue."""
    owner = f"caller {number % callers}"
    entry = queue.add(Job(id=f"{number:012x}", request=request(number), created_at=NOW, owner=owner))
    entry.on(JobEvent.KEPT)
    queue.enqueue(entry)
    return entry


def dispatch(queue: JobQueue) -> Entry:
    """Have the next job run."""
    chosen = queue.next(ENGINES, {"0"}, 4)
    if chosen is None:
        raise RuntimeError("the queue is empty")
    entry, engine = chosen
    entry.engine = engine
    entry.on(JobEvent.DISPATCHED)
    return entry


def end(queue: JobQueue, entry: Entry) -> None:
    """End a job, wherever it is."""
    queue.take(entry)
    entry.on(JobEvent.END)
    queue.forget(entry)
    entry.on(JobEvent.COMMITTED)


def measure(length: int, callers: int) -> dict[str, float]:
    """Return the seconds of one call or event of each kind in a queue of that length."""
    estimates = Estimates()
    for number in range(9):
        estimates.add_step(request(number), "cpu", 1.0)
        estimates.add_rest(request(number), "cpu", 0.5)
    queue = JobQueue(estimates)
    began = time.perf_counter()
    entries = [submit(queue, number, callers) for number in range(length)]
    running = dispatch(queue)
    seconds = {"lining up, for each job": (time.perf_counter() - began) / length}
    waiting = [entry for entry in entries[:: max(1, length // (3 * CALLS))] if entry is not running]
    looked_at, cancelled = waiting[:CALLS], waiting[CALLS : 2 * CALLS]

    def each(kind: str, calls: list[Callable[[], object]]) -> None:
        began = time.perf_counter()
        for call in calls:
            call()
        seconds[kind] = (time.perf_counter() - began) / len(calls)

    each("progress of the running job", [lambda: queue.eta(running, ENGINES)] * CALLS)
    each("GET of a waiting job", [partial(queue.snapshots, ENGINES, [entry.job.id]) for entry in looked_at])
    each("submit", [partial(submit, queue, length + number, callers) for number in range(CALLS)])
    each("cancel", [partial(end, queue, entry) for entry in cancelled])
    each("end, and the next one runs", [lambda: end(queue, dispatch(queue))] * CALLS)
    each("GET of the queue, 200 jobs listed", [lambda: queue.snapshots(ENGINES, limit=m.LISTED)])
    return seconds


def main() -> None:
    """Print the table."""
    parser = options_parser(__doc__)
    parser.add_argument("callers", type=int, nargs="?", default=1)
    options = parser.parse_args()
    report = Report("long_queue", options)
    measured = {length: measure(length, options.callers) for length in LENGTHS}
    short = measured[LENGTHS[0]]
    heads = (head for length in LENGTHS[1:] for head in (f"{length:,}", "ratio"))
    rows = []
    for kind, seconds in short.items():
        longer = (measured[length][kind] for length in LENGTHS[1:])
        cells = (cell for each in longer for cell in (f"{each * 1e6:.1f} µs", f"{each / seconds:.2f}"))
        rows.append((kind, f"{seconds * 1e6:.1f} µs", *cells))
    figures = {"callers": options.callers, "seconds": measured}
    report.publish(figures, Table(("", f"{LENGTHS[0]:,} jobs", *heads), rows))


if __name__ == "__main__":
    main()
