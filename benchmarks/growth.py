"""How the cost of an image grows with size, steps, images of a request, callers and queue, and where its time goes.

A server answers over HTTP, with everything that it does for a client. By default it has the demo model on a CPU; with
``--klein FOLDER`` it has random weights in the shapes of FLUX.2 Klein 4B on a GPU, which are written where the folder
has none (13.4 GB). Figures are medians; what a new size or number of images compiles is not in them.

Run: ``uv run --group dev python -m benchmarks.growth [--klein FOLDER] [--quick]``
"""

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from benchmarks.client import STEPS, Client, Sample
from benchmarks.report import Report, Table, options_parser
from benchmarks.server import demo_config, klein_config, serving

T = TypeVar("T")
STEP_COUNTS = (1, 2, 4, 8, 16)
IMAGE_COUNTS = (1, 2, 3, 4)
CALLER_COUNTS = (1, 2, 4, 8)
QUEUE_LENGTHS = (1, 4, 16)
PARTS = ("encode", "denoise", "decode", "save", "answer")
"""Where the time of one request goes: ``save`` is the way from the engine to a PNG file on disk, ``answer`` HTTP, the
queue and the image as base64."""


@attrs.frozen(kw_only=True)
class Plan:
    """What is measured, and how often."""

    sides: tuple[int, ...]
    side: int
    """Of the images where the size does not change."""
    samples: int
    rounds: int
    """How often so many callers, and a queue, are measured."""
    images_each: int
    """The fewest images of one of several callers."""


CPU = Plan(sides=(256, 384, 512, 768), side=256, samples=5, rounds=3, images_each=2)
GPU = Plan(sides=(512, 768, 1024, 1536), side=512, samples=9, rounds=3, images_each=6)


def quick(plan: Plan) -> Plan:
    """Return a plan with fewer repetitions of the same points."""
    return attrs.evolve(plan, samples=3, rounds=1, images_each=2)


def summarize(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the seconds of the median of some requests for the same work, its parts, and the spread.

    The parts are those of one request, so that their sum is its seconds.
    """
    seconds = sorted(sample.seconds for sample in samples)
    middle = sorted(samples, key=lambda sample: sample.seconds)[(len(samples) - 1) // 2]
    save = middle.total - middle.load - middle.engine
    parts = (middle.encode, middle.denoise, middle.decode, save, middle.seconds - middle.total)
    return {
        "seconds": middle.seconds,
        "engine_seconds": middle.engine,
        "parts": dict(zip(PARTS, parts, strict=True)),
        "fastest": seconds[0],
        "slowest": seconds[-1],
        "samples": len(samples),
    }


def in_turns(points: Sequence[int], times: int, measure: Callable[[int, int], T]) -> dict[int, list[T]]:
    """Measure every point so many times, in turns: whatever else the machine does meets all of them."""
    found: dict[int, list[T]] = {point: [] for point in points}
    for number in range(times):
        for point in points:
            found[point].append(measure(point, number))
    return found


def by_size(client: Client, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each size; every request has a new prompt, as those of different people do."""
    for side in plan.sides:
        client.image(width=side, height=side)

    def measure(side: int, number: int) -> Sample:
        return client.sample(width=side, height=side, prompt=f"house number {number} of {side}")

    found = in_turns(plan.sides, plan.samples, measure)
    return [{"side": side, **summarize(samples)} for side, samples in found.items()]


def by_steps(client: Client, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each number of steps."""

    def measure(steps: int, number: int) -> Sample:
        return client.sample(width=plan.side, height=plan.side, steps=steps, seed=number)

    found = in_turns(STEP_COUNTS, plan.samples, measure)
    return [{"steps": steps, **summarize(samples)} for steps, samples in found.items()]


def by_images(client: Client, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each number of images in one request."""
    compile_passes(client, plan)

    def measure(images: int, number: int) -> Sample:
        return client.sample(width=plan.side, height=plan.side, num_images=images, seed=number)

    found = in_turns(IMAGE_COUNTS, plan.samples, measure)
    return [{"images": images, **summarize(samples)} for images, samples in found.items()]


def compile_passes(client: Client, plan: Plan) -> None:
    """Have everything compiled that as many images as may share a pass need."""
    for images in IMAGE_COUNTS:
        client.image(width=plan.side, height=plan.side, num_images=images)


def by_callers(client: Client, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each number of callers at once, each of whom asks for the next image when it has one."""
    compile_passes(client, plan)

    def measure(callers: int, number: int) -> tuple[float, list[float]]:
        each = max(plan.images_each, CALLER_COUNTS[-1] // callers)
        return _call_at_once(client, plan.side, callers, each)

    rows = []
    for callers, laps in in_turns(CALLER_COUNTS, plan.rounds, measure).items():
        rate = statistics.median(len(waits) / whole * 60 for whole, waits in laps)
        seconds = statistics.median(seconds for _, waits in laps for seconds in waits)
        rows.append({"callers": callers, "images_a_minute": rate, "seconds": seconds})
    return rows


def _call_at_once(client: Client, side: int, callers: int, each: int) -> tuple[float, list[float]]:
    """Return the seconds until everyone had all images, and those that each image took."""
    waits = list[float]()

    def call(caller: int) -> None:
        for number in range(each):
            waits.append(client.image(width=side, height=side, seed=100 * caller + number))

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - begun
    if len(waits) != callers * each:
        raise SystemExit(f"{callers * each - len(waits)} images did not come")
    return whole, waits


def by_queue(client: Client, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each number of jobs that were submitted together; ``engine_seconds`` is the engine's share."""

    def measure(length: int, number: int) -> tuple[float, float]:
        begun = time.perf_counter()
        jobs = [client.submit(width=plan.side, height=plan.side, seed=seed) for seed in range(length)]
        for job in jobs:
            client.wait(job)
        each = (time.perf_counter() - begun) / length
        timings = [client.timings(job) for job in jobs]
        return each, sum(one["encode"] + one["denoise"] + one["decode"] for one in timings) / length

    rows = []
    for length, laps in in_turns(QUEUE_LENGTHS, plan.rounds, measure).items():
        each, engine = sorted(laps)[(len(laps) - 1) // 2]
        rows.append({"queued": length, "seconds": each, "engine_seconds": engine})
    return rows


def tables(found: dict[str, Any]) -> list[Table]:
    """Return the figures as tables."""
    side = f"{found['side']}²"
    parts = [
        (f"{row['side']}²", _ms(row["seconds"]), *(_ms(row["parts"][part]) for part in PARTS)) for row in found["size"]
    ]
    steps = [(row["steps"], _ms(row["seconds"]), _ms(row["engine_seconds"])) for row in found["steps"]]
    images = [(row["images"], _ms(row["seconds"]), _ms(row["seconds"] / row["images"])) for row in found["images"]]
    callers = [
        (row["callers"], lane["batch_window_ms"], f"{row['images_a_minute']:.0f}", _ms(row["seconds"]))
        for lane in found["callers"]
        for row in lane["rows"]
    ]
    queue = [(row["queued"], _ms(row["seconds"]), _ms(row["engine_seconds"])) for row in found["queue"]]
    return [
        Table(("size", "whole", *PARTS), parts, f"{STEPS} steps, each request with a new prompt:"),
        Table(("steps", "whole", "engine"), steps, f"{side}, the prompt known:"),
        Table(("images in a request", "whole", "each"), images, f"{side}, {STEPS} steps:"),
        Table(("callers at once", "batch_window_ms", "images a minute", "an image takes"), callers, f"{side}:"),
        Table(("queued together", "each", "engine, each"), queue, f"{side}:"),
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def main() -> None:
    """Print the tables."""
    parser = options_parser(__doc__)
    parser.add_argument("--model", choices=("demo",), default="demo", help="on a CPU; the default")
    parser.add_argument("--klein", type=Path, help="on a GPU: the folder of the weights")
    parser.add_argument("--quick", action="store_true", help="the same points with fewer repetitions")
    parser.add_argument("--window", type=int, default=20, help="the other batch_window_ms of callers at once; 0: none")
    options = parser.parse_args()
    report = Report("growth", options)
    plan = CPU if options.klein is None else GPU
    plan = quick(plan) if options.quick else plan
    model = "demo" if options.klein is None else "klein"
    with tempfile.TemporaryDirectory() as temporary:
        if options.klein is not None and not (options.klein / "model_index.json").is_file():
            # In a process of its own, whose memory the server needs.
            write = (
                f"from pathlib import Path; from benchmarks.klein_4b import write; write(Path({str(options.klein)!r}))"
            )
            subprocess.run([sys.executable, "-c", write], check=True)
        config = demo_config() if options.klein is None else klein_config(options.klein)
        found: dict[str, Any] = {"model": model, "steps_each": STEPS, "side": plan.side, "quick": options.quick}
        begun = time.perf_counter()

        def keep(name: str, rows: Any) -> None:
            found[name] = rows
            print(f"{name}, {time.perf_counter() - begun:.0f} s after the start", file=sys.stderr, flush=True)
            report.save(found)

        with serving(Path(temporary), config, model) as client:
            keep("first_seconds", client.image(width=plan.side, height=plan.side))
            keep("device", client.ask("GET", "/api/v1/system")["engines"][0].get("device"))
            keep("size", by_size(client, plan))
            keep("steps", by_steps(client, plan))
            keep("images", by_images(client, plan))
            keep("queue", by_queue(client, plan))
            keep("callers", [{"batch_window_ms": 0, "rows": by_callers(client, plan)}])
        if options.window:
            config += f"[scheduler]\nbatch_window_ms = {options.window}\n"
            with serving(Path(temporary), config, model) as client:
                lane = {"batch_window_ms": options.window, "rows": by_callers(client, plan)}
                keep("callers", [*found["callers"], lane])
    report.publish(found, *tables(found))


if __name__ == "__main__":
    main()
