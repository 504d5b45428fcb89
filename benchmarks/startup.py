"""How long a server takes until it answers, beside what importing its web stack alone takes in the same run.

Run: ``uv run --group dev python -m benchmarks.startup [rounds]``
"""

import statistics
import subprocess
import sys
import time

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
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    commands = {
        "python -m mflux_api": [sys.executable, "-m", "mflux_api"],
        "uv run mflux-api": ["uv", "run", "mflux-api"],
    }
    base = statistics.median(seconds_to_import() for _ in range(rounds))
    print(f"{'imports of the web stack alone':<34} {base:.2f} s")
    for name, command in commands.items():
        median = statistics.median(seconds_to_health(command) for _ in range(rounds))
        print(f"{name + ' serve, to health':<34} {median:.2f} s   +{median - base:.2f} s   {median / base:.2f} ×")


if __name__ == "__main__":
    main()
