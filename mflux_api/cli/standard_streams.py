"""The three standard streams of a command, whatever it was started with: closed ones, full disks, readers that left."""

import io
import os
import sys
from typing import Any

from mflux_api.cli.encoding import ERRORS

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class OutputFailed(Exception):
    """Standard output cannot be written; who read it has not left."""


def open_standard_streams() -> None:
    """Give this process the streams that it was started without, and a standard error that cannot fail.

    Writing to standard output raises ``OutputFailed`` from then on, and ``BrokenPipeError`` as ever.

    A closed descriptor would be the next one that is opened, a database or a lock: what anyone writes to standard error
    would go into that file.
    """
    for descriptor, (name, mode) in enumerate(_STREAMS):
        if not _is_open(descriptor):
            # The lowest that is free is this one, because those below it are open by now.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            # Not its own descriptor, which something that was imported may hold by now.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - for the life of the process
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    error, output = sys.stderr, sys.stdout
    if error is sys.__stderr__ and isinstance(error, io.TextIOWrapper):
        raw: io.FileIO = _ForgivingFile(error.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(raw, error.encoding, ERRORS, line_buffering=True, write_through=True)
    if output is sys.__stdout__ and isinstance(output, io.TextIOWrapper):
        raw = _OutputFile(output.fileno(), "w", closefd=False)
        # With PYTHONUNBUFFERED nothing is kept back.
        buffer = raw if output.write_through else io.BufferedWriter(raw)
        sys.stdout = io.TextIOWrapper(
            buffer,
            output.encoding,
            ERRORS,
            line_buffering=output.line_buffering,
            write_through=output.write_through,
        )


def discard_output() -> None:
    """Have what is still in the buffer of standard output go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class _ForgivingFile(io.FileIO):
    """A file that takes whatever is written to it: an image is worth more than the line about it."""

    def write(self, data: Any, /) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[super().write(left) or len(left) :]
        except OSError:
            # Its reader has left, or its disk is full: there is no place left to say so.
            pass
        return len(memoryview(data))


class _OutputFile(io.FileIO):
    """Standard output, whose errors say that they are its own."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            why = (error.strerror or type(error).__name__).lower()
            raise OutputFailed(f"standard output cannot be written ({why})") from None
