"""Memory that was freed: the system has it again."""

import subprocess
import sys

import pytest

PROGRAM = """
import psutil
from mflux_api.system.heap import return_large_blocks

return_large_blocks()

def used():
    return psutil.Process().memory_full_info().uss >> 20

before = used()
for size in (6 << 20, 5 << 20, 4 << 20):
    blocks = [(bytearray(size), bytes(100_000)) for _ in range(20)]
    small = [small for _, small in blocks]
    del blocks
print(used() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what glibc keeps")
def test_large_blocks_that_were_freed_between_small_ones_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 20
