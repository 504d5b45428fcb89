"""How long a server takes until it answers and until its engine is ready, beside what importing its web stack takes.

Run: ``uv run --group dev python -m benchmarks.startup [rounds]``
"""

import json
import statistics
import subprocess
import sys
import time
import urllib.request

from benchmarks.report import Report, Table, options_parser
from benchmarks.server import running_server

BASELINE = "import trio, quart_trio, hypercorn.trio"


def seconds_to_import() -> float:
    """Time ``python -c`` with the web stack's imports."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", BASELINE], check=True)
    return time.perf_counter() - started


def seconds_to_health(command: list[str]) -> float:
    """Time from the start of a server to its first healthy answer."""
    started = time.perf_counter()
    with running_server(command):
        return time.perf_counter() - started


def seconds_to_engine(command: list[str]) -> float:
    """Time from the start of a server until its engine child has imported everything and waits for work."""
    started = time.perf_counter()
    with running_server(command) as (port, _):
        while True:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/system", timeout=30) as answer:
                (engine,) = json.loads(answer.read())["engines"]
            if engine["status"] == "ready":
                return time.perf_counter() - started
            # Each question takes time from the start that is measured.
            time.sleep(0.05)


def main() -> None:
    """Print the medians and their ratios."""
    parser = options_parser(__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    options = parser.parse_args()
    report, rounds = Report("startup", options), options.rounds
    commands = {
        "python -m mflux_api": [sys.executable, "-m", "mflux_api"],
        "uv run mflux-api": ["uv", "run", "mflux-api"],
    }
    base = statistics.median(seconds_to_import() for _ in range(rounds))
    medians = {
        name: statistics.median(seconds_to_health(command) for _ in range(rounds)) for name, command in commands.items()
    }
    engine = statistics.median(seconds_to_engine(commands["python -m mflux_api"]) for _ in range(rounds))
    rows = [("imports of the web stack alone", f"{base:.2f} s", "")]
    rows += [(f"{name} serve, to health", f"{each:.2f} s", f"{each / base:.2f} ×") for name, each in medians.items()]
    rows.append(("the same, to an engine that is ready", f"{engine:.2f} s", f"{engine / base:.2f} ×"))
    figures = {"imports_seconds": base, "health_seconds": medians, "engine_seconds": engine}
    report.publish(figures, Table(("", "seconds", "against the imports alone"), rows))


if __name__ == "__main__":
    main()
