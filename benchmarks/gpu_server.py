"""Images over HTTP on a GPU, with random weights in the shapes of FLUX.2 Klein 4B: latency, throughput, first uses.

Two servers, one after the other, in one run: as mflux computes (``engine.fast_path = false``), and as we do.

Run: ``python -m benchmarks.gpu_server [--json FILE] [--markdown FILE] [--folder FOLDER]`` on a machine with a GPU; the
weights take 13.4 GB.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.client import Client
from benchmarks.report import Report, Table, options_parser
from benchmarks.server import klein_config, serving

QUEUED = 16
CALLERS = 8
SIDES = (512, 1024)


def measure(client: Client, *, whole: bool = True) -> dict[str, Any]:
    """Return the figures of one server; without ``whole`` those of single images alone."""
    found: dict[str, Any] = {"first_s": client.image()}
    for side in SIDES:
        size = {"width": side, "height": side}
        client.image(**size)
        cached = [client.image(**size, seed=seed) for seed in range(12)]
        fresh = [client.image(**size, prompt=f"a red house, number {number}") for number in range(6)]
        # In turns, so that whatever else the machine does meets both.
        followed = [
            [client.follow(previews=previews, **size, seed=seed) for previews in (False, True)] for seed in range(12)
        ]
        found[str(side)] = {
            "image_ms": statistics.median(cached) * 1000,
            "new_prompt_ms": statistics.median(fresh) * 1000,
            "streamed_ms": statistics.median(plain for plain, _ in followed) * 1000,
            "with_previews_ms": statistics.median(with_previews for _, with_previews in followed) * 1000,
        }
    if not whole:
        return found
    begun = time.perf_counter()
    jobs = [client.submit(seed=seed) for seed in range(QUEUED)]
    for job_id in jobs:
        client.wait(job_id)
    found["queued_each_ms"] = (time.perf_counter() - begun) / QUEUED * 1000
    found["four_in_one_ms"] = min(client.image(num_images=4) for _ in range(3)) * 1000
    found["callers_images_a_minute"] = _many_callers(client)
    for bits in (8, 4):
        model = f"flux2-klein-4b-{bits}-bit"
        first = client.image(model=model)
        found[f"{bits}_bits"] = {"first_s": first, "image_ms": min(client.image(model=model) for _ in range(4)) * 1000}
    client.image(low_ram=True)
    found["low_ram_ms"] = min(client.image(low_ram=True) for _ in range(3)) * 1000
    return found


def _many_callers(client: Client) -> float:
    """Return the images a minute that so many callers get who each ask for the next when they have one."""
    each = 6

    def ask(caller: int) -> None:
        for number in range(each):
            client.image(seed=100 * caller + number)

    threads = [threading.Thread(target=ask, args=(caller,)) for caller in range(CALLERS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return CALLERS * each / (time.perf_counter() - begun) * 60


def main() -> None:
    """Print the table."""
    parser = options_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="where the weights are, or are written")
    parser.add_argument("--short", action="store_true", help="of mflux's way only single images")
    options = parser.parse_args()
    report = Report("gpu_server", options)
    with tempfile.TemporaryDirectory() as temporary:
        weights = options.folder or Path(temporary) / "klein"
        if not (weights / "model_index.json").is_file():
            subprocess.run([sys.executable, "-c", _WRITE.format(str(weights))], check=True)
        found: dict[str, Any] = {}
        for name, fast_path in (("fast path", True), ("mflux", False)):
            folder, config = Path(temporary) / name.replace(" ", "-"), klein_config(weights, fast_path=fast_path)
            with serving(folder, config, "klein") as client:
                found[name] = measure(client, whole=fast_path or not options.short)
                found["system"] = client.ask("GET", "/api/v1/system")
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
            report.save(found)
        # Everything is compiled now, in the folder of the first.
        with serving(Path(temporary) / "fast-path", klein_config(weights), "klein") as client:
            found["second start, first image"] = client.image()
    rows = [
        (label, value(found["fast path"]), "" if options.short and row > _SINGLE else value(found["mflux"]))
        for row, (label, value) in enumerate(_ROWS, 1)
    ]
    note = f"The first image of the second server: {found['second start, first image']:.1f} s"
    report.publish(found, Table(("", "fast path", "mflux"), rows), notes=[note])


_WRITE = "from pathlib import Path; from benchmarks.klein_4b import write; write(Path({!r}))"
_SINGLE = 9
"""Rows of single images: the first of these."""
_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("first image, with loading", lambda row: f"{row['first_s']:.1f} s"),
    ("512²", lambda row: f"{row['512']['image_ms']:.0f} ms"),
    ("512², new prompt", lambda row: f"{row['512']['new_prompt_ms']:.0f} ms"),
    ("512², as a stream", lambda row: f"{row['512']['streamed_ms']:.0f} ms"),
    ("512², the same with previews", lambda row: f"{row['512']['with_previews_ms']:.0f} ms"),
    ("1024²", lambda row: f"{row['1024']['image_ms']:.0f} ms"),
    ("1024², new prompt", lambda row: f"{row['1024']['new_prompt_ms']:.0f} ms"),
    ("1024², as a stream", lambda row: f"{row['1024']['streamed_ms']:.0f} ms"),
    ("1024², the same with previews", lambda row: f"{row['1024']['with_previews_ms']:.0f} ms"),
    (f"{QUEUED} queued, 512², each", lambda row: f"{row['queued_each_ms']:.0f} ms"),
    ("4 images of one request, 512²", lambda row: f"{row['four_in_one_ms']:.0f} ms"),
    (f"{CALLERS} callers at once, images a minute", lambda row: f"{row['callers_images_a_minute']:.0f}"),
    ("8 bits, first use", lambda row: f"{row['8_bits']['first_s']:.1f} s"),
    ("8 bits, 512²", lambda row: f"{row['8_bits']['image_ms']:.0f} ms"),
    ("4 bits, first use", lambda row: f"{row['4_bits']['first_s']:.1f} s"),
    ("4 bits, 512²", lambda row: f"{row['4_bits']['image_ms']:.0f} ms"),
    ("`low_ram`, 512²", lambda row: f"{row['low_ram_ms']:.0f} ms"),
)


if __name__ == "__main__":
    main()
