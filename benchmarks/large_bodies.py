"""How long reading a body of 60 MB holds up the event loop, by what is in it, beside doing nothing.

Run: ``uv run --group dev python -m benchmarks.large_bodies``
"""

import time
from collections.abc import Callable
from typing import TypeVar

import trio

from benchmarks.report import Report, Table, options_parser
from mflux_api.errors import ServiceError
from mflux_api.http.a1111.dialect import IMG2IMG_FIELDS
from mflux_api.jobs.json_fields import read_object

T = TypeVar("T")
SIZE = 60_000_000
BODIES = {
    "one image": (b'{"init_images": ["%b"]}', b"A"),
    "four images": (b'{"init_images": ["%b"]}', b"A" * (SIZE // 4 - 3) + b'","'),
    "image with line breaks": (b'{"init_images": ["%b"]}', b"A" * 76 + b"\\r\\n"),
    "unknown text": (b'{"unknown": "%b"}', b"A"),
    "empty lists": (b'{"unknown": [%b[]]}', b"[],"),
    "images that are lists": (b'{"init_images": [%b[]]}', b"[],"),
    "one key many times": (b'{%b"seed":0}', b'"seed":0,'),
    "blanks": (b"{%b}", b" "),
    "escapes": (b'{"prompt": "%b"}', b"\\u0041"),
    "digits": (b'{"seed": %b}', b"9"),
}


def main() -> None:
    """Print the longest pause of a task that sleeps a millisecond at a time."""
    report = Report("large_bodies", options_parser(__doc__).parse_args())
    idle, pauses = trio.run(measure)
    rows = [(name, f"{pause * 1000:.1f} ms", f"{pause / idle:.0f} ×") for name, pause in pauses.items()]
    report.publish({"idle_seconds": idle, "pause_seconds": pauses}, Table(("body", "longest pause", "idle"), rows))


async def measure() -> tuple[float, dict[str, float]]:
    """Return the longest pause beside a thread that sleeps, and beside the reading of each body."""
    idle = await longest_pause(time.sleep, 0.5)
    pauses = {}
    for name, (frame, filling) in BODIES.items():
        body = frame % (filling * (SIZE // len(filling)))
        pauses[name] = await longest_pause(read, bytearray(body))
    return idle, pauses


def read(body: bytearray) -> None:
    """Read a body as img2img does."""
    try:
        read_object(body, IMG2IMG_FIELDS)
    except ServiceError:
        # As the route answers it.
        return


async def longest_pause(work: Callable[[T], None], argument: T) -> float:
    """Return the longest pause of the loop while a thread works, in seconds."""
    pauses: list[float] = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await trio.sleep(0.001)
            pauses.append(time.perf_counter() - before - 0.001)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.to_thread.run_sync(work, argument)
        nursery.cancel_scope.cancel()
    return max(pauses)


if __name__ == "__main__":
    main()
