"""What the decoder's child holds itself to."""

import os
import signal
import subprocess
import sys

from mflux_api.images.child import limits

_CONFINED = """
import resource
from mflux_api.images.child.limits import confine
confine(1 << 30)
print(*(resource.getrlimit(each)[0] for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_AS)))
"""


def test_confined_process_has_few_descriptors_no_core_and_bounded_memory() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _CONFINED], capture_output=True, text=True, check=True)
    files, core, memory = map(int, done.stdout.split())
    assert files == 64
    assert core == 0
    if sys.platform != "darwin":
        assert 1 << 30 <= memory <= 2 << 30


def test_limits_of_an_order_end_with_it() -> None:
    """An alarm that was left would kill a child at rest, and the next order would wait for another."""
    incoming, outgoing = os.pipe()
    try:
        signal.alarm(600)
        with limits.end_with_parent(incoming):
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    finally:
        signal.alarm(0)
        os.close(incoming)
        os.close(outgoing)
