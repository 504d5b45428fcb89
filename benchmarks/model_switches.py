"""The memory of the server and all its children after two and after ten switches between two models.

The budget has room for one of them, so each switch evicts. PSS (Linux) counts shared pages once; elsewhere RSS is used.

Run: ``uv run --group dev python -m benchmarks.model_switches [switches]``
"""

import http.client
import json
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.checkpoints import MEDIUM, write
from benchmarks.report import Report, Table, options_parser
from benchmarks.server import running_server

SIDE = 128
FIRST = 2
ALLOWED_SHARE, ALLOWED_BYTES = 0.05, 50e6


def tree_bytes(root: psutil.Process) -> int:
    """Sum the memory of a process and everything below it."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        info = process.memory_full_info()
        total += getattr(info, "pss", 0) or info.rss
    return total


def generate(port: int, model: str) -> None:
    """Generate one small image and wait for it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"prompt": "a lake", "model": model, "width": SIDE, "height": SIDE, "steps": 1, "seed": 1}
    connection.request("POST", "/sdapi/v1/txt2img", json.dumps(body))
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {text[:500]!r}")


def main() -> None:
    """Print the memory after every switch; exit with 1 when it grew by more than is allowed."""
    parser = options_parser(__doc__)
    parser.add_argument("switches", type=int, nargs="?", default=10)
    options = parser.parse_args()
    report, switches = Report("model_switches", options), options.switches
    after: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = [write(Path(folder) / name, MEDIUM, seed) for seed, name in enumerate("ab")]
        # On a CPU the weights are computed with in float32: twice the file.
        config = Path(folder) / "config.toml"
        entries = "".join(
            f'[[models.custom]]\nname = "{name}"\nbase = "flux2-klein-4b"\npath = "{name}"\n' for name in "ab"
        )
        config.write_text(f"[memory]\nbudget_gb = {2.2 * max(sizes):.3f}\n{entries}", "utf-8")
        with running_server(arguments=["--config", str(config)]) as (port, server):
            generate(port, "b")
            for number in range(switches):
                generate(port, "ab"[number % 2])
                time.sleep(1.5)
                after.append(tree_bytes(psutil.Process(server)))
    early, late = after[FIRST - 1], after[-1]
    allowed = early * (1 + ALLOWED_SHARE) + ALLOWED_BYTES
    note = f"after {len(after)} / after {FIRST}: {late / early:.3f} (allowed: {allowed / early:.3f})"
    rows = [(number, f"{memory / 1e6:.1f} MB") for number, memory in enumerate(after, 1)]
    report.publish({"bytes_after": after, "allowed": allowed}, Table(("after switch", "memory"), rows), notes=[note])
    if late > allowed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
