"""A decoder's child whose orders do what their text says: what no file does on demand."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mflux_api.errors import InvalidParameter
from mflux_api.images.child import protocol as p
from mflux_api.images.child import worker
from mflux_api.images.child.client import DecoderOptions

SMALL = DecoderOptions(
    command=(sys.executable, str(Path(__file__).resolve())), cpu_seconds=1, wall_seconds=2, memory_bytes=160 * 2**20
)
"""Limits that a test reaches soon."""


def act(order: p.Order, blobs: Sequence[bytes], begin: Callable[[int], None]) -> worker.Done:
    for index, blob in enumerate(blobs):
        begin(index)
        match blob.decode():
            case "spin":
                while True:
                    pass
            case "work":
                end = time.process_time() + 0.4
                while time.process_time() < end:
                    pass
                return p.ImagesChecked(sizes=((4, os.getpid()),)), ()
            case "hang":
                threading.Event().wait()
            case "grow":
                held = list[bytes]()
                while True:
                    held.append(b"x" * 2**25)
            case "crash":
                os.abort()
            case "raise":
                raise ZeroDivisionError
            case "variables":
                raise InvalidParameter("; ".join(os.environ))
            case text:
                return p.ImagesChecked(sizes=((len(text), os.getpid()),)), ()
    raise AssertionError("no blob was given")


if __name__ == "__main__":
    worker.perform = act
    worker.main()
