"""How long a server takes until it answers, beside what importing its web stack alone takes in the same run.

Run: ``uv run --group dev python -m benchmarks.startup [rounds]``
"""

import statistics
import subprocess
import sys
import time

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


def main() -> None:
    """Print the medians and their ratio."""
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
    rows = [("imports of the web stack alone", f"{base:.2f} s", "")]
    rows += [(f"{name} serve, to health", f"{each:.2f} s", f"{each / base:.2f} ×") for name, each in medians.items()]
    figures = {"imports_seconds": base, "health_seconds": medians}
    report.publish(figures, Table(("", "seconds", "against the imports alone"), rows))


if __name__ == "__main__":
    main()
