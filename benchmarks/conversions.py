"""How long one client's PNG takes while another client asks for 24 conversions of one 2048 × 2048 image.

Run: ``uv run --group dev python -m benchmarks.conversions``
"""

import base64
import http.client
import json
import os
import threading
import time
from io import BytesIO

from PIL import Image

from benchmarks.report import Report, Table, options_parser
from benchmarks.server import running_server

SIDE = 2048
CONVERSIONS = [f"?format=webp&quality={quality}" for quality in range(60, 84)]


def main() -> None:
    """Print how long a PNG takes alone and beside the conversions, and how long those take."""
    report = Report("conversions", options_parser(__doc__).parse_args())
    with running_server() as (port, _):
        path = f"/api/v1/jobs/{generate(port, large_image())}/images/0"
        alone = [seconds(port, path) for _ in range(5)]
        started = time.perf_counter()
        threads = [threading.Thread(target=seconds, args=(port, path + query)) for query in CONVERSIONS]
        for thread in threads:
            thread.start()
        beside = list[float]()
        while any(thread.is_alive() for thread in threads):
            beside.append(seconds(port, path))
        whole = time.perf_counter() - started
        again = seconds(port, path + CONVERSIONS[-1])
    rows = [
        (f"PNG alone, {len(alone)} times", f"{max(alone) * 1000:.0f} ms"),
        (f"PNG beside the {len(CONVERSIONS)} conversions, {len(beside)} times", f"{max(beside) * 1000:.0f} ms"),
    ]
    note = f"All {len(CONVERSIONS)} conversions: {whole:.1f} s; one of them again: {again * 1000:.0f} ms"
    figures = {"alone_seconds": alone, "beside_seconds": beside, "conversions_seconds": whole, "again_seconds": again}
    report.publish(figures, Table(("", "slowest"), rows), notes=[note])


def large_image() -> dict[str, object]:
    """Return a request whose result is large and soon done: a corner of an image of noise is inpainted."""
    coarse = Image.frombytes("RGB", (SIDE // 4, SIDE // 4), os.urandom(3 * (SIDE // 4) ** 2))
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 0, 64, 64))
    body = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1, "inpaint_full_res": True}
    return {**body, "init_images": [encoded(coarse.resize((SIDE, SIDE)))], "mask": encoded(mask)}


def encoded(image: Image.Image) -> str:
    """Return an image as base64 PNG."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def seconds(port: int, path: str) -> float:
    """Return how long an image takes to come."""
    started = time.perf_counter()
    get(port, path)
    return time.perf_counter() - started


def generate(port: int, body: dict[str, object]) -> str:
    """Generate an image, and return its job's id."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/api/v1/generate", json.dumps(body))
    job = str(json.loads(connection.getresponse().read())["job_id"])
    connection.close()
    while True:
        status = json.loads(get(port, f"/api/v1/jobs/{job}?images=url"))
        if status["status"] == "completed":
            return job
        if status["status"] in ("failed", "cancelled"):
            raise SystemExit(f"the job ended: {status['error']}")
        time.sleep(0.2)


def get(port: int, path: str) -> bytes:
    """Return what a path answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path} answered {answer.status}")
    return data


if __name__ == "__main__":
    main()
