"""Paths that cross a pipe, also those that no text can hold."""

import os
from pathlib import Path

import pytest

from mflux_api.images.child.protocol import ORDER_TYPES, CheckLora
from mflux_api.ipc import frames
from mflux_api.ipc.paths import path_of, path_text


@pytest.mark.parametrize("name", [b"ink", "é ü".encode(), b"latin-\xff", b"line\nbreak", b"bytes:ff"])
def test_path_comes_out_of_a_frame_as_it_went_in(name: bytes) -> None:
    """An upload into a folder whose name is not UTF-8 was an internal error."""
    path = Path("/loras") / os.fsdecode(name)
    frame = frames.encode(CheckLora(path=path_text(path)))
    header = frames.decode_header(frame[frames.PREFIX_LENGTH :], ORDER_TYPES)
    assert path_of(header.frame.path) == path


def test_path_that_a_text_can_hold_is_that_text() -> None:
    assert path_text(Path("/loras/é.safetensors")) == "/loras/é.safetensors"
