"""The decoder's child: takes one order after another, does it, and ends with its parent.

Started as ``python -P -m mflux_api.images.child.worker`` by :mod:`mflux_api.images.child.client`. What it does with an
order is in the modules beside it.
"""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from mflux_api.errors import ServiceError
from mflux_api.images.child import limits
from mflux_api.images.child import protocol as p
from mflux_api.ipc.child_pipe import ChildPipe, take_standard_streams
from mflux_api.system.heap import return_large_blocks

Done = tuple[p.Result, Sequence[bytes]]


class Worker:
    """Does orders within bounds that count anew for each part of an order."""

    def __init__(self, pipe: ChildPipe, cpu_seconds: int, wall_seconds: int) -> None:
        self._pipe = pipe
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._index = 0

    def serve(self) -> None:
        """Take orders until the parent is gone, which ends the process."""
        self._pipe.write(p.Ready())
        while True:
            order, blobs = self._pipe.read_frame()
            with limits.end_with_parent(self._pipe.incoming):
                result, made = self._answer(order, blobs)
            del blobs
            self._pipe.write(result, made)
            # Not kept while the child waits for the next order.
            del order, result, made

    def begin(self, index: int) -> None:
        """Begin with a part of the order."""
        self._index = index
        limits.bound_next(self._cpu_seconds, self._wall_seconds)
        self._pipe.write(p.Working(index=index))

    def _answer(self, order: Any, blobs: tuple[bytes, ...]) -> tuple[Any, Sequence[bytes]]:
        self.begin(0)
        try:
            return perform(order, blobs, self.begin)
        except ServiceError as error:
            return p.OrderFailed(code=error.code, message=error.message, details=dict(error.details)), ()
        except MemoryError:
            return p.OutOfBounds(index=self._index, problem=p.TOO_MUCH_MEMORY), ()
        except Exception as error:  # noqa: BLE001 - one order must not cost the child
            print(f"a defect: {error!r}", file=sys.stderr)  # noqa: T201 - the parent's debug log
            return p.OutOfBounds(index=self._index, problem="cannot be decoded"), ()


def perform(order: p.Order, blobs: Sequence[bytes], begin: Callable[[int], None]) -> Done:
    """Do an order.

    Args:
        order: what to do.
        blobs: the bytes that belong to it.
        begin: called with its index before each part of the order.

    Raises:
        ServiceError: it cannot be done.
    """
    # Pillow is imported when the limits are set.
    from mflux_api.images.child import lora_header, metadata, performing

    match order:
        case p.CheckImages():
            return performing.check_images(order, blobs, begin)
        case p.PrepareReferences():
            return performing.prepare_references(order, blobs, begin)
        case p.CheckMask():
            return performing.check_mask(order, blobs)
        case p.PrepareInpainting():
            return performing.prepare_inpainting(order, blobs, begin)
        case p.PrepareSource():
            return performing.prepare_source(order, blobs)
        case p.ComposeExtras():
            return performing.compose_extras(order, blobs)
        case p.ConvertImage():
            return performing.convert_image(order, blobs)
        case p.ReadMetadata():
            return metadata.read_metadata(order, blobs)
        case p.CheckLora():
            return lora_header.check_lora(order), ()
        case p.DescribeLoras():
            return lora_header.describe_loras(order, begin), ()
        case _:
            raise TypeError(f"no order is called {type(order).__name__}")


def _silence_libraries() -> None:
    """Let what codecs print go nowhere: libtiff has a line for each strip, Pillow one for each tag. Defects go out."""
    warnings.simplefilter("ignore")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)


def main() -> None:
    """Set up the pipe and the limits before anything reads a byte, then import the decoders, then serve."""
    pipe = take_standard_streams(p.ORDER_TYPES)
    memory_bytes, cpu_seconds, wall_seconds = map(int, sys.argv[1:4])
    limits.confine(memory_bytes)
    return_large_blocks()
    # Now and not in an order's time.
    import mflux_api.images.child.lora_header
    import mflux_api.images.child.performing  # noqa: F401

    _silence_libraries()
    Worker(pipe, cpu_seconds, wall_seconds).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
