"""The watchdog: silent while the end comes in time, and in no way held up by the limits it is given."""

import math
import os
import subprocess
import sys
import threading

import pytest

from mflux_api.cli.watchdog import Watchdog
from tests.support.server import clean_environment

CODE = """
import sys, time
from mflux_api.cli.watchdog import Watchdog
with Watchdog(70) as watchdog:
    watchdog.arm(60)
    watchdog.arm(float(sys.argv[1]))
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(("limit", "length", "status"), [("0.2", "30", 70), ("30", "0.2", 0)])
def test_block_that_outlasts_its_limit_ends_the_process_with_one_line(limit: str, length: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, limit, length],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.count("\n") == (1 if status else 0)
    assert done.stderr.startswith("mflux-api: the shutdown is stuck") == bool(status)


@pytest.mark.parametrize("seconds", [1e12, math.inf])
def test_infinite_limit_never_ends_the_process_and_the_thread_ends_with_the_block(seconds: float) -> None:
    with Watchdog(os.EX_SOFTWARE) as watchdog:
        watchdog.arm(seconds)
        assert any(thread.name == "watchdog" for thread in threading.enumerate())
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())
