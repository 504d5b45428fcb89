"""Forms with a file: passed on as they come, whatever the pieces, and refused where they are not forms."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.errors import InvalidParameter
from mflux_api.http.multipart import MOST_FIELD_BYTES, MOST_PARTS, Form, read_form


def part(name: str, content: bytes, file_name: str | None = None, more: str = "") -> bytes:
    of_file = f'; filename="{file_name}"' if file_name is not None else ""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{of_file}\r\n{more}\r\n'
    return head.encode() + content + b"\r\n"


def read(body: bytes, piece: int = 1 << 20, boundary: str = "x") -> tuple[Form, bytes]:
    """Return the form and the content of its file."""
    written = bytearray()

    async def main() -> Form:
        async def write(data: bytes) -> None:
            written.extend(data)

        return await read_form(pieces(), boundary, write)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), piece):
            yield body[start : start + piece]

    return trio.run(main), bytes(written)


END = b"--x--\r\n"
CONTENT = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n--", b"\r\n--y", b"z", b"-", bytes(3)]), max_size=40)


@given(content=CONTENT.map(b"".join), piece=st.integers(1, 60), first=st.booleans())
def test_file_is_passed_on_byte_by_byte_the_same(content: bytes, piece: int, first: bool) -> None:
    parts = [part("file", content, "a.safetensors"), part("name", b"my-style")]
    form, written = read(b"".join(parts if first else reversed(parts)) + END, piece)
    assert (form.file_name, form.fields, written) == ("a.safetensors", {"name": "my-style"}, content)


def test_large_file_needs_no_memory_of_its_size() -> None:
    content = bytes(range(256)) * 2**13
    assert read(part("file", content, "a") + END, 100_000) == (Form(file_name="a", fields={}), content)


def test_other_files_are_passed_over() -> None:
    form, written = read(part("preview", b"pixels", "p.png") + END)
    assert (form.file_name, written) == (None, b"")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form",
        part("file", b"cut off", "a")[:-4],
        part("file", b"whole", "a"),
        b"--x\r\n\r\ncontent\r\n" + END,
        b"--x\r\nContent-Disposition: \xff\xfe\r\n\r\n" + END,
        part("file", b"1", "a") + part("file", b"2", "b") + END,
        part("a", b"") * (MOST_PARTS + 1) + END,
        part("name", b"x" * (MOST_FIELD_BYTES + 1)) + END,
        b"--x\r\nContent-Disposition: form-data; " + b"x" * 200_000,
        b"x" * 200_000,
        b"--x\r\n" + b"A: b\r\n" * 50_000 + b"\r\n" + END,
    ],
)
@pytest.mark.parametrize("piece", [997, 1 << 20])
def test_what_is_not_such_a_form_is_refused(body: bytes, piece: int) -> None:
    with pytest.raises(InvalidParameter) as refused:
        read(body, piece)
    assert refused.value.details["field"] == "file"


@pytest.mark.parametrize(
    ("body", "says", "details"),
    [
        (part("a", b"") * (MOST_PARTS + 1) + END, f"more than {MOST_PARTS} parts", {"limit_parts": MOST_PARTS}),
        (
            part("note\u202e\t" + "y" * 300, b"x" * (MOST_FIELD_BYTES + 1)) + END,
            f"field 'note\ufffd\ufffd{'y' * 57}…' has more than {MOST_FIELD_BYTES} bytes",
            {"limit_bytes": MOST_FIELD_BYTES},
        ),
        # Without a file name it is a field like any other.
        (part("file", bytes(100_000)) + END, "field 'file' has more than", {"part": "file"}),
        (b"--x\r\n" + b"A: b\r\n" * 50_000 + b"\r\n" + END, "headers of part 1 of the form are over 128 KB", {}),
    ],
    ids=["parts", "field", "file without a name", "headers"],
)
def test_what_is_too_large_in_a_form_is_named_with_its_limit(body: bytes, says: str, details: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as refused:
        read(body)
    assert says in refused.value.message
    assert refused.value.message.isprintable()
    assert refused.value.details.items() >= details.items()


@pytest.mark.parametrize("boundary", ["", "é", "x" * 201])
def test_boundary_that_is_none_is_refused(boundary: str) -> None:
    with pytest.raises(InvalidParameter, match="boundary"):
        read(END, boundary=boundary)
