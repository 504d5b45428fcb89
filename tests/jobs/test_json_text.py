"""Bodies in other encodings, with halves of characters and numbers that JSON has not: read, or told what they are."""

import codecs
import gzip
import json
import time
from typing import Annotated, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from mflux_api.errors import BodyTooLarge, InvalidJSON, InvalidParameter
from mflux_api.http.a1111.dialect import IMG2IMG_FIELDS, PLAIN_FIELDS, translate
from mflux_api.http.a1111.sdapi_schemas import ExtraSingleImage
from mflux_api.jobs.json_fields import read_object
from mflux_api.jobs.json_text import SLICE_BYTES, replace_halves
from mflux_api.jobs.parse import convert
from mflux_api.jobs.request import GenerateRequest

BODY = {"prompt": "ein Haus, 家, 🏠", "seed": 7}
ENCODINGS = ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def values(data: bytes) -> Any:
    read = read_object(data, PLAIN_FIELDS)
    assert read.warnings == ()
    return read.values


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("blanks", ["", " \n\t"])
def test_body_is_read_in_every_encoding_that_json_ever_had(encoding: str, marked: bool, blanks: str) -> None:
    text = blanks + json.dumps(BODY, ensure_ascii=False)
    assert values((MARKS[encoding] if marked else b"") + text.encode(encoding)) == BODY
    assert values((MARKS[encoding] if marked else b"") + "{}".encode(encoding)) == {}


def test_large_body_in_utf_16_is_read_across_its_slices() -> None:
    image = "QUJD" * SLICE_BYTES
    text = json.dumps({"prompt": "🏠" * 9, "init_images": [image]}, ensure_ascii=False)
    for blanks in ("", " "):
        # A character of four bytes stands across a cut once.
        assert values((blanks + text).encode("utf-16"))["init_images"] == [image]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff\xfe\x00", "UTF-16"),
        (codecs.BOM_UTF16_LE + b"{\0\x3d\xd8}\0", "UTF-16"),
        ("{ ".encode("utf-16-le") + b"\0\xd8\0", "UTF-16"),
        (codecs.BOM_UTF32_LE + b"{\0\0", "UTF-32"),
        (codecs.BOM_UTF32_BE + b"\0\x11\0\0", "UTF-32"),
        ('{"prompt": "Grün"}'.encode("latin-1"), "'prompt': it is not UTF-8; send it as UTF-8"),
        (codecs.BOM_UTF8 + b"{", "truncated"),
    ],
)
def test_what_is_not_whole_is_told_with_its_encoding(data: bytes, says: str) -> None:
    with pytest.raises(InvalidJSON, match=says):
        read_object(data, PLAIN_FIELDS)


def test_text_that_grows_in_utf_8_is_refused_before_it_is_in_memory() -> None:
    data = codecs.BOM_UTF16_LE + ('{"prompt": "' + "家" * 9_000_000).encode("utf-16-le")
    with pytest.raises(BodyTooLarge):
        read_object(data, PLAIN_FIELDS)


# --- halves of characters ---


@pytest.mark.parametrize(
    "text", [r"\ud83d", r"a\uD83D b", r"\udc00", r"\ud83d\ud83d\ude00", r"\ud83d\u0041", r"\\\ud83d"]
)
@pytest.mark.parametrize(
    "body", ['{"prompt": "%s", "seed": 1}', '{"seed": 1, "prompt": "%s"}', '{"lora_files": ["%s"]}']
)
def test_half_a_character_is_named_with_its_field(text: str, body: str) -> None:
    with pytest.raises(InvalidJSON, match="lone surrogate") as refused:
        read_object((body % text).encode(), PLAIN_FIELDS)
    field = "prompt" if "prompt" in body else "lora_files"
    assert refused.value.message.startswith(f"'{field}' has a lone surrogate")
    assert refused.value.details == {"field": field}


@pytest.mark.parametrize("text", [r"\ud83d", r"\udc00"])
def test_half_a_character_in_what_is_not_known_is_skipped_as_everything_in_it(text: str) -> None:
    body = f'{{"other": {{"a": ["{text}"]}}, "more": "{text}", "prompt": "a \\\\ud83d lake"}}'
    read = read_object(body.encode(), PLAIN_FIELDS)
    assert (read.values, len(read.warnings)) == ({"prompt": "a \\ud83d lake"}, 1)
    read = read_object(f'{{"{text}": 1, "prompt": "a"}}'.encode(), PLAIN_FIELDS)
    assert (read.values, len(read.warnings)) == ({"prompt": "a"}, 1)
    styles = read_object(f'{{"tiling": "{text}", "prompt": "a"}}'.encode(), IMG2IMG_FIELDS).values
    assert styles["prompt"] == "a"


@given(st.lists(st.sampled_from([r"\ud83d", r"\ude00", r"\\", r"\"", r"\n", "u", "d83d", "a", r"\u0041"]), max_size=8))
def test_halves_are_found_as_the_standard_library_finds_them(pieces: list[str]) -> None:
    text = "".join(pieces)
    whole = json.loads(f'"{text}"')
    halves = sum(0xD800 <= ord(each) < 0xE000 for each in whole)
    mended = replace_halves(f'"{text}"'.encode())
    assert (0 if mended is None else mended.count(rb"\uFfFd")) == halves
    assert mended is None or json.loads(mended.decode()).isprintable() or "\n" in whole


def test_many_escapes_cost_no_more_than_their_bytes() -> None:
    began = time.process_time()
    for text in (rb"\ud83d\ude00" * 20_000, rb"\ud83d" * 40_000, rb"\\" * 120_000 + rb"\ud83d"):
        with pytest.raises(InvalidJSON):
            read_object(b'{"prompt": "%b' % text, PLAIN_FIELDS)
    assert time.process_time() - began < 0.5


# --- numbers ---


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("body", ['{"guidance": %s}', '{"a": 1, "guidance":%s, "b": 2}', '{"lora_scales": [1, %s]}'])
def test_number_that_json_has_not_is_named_with_its_field(number: str, body: str) -> None:
    with pytest.raises(InvalidJSON) as refused:
        read_object((body % number).encode(), PLAIN_FIELDS)
    field = "guidance" if "guidance" in body else "lora_scales"
    assert f"'{field}' is {number}, which JSON has not; send a number" in refused.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "The body is empty; send a JSON object"),
        (" \r\n", "The body is empty; send a JSON object"),
        ("prompt=a+lake&steps=4", "The body is a form"),
        ('--abc\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--abc--\r\n', "The body is a form"),
        ('{"prompt": "a", "low_ram": True}', "'low_ram' is True, which JSON has not; write true"),
        ('{"prompt": "a", "seed": None}', "'seed' is None, which JSON has not; write null"),
        ('{"prompt": "a", "seed": undefined}', "'seed' is undefined, which JSON has not; leave the field out"),
        ('{"prompt": "a", "guidance": nan}', "'guidance' is nan, which JSON has not; send a number"),
        ("{'prompt': 'a'}", "double quotes"),
        ('{"prompt": "a\nb"}', r"write a line break as \\n"),
    ],
)
def test_error_of_a_body_says_what_to_do(text: str, says: str) -> None:
    with pytest.raises(InvalidJSON, match=says):
        read_object(text.encode(), PLAIN_FIELDS)


def test_gzip_without_its_header_is_told() -> None:
    with pytest.raises(InvalidJSON, match="packed with gzip"):
        read_object(gzip.compress(b'{"prompt": "a"}'), PLAIN_FIELDS)


@pytest.mark.parametrize("text", ['{"prompt": "NaN" x}', '{"prompt": NaNa}', '{"prompt": nan}', "{NaN: 1}"])
def test_other_mistakes_are_not_taken_for_it(text: str) -> None:
    with pytest.raises(InvalidJSON) as refused:
        read_object(text.encode(), PLAIN_FIELDS)
    assert "'prompt' is NaN" not in refused.value.message


def request_of(body: bytes, *, strict: bool) -> GenerateRequest:
    read = read_object(body, IMG2IMG_FIELDS).values
    fields = read if strict else translate(read, max_images=4)
    return convert(fields, GenerateRequest, strict=strict)


@pytest.mark.parametrize("written", [b"64.0", b"6.4e1", b"64.00000", b"640E-1", b"64"])
@pytest.mark.parametrize("strict", [False, True])
def test_number_without_a_fraction_is_an_integer_however_it_is_written(written: bytes, strict: bool) -> None:
    body = b'{"prompt": "a", "width": %b, "seed": %b}' % (written, written)
    request = request_of(body, strict=strict)
    assert (request.width, request.seed) == (64, 64)
    assert isinstance(request.width, int)


@pytest.mark.parametrize(
    "written", [b"64.5", b"64.0000001", b"true", b"1e400", b'"64.5"', b'"nan"', b'"1_0"', b'"\\u0661"']
)
@pytest.mark.parametrize("strict", [False, True])
def test_number_with_a_fraction_and_what_is_not_a_number_is_refused_with_the_reason(
    written: bytes, strict: bool
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        request_of(b'{"prompt": "a", "width": %b}' % written, strict=strict)
    assert refused.value.details["field"] == "width"
    if b"." in written and not (strict and written.startswith(b'"')):
        number = float(written.strip(b'"'))
        assert f"expected a whole number, got {number}" in refused.value.message


def test_numbers_as_texts_are_taken_in_a1111s_dialect_alone() -> None:
    body = b'{"prompt": "a", "width": "64", "height": "64.0", "batch_size": 2.0, "n_iter": "2.0", "steps": " 4 "}'
    request = request_of(body, strict=False)
    assert (request.width, request.height, request.num_images, request.steps) == (64, 64, 4, 4)
    with pytest.raises(InvalidParameter, match="expected int, got str"):
        request_of(b'{"prompt": "a", "width": "64"}', strict=True)


@attrs.frozen(kw_only=True)
class Side:
    left: Annotated[int, Meta(ge=0)] = 0


@attrs.frozen(kw_only=True)
class Nested:
    sides: Side | None = None
    many: tuple[Side, ...] = ()
    counts: Annotated[tuple[int, ...], Meta(max_length=4)] = ()
    texts: tuple[str, ...] = ()
    either: int | str = 0


@pytest.mark.parametrize("strict", [False, True])
def test_integers_inside_of_lists_and_objects_may_be_written_as_floats_too(strict: bool) -> None:
    body = {"sides": {"left": 16.0}, "many": [{"left": 1.0}], "counts": [2.0, 3], "texts": ["4.0"], "either": "5.0"}
    expected = Nested(sides=Side(left=16), many=(Side(left=1),), counts=(2, 3), texts=("4.0",), either="5.0")
    assert convert(body, Nested, strict=strict) == expected
    for wrong in ({"sides": {"left": 1.5}}, {"many": [{"left": 1.5}]}, {"counts": [1.5]}):
        with pytest.raises(InvalidParameter, match=r"expected (int|a whole number)"):
            convert(wrong, Nested, strict=strict)


def test_integers_of_extras_may_be_written_as_floats_too() -> None:
    options = {"image": "a", "resize_mode": 1.0, "upscaling_resize_w": "512.0", "seed": 3.0}
    read = convert(options, ExtraSingleImage, strict=False)
    assert (read.resize_mode, read.upscaling_resize_w, read.seed) == (1, 512, 3)
