"""LoRA files by their headers, with the rules of the engine's reader: one that was uploaded, and those of a list."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from mflux_api.catalog.lora_layers import describe
from mflux_api.catalog.safetensors_rules import Header, SafetensorsRuleError, read_file
from mflux_api.images.child import protocol as p
from mflux_api.ipc.paths import path_of
from mflux_api.system.regular_files import NotRegularFile, open_regular

ORDER_SECONDS = 1.0
"""After which no further file of an order is begun: images of other callers wait behind it."""


class _Unreadable(Exception):
    """The message is a clause that says why."""


def check_lora(order: p.CheckLora) -> p.LoraChecked:
    """Check that the header can be read and that the tensors fill the file to its last byte.

    Raises:
        InvalidParameter: they do not, or it breaks another rule.
    """
    try:
        _, size = _read(path_of(order.path))
    except _Unreadable as error:
        raise p.lora_error(str(error)) from None
    return p.LoraChecked(size=size)


def describe_loras(order: p.DescribeLoras, begin: Callable[[int], None]) -> p.LorasDescribed:
    """Say what the first files of an order hold; one that cannot be read hides no other."""
    began, found = time.monotonic(), list[p.DescribedLora]()
    for index, path in enumerate(order.paths):
        if index and time.monotonic() - began > ORDER_SECONDS:
            break
        begin(index)
        found.append(_describe(path_of(path)))
    return p.LorasDescribed(found=tuple(found))


def _describe(path: Path) -> p.DescribedLora:
    try:
        header, _ = _read(path)
    except _Unreadable as error:
        return p.DescribedLora(problem=str(error))
    return p.DescribedLora(describe(header))


def _read(path: Path) -> tuple[Header, int]:
    """Return the header of a file and how large the file is.

    Raises:
        _Unreadable: it breaks a rule, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return read_file(file, size), size
    except SafetensorsRuleError as error:
        raise _Unreadable(str(error)) from None
    except NotRegularFile:
        raise _Unreadable("it is not a file") from None
    except OSError:
        raise _Unreadable("it cannot be read") from None
