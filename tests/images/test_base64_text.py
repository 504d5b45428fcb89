"""Files as text: in slices, with the same outcome as at once."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.images import base64_text
from mflux_api.images.base64_text import NotAFile, compact_text, decode_text, encode_text

SLICES = (3, 7, 16, 1 << 20)


@given(st.binary(min_size=1, max_size=80), st.sampled_from(SLICES), st.sampled_from(["", "data:image/png;base64,"]))
def test_slices_change_nothing(data: bytes, size: int, head: str) -> None:
    text = base64.b64encode(data).decode()
    spaced = "\n".join(text[start : start + 5] for start in range(0, len(text), 5))
    written = [text, text.rstrip("="), f" {spaced}\r\n", text.replace("+", "-").replace("/", "_")]
    if head:
        written += [text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base64_text, "SLICE", size)
        assert [decode_text(head + each) for each in written] == [data] * len(written)


@given(st.binary(min_size=1, max_size=80), st.sampled_from(SLICES))
def test_slices_change_nothing_of_escaped_bytes(data: bytes, size: int) -> None:
    text = "data:image/png," + "".join(f"%{byte:02x}" for byte in data)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base64_text, "SLICE", size)
        assert decode_text(text) == data


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data:image/png,iVBORw0KGgo=", "without base64; write 'data:image/png;base64,' before base64"),
        ("data:image/png;base64", "without data"),
        ("data:image/png;base64,", "is empty"),
        ("data:" + ";base64" * 20_000, "without data"),
        ('data:"' * 20_000, "without data"),
    ],
)
def test_data_url_that_is_none_is_told_why(text: str, says: str) -> None:
    with pytest.raises(NotAFile, match=says):
        decode_text(text)


@given(st.text(st.sampled_from("aB3+=/ %\n"), max_size=24), st.sampled_from(SLICES))
def test_what_is_refused_does_not_depend_on_the_slices(text: str, size: int) -> None:
    def outcome() -> bytes | str:
        try:
            return decode_text(text)
        except NotAFile as refused:
            return str(refused)

    whole = outcome()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base64_text, "SLICE", size)
        assert outcome() == whole


@given(st.binary(max_size=100))
def test_text_of_a_file_is_base64(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base64_text, "_BYTES_SLICE", 12)
        assert encode_text(data) == base64.b64encode(data).decode()


def test_text_is_shortened_only_where_it_is_much_longer_than_its_file() -> None:
    data = bytes(5000)
    text = encode_text(data)
    assert compact_text(text, data) is None
    assert compact_text(text + " " * 20_000, data) == text
