"""A body is read by the fields that a route knows: what it holds besides costs no objects, and never a 5xx."""

import json
import tracemalloc
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import attrs
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from mflux_api.catalog import BUILT_IN
from mflux_api.errors import BodyTooLarge, InvalidJSON, InvalidParameter
from mflux_api.http.a1111 import dialect
from mflux_api.http.a1111.dialect import ALIASES, IMG2IMG_FIELDS, PLAIN_FIELDS, TXT2IMG_FIELDS, translate
from mflux_api.http.a1111.no_effect import explain
from mflux_api.http.a1111.sdapi_schemas import ExtraBatchImages, ExtraSingleImage
from mflux_api.http.routes.job_schemas import BulkCancelRequest, PruneRequest
from mflux_api.jobs import encoded_images, json_fields
from mflux_api.jobs.encoded_images import LONG_TEXT_BYTES
from mflux_api.jobs.ignored import of_request
from mflux_api.jobs.json_fields import (
    MAX_FIELD_BYTES,
    MAX_ITEMS,
    Fields,
    read_object,
)
from mflux_api.jobs.lora_tags import without_tags
from mflux_api.jobs.parse import convert, from_body
from mflux_api.jobs.request import GenerateRequest, check_fields
from mflux_api.jobs.resolve import resolve
from mflux_api.jobs.unknown_fields import MAX_NAME_LENGTH, MAX_NAMES, MAX_UNKNOWN_BYTES
from mflux_api.jobs.warnings import merge

DEMO = next(model for model in BUILT_IN if model.alias == "demo")
EXTRAS = Fields.of(ExtraBatchImages)
ALL = {
    "plain": PLAIN_FIELDS,
    "txt2img": TXT2IMG_FIELDS,
    "img2img": IMG2IMG_FIELDS,
    "single": Fields.of(ExtraSingleImage),
    "batch": EXTRAS,
    "prune": Fields.of(PruneRequest),
    "cancel": Fields.of(BulkCancelRequest),
}
EMPTY_LISTS = b"[" + b"[]," * 160_000 + b"[]]"
FEWER_EMPTY_LISTS = b"[" + b"[]," * 80_000 + b"[]]"
"""As many as fit into a small field."""


@pytest.mark.parametrize(
    "body",
    [
        b'{"unknown": %b, "prompt": "a"}',
        b'{"mask": %b, "prompt": "a"}',
        b'{"alwayson_scripts": %b, "prompt": "a"}',
        b'{"init_images": [%b], "prompt": "a"}',
    ],
)
def test_empty_lists_become_no_objects(body: bytes) -> None:
    data = body % EMPTY_LISTS
    tracemalloc.start()
    try:
        read = read_object(data, IMG2IMG_FIELDS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read.values["prompt"] == "a"
    # Each of them would be 56 bytes.
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "body",
    [b'{"init_images": %b}', b'{"lora_files": %b}', b'{"lora_scales": %b}'],
    ids=lambda body: body[2:13].decode(),
)
def test_list_is_counted_before_its_items_are_read(body: bytes) -> None:
    data = body % FEWER_EMPTY_LISTS
    tracemalloc.start()
    try:
        with pytest.raises(InvalidParameter) as caught:
            read_object(data, PLAIN_FIELDS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.details["value"] == f"more than {MAX_ITEMS}"
    assert peak < 100_000


@pytest.mark.parametrize(("field", "most"), [("init_images", 4), ("lora_files", 16), ("lora_scales", 16)])
def test_list_with_too_many_entries_is_told_with_their_number(field: str, most: int) -> None:
    with pytest.raises(InvalidParameter) as caught:
        read_object(json.dumps({field: ["a"] * (most + 1)}).encode(), PLAIN_FIELDS)
    details = caught.value.details
    assert (details["field"], details["value"], details["limit"]) == (field, most + 1, most)


@pytest.mark.parametrize("value", ["x" * MAX_FIELD_BYTES, [1.0] * (MAX_FIELD_BYTES // 4)])
@pytest.mark.parametrize("field", ["prompt", "model", "seed", "lora_files", "sd_model_checkpoint"])
def test_small_field_that_is_not_small_is_an_error_with_its_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        read_object(json.dumps({field: value}).encode(), PLAIN_FIELDS)
    assert caught.value.details["field"] == field
    assert len(str(caught.value.details)) < 500


def test_image_may_be_as_large_as_the_body() -> None:
    image = "A" * (MAX_FIELD_BYTES * 4)
    read = read_object(json.dumps({"init_images": [image]}).encode(), PLAIN_FIELDS)
    assert read.values == {"init_images": [image]}
    read = read_object(json.dumps({"imageList": [{"data": image, "name": "a"}]}).encode(), EXTRAS)
    assert read.values == {"imageList": [{"data": image, "name": "a"}]}


@pytest.mark.parametrize(
    "body",
    [
        b'{"unknown": [%b]}' % (b"[]," * 300_000),
        b'{"init_images": [%b]}' % (b'"a",' * 300_000),
        b"{%b}" % (b'"seed":0,' * 200_000),
        b"{%b}" % (b" " * 3_000_000),
        b'{"unknown": "%b"}' % (b"\\u0041" * 3_000_000),
        b'{"unknown": "%b"}' % ("é".encode() * 300_000),
    ],
    ids=["lists", "texts", "keys", "blanks", "escapes", "letters"],
)
def test_large_body_that_is_not_base64_is_refused_before_it_is_decoded(body: bytes) -> None:
    with pytest.raises(BodyTooLarge, match="not base64"):
        read_object(body, IMG2IMG_FIELDS)


@pytest.mark.parametrize("between", [b"", b"\\n", b"\\r\\n"])
@pytest.mark.parametrize("letter", [b"+", b"\\u002B", b"\\/"])
def test_base64_is_taken_as_encoders_write_it(between: bytes, letter: bytes) -> None:
    """With an escaped line break after each 76 letters, and one letter of each 64 escaped, as PHP and .NET do."""
    line = (b"A" * 63 + letter) + b"A" * 12 + between
    text = read_object(b'{"init_images": ["%b"]}' % (line * 20_000), PLAIN_FIELDS).values["init_images"]
    assert text == [json.loads(b'"%b"' % line) * 20_000]


def test_large_text_with_a_letter_beyond_base64_is_an_error_of_its_field() -> None:
    body = '{"init_images": ["%s"]}' % ("A" * LONG_TEXT_BYTES + "🐈")
    with pytest.raises(InvalidParameter, match="base64 or a data URL"):
        read_object(body.encode(), PLAIN_FIELDS)


def test_large_image_is_in_memory_twice_at_most() -> None:
    body = bytearray(b'{"prompt": "a", "unknown": 1, "init_images": ["%b"]}' % (b"QUJD" * 2**20))
    tracemalloc.start()
    try:
        read = read_object(body, PLAIN_FIELDS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read.values["init_images"] == ["QUJD" * 2**20]
    # Beside the body itself: the text, which grows by a quarter at a time.
    assert peak < 1.3 * len(body)


PIECES = ["A", "A" * 12, "A" * 30, "\\\\", "\\n", "\\/", '\\"', "\\u002B", "\\ud83d\\ude00"]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=30).map("".join))
def test_long_text_is_the_same_however_it_is_sliced(text: str) -> None:
    body = f'{{"init_images": ["{text}"]}}'.encode()
    whole = json.loads(f'"{text}"')
    with (
        patch.object(json_fields, "LONG_TEXT_BYTES", 4),
        patch.multiple(encoded_images, SLICE_BYTES=7, _SEARCHED_BYTES=14),
    ):
        if whole.isascii():
            assert read_object(body, PLAIN_FIELDS).values["init_images"] == [whole]
        else:
            with pytest.raises(InvalidParameter, match="base64 or a data URL"):
                read_object(body, PLAIN_FIELDS)


def test_last_of_several_fields_with_one_name_counts() -> None:
    assert read_object(b'{"seed": 1, "seed": [], "seed": 3}', PLAIN_FIELDS).values == {"seed": 3}


@pytest.mark.parametrize("data", [b'{"a":' * 100_000, b'{"prompt":' + b"[" * 100_000, b'{"mask":' + b"[" * 100_000])
def test_nesting_that_is_too_deep_is_an_error_in_what_is_skipped_also(data: bytes) -> None:
    with pytest.raises(InvalidJSON, match="too deeply"):
        read_object(data, IMG2IMG_FIELDS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"prompt": "\xc3"}', "'prompt': it is not UTF-8"),
        (b'{"prompt": "\\udc00"}', "surrogate"),
        (b'{"unknown": 01}', "malformed"),
        (b'{"init_images": ["\xc3"]}', "'init_images': it is not UTF-8"),
    ],
)
def test_what_is_not_json_is_told_with_its_place(data: bytes, says: str) -> None:
    with pytest.raises(InvalidJSON, match=says):
        read_object(data, PLAIN_FIELDS)


@pytest.mark.parametrize("number", ["9" * 5000, "1e999", "-1e999"])
def test_number_beyond_all_types_is_an_error_of_its_field(number: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        read_object(b'{"seed": %b}' % number.encode(), PLAIN_FIELDS)
    assert caught.value.details["field"] == "seed"


# --- warnings ---


def test_fields_that_are_not_known_are_named() -> None:
    read = read_object(b'{"prompt": "a", "url": "http://a", "auth": {"b": [1]}}', PLAIN_FIELDS)
    assert read.warnings == ("'url', 'auth' are not known here, and were ignored",)


def test_unknown_field_is_named_however_little_room_it_takes_in_a_body_without_blanks() -> None:
    body = {"prompt": "a", "seed": 1, "model": "demo", "width": 64, "height": 64, "low_ram": True, "x": 1}
    read = read_object(json.dumps(body, separators=(",", ":")).encode(), PLAIN_FIELDS)
    assert read.warnings == ("'x' is not known here, and was ignored",)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("stpes", "steps"),
        ("Steps", "steps"),
        ("promt", "prompt"),
        ("negativePrompt", "negative_prompt"),
        ("num-images", "num_images"),
        ("guidance_scale", "guidance"),
        ("num_inference_steps", "steps"),
        ("init_image", "init_images"),
        ("cfgscale", "cfg_scale"),
        ("samplr_name", "sampler_name"),
        ("lora_name", "lora_files"),
        ("lora_paths", "lora_files"),
        ("loraWeights", "lora_scales"),
        ("lora_strength", "lora_scales"),
    ],
)
def test_misspelled_field_is_told_with_what_was_meant(name: str, meant: str) -> None:
    (warning,) = read_object(json.dumps({"prompt": "a", name: 3}).encode(), IMG2IMG_FIELDS).warnings
    assert warning == f"'{name}' is not known: did you mean '{meant}'?"


def test_value_of_an_unknown_field_is_not_told_and_its_name_can_be_shown() -> None:
    read = read_object(b'{"prompt": "a", "sec\\u202eret\\n": "my password", "seeds": "another"}', PLAIN_FIELDS)
    assert read.warnings == (
        "'seeds' is not known: did you mean 'seed'?",
        "'sec\ufffdret\ufffd' is not known here, and was ignored",
    )


def test_unknown_field_inside_of_a_known_one_is_named_with_both() -> None:
    body = {"imageList": [{"data": "a", "nmae": "b"}, {"data": "a", "nmae": "c", "x": []}]}
    assert read_object(json.dumps(body).encode(), EXTRAS).warnings == (
        "'imageList.nmae' is not known: did you mean 'imageList.name'?",
        "'imageList.x' is not known here, and was ignored",
    )


def test_known_fields_have_no_warning() -> None:
    body = dict.fromkeys(TXT2IMG_FIELDS.names(), None)
    assert read_object(json.dumps(body, indent=8).encode(), TXT2IMG_FIELDS).warnings == ()


def test_unknown_field_that_is_null_is_no_warning() -> None:
    assert read_object(b'{"prompt": "a", "refiner": null, "url" :  null }', PLAIN_FIELDS).warnings == ()


def test_images_of_txt2img_are_named_as_ignored() -> None:
    assert "'init_images'" in read_object(b'{"prompt": "a", "init_images": ["b"]}', TXT2IMG_FIELDS).warnings[0]


def test_many_and_long_names_are_cut() -> None:
    body = {f"{n} " + "n" * 500: n for n in range(100)}
    (warning,) = read_object(json.dumps(body).encode(), PLAIN_FIELDS).warnings
    assert len(warning) < MAX_NAMES * (MAX_NAME_LENGTH + 4) + 100
    assert warning.endswith(f"and {100 - MAX_NAMES} more are not known here, and were ignored")


def test_much_that_is_not_known_is_told_by_its_size() -> None:
    many = json.dumps({f"a{number:05}": 1 for number in range(2 * MAX_UNKNOWN_BYTES // 12)})
    (warning,) = read_object(many.encode(), PLAIN_FIELDS).warnings
    assert warning == "138 KB of the body are in no field that this endpoint knows; they were ignored"


def test_unknown_fields_are_named_beside_a_large_one() -> None:
    body = b'{"prompt": "a", "controlnet_image": "%b", "stpes": 3}' % (b"x" * 10 * MAX_UNKNOWN_BYTES)
    assert read_object(body, PLAIN_FIELDS).warnings == (
        "'stpes' is not known: did you mean 'steps'?",
        "'controlnet_image' is not known here, and was ignored",
    )


def test_names_that_are_not_utf_8_are_a_warning() -> None:
    assert "not UTF-8" in read_object(b'{"\xc3": 1}', PLAIN_FIELDS).warnings[0]


# --- any body ---

TEXTS = st.text(max_size=20) | st.sampled_from(["7", "7.5", "nan", "demo", "seedvr2", "\x00", "<lora:a:1>", "<lora:"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
NAMES = st.sampled_from(sorted(set().union(*(fields.names() for fields in ALL.values())))) | TEXTS
BODIES = st.dictionaries(NAMES, JSON, max_size=8)


def refusal(route: str, data: bytes) -> InvalidJSON | InvalidParameter | None:
    """Read a body to the end of what its route does with it; return why it is refused."""
    try:
        read_as_route(route, data)
    except (InvalidJSON, InvalidParameter) as error:
        event(f"{route}: {error.details.get('field', error.code)}")
        return error
    return None


def read_as_route(route: str, data: bytes) -> None:
    values = read_object(data, ALL[route]).values
    match route:
        case "single":
            convert(values, ExtraSingleImage, strict=False)
        case "batch":
            convert(values, ExtraBatchImages, strict=False)
        case "prune":
            convert(values, PruneRequest)
        case _:
            a1111 = route != "plain" and dialect.speaks_a1111(values)
            fields = translate(values, max_images=4) if a1111 else dict(values)
            if a1111:
                said = (*dialect.snap_size(fields), *dialect.explain_conflicts(values, fields), *explain(values))
                assert len(said) < 40
            request = from_body(
                fields,
                upscales=lambda name: name == "seedvr2",
                strict=not a1111,
                aliases=dialect.DIALECT_ALIASES if a1111 else ALIASES,
            ).request
            check_fields(request, max_images=4)
            without_tags(request)
            runs = resolve(request, DEMO, default_steps=4)
            assert runs.num_images <= 4
            assert len(merge(of_request(request, DEMO, runs))) < 10


@given(st.sampled_from(sorted(ALL)), BODIES)
@example("batch", {"imageList": [{"data": [1], "name": {"a": 1}}, 5, None, []]})
@example("img2img", {"override_settings": {"sd_model_checkpoint": {"a": []}}, "batch_size": [], "n_iter": {}})
def test_any_body_is_read_or_refused_with_a_typed_error(route: str, body: dict[str, Any]) -> None:
    error = refusal(route, json.dumps(body).encode())
    assert error is None or (error.code, error.details["field"] != "") == ("INVALID_PARAMETER", True)
    assert error is None or len(str(error.details)) < 1000


@given(st.sampled_from(sorted(ALL)), st.binary(max_size=60) | BODIES.map(lambda body: json.dumps(body).encode()[:-3]))
def test_any_bytes_are_read_or_refused_with_a_typed_error(route: str, data: bytes) -> None:
    error = refusal(route, data)
    assert error is None or error.status == 400


ORDINARY: Mapping[str, st.SearchStrategy[Any]] = {
    "prompt": st.text(min_size=1, max_size=40),
    "negative_prompt": st.none() | TEXTS,
    "model": st.none() | TEXTS,
    "seed": st.none() | st.integers(-1, 2**53 - 5),
    "steps": st.none() | st.integers(1, 200),
    "guidance": st.none() | st.floats(0, 30) | st.integers(0, 30),
    "lora_files": st.none() | st.lists(TEXTS, max_size=16),
    "lora_scales": st.none() | st.lists(st.floats(0, 2), max_size=16),
    "low_ram": st.booleans(),
    "init_images": st.lists(TEXTS, max_size=4),
    "sd_model_checkpoint": st.none() | TEXTS,
    "denoising_strength": st.none() | st.floats(0, 1),
}


@given(st.fixed_dictionaries({}, optional=ORDINARY), st.dictionaries(TEXTS, JSON, max_size=3))
def test_ordinary_bodies_are_read_as_they_stand(body: dict[str, Any], unknown: dict[str, Any]) -> None:
    unknown = {name: value for name, value in unknown.items() if name not in PLAIN_FIELDS.names()}
    asked = [value for value in unknown.values() if value is not None]
    read = read_object(json.dumps({**unknown, **body}).encode(), PLAIN_FIELDS)
    assert read.values == body
    assert bool(read.warnings) == bool(asked)


def test_body_becomes_the_request_that_it_says() -> None:
    data = b"""{"prompt": " a lake ", "seed": 7, "num_images": 2, "width": null, "lora_files": ["ink"],
        "lora_scales": [0.5], "denoising_strength": 0.25, "sd_model_checkpoint": "demo", "init_images": ["aa", "bb"]}"""
    read = read_object(data, PLAIN_FIELDS)
    assert from_body(read.values, upscales=lambda name: False, aliases=ALIASES).request == GenerateRequest(
        prompt="a lake",
        seed=7,
        num_images=2,
        lora_files=("ink",),
        lora_scales=(0.5,),
        image_strength=0.25,
        model="demo",
        init_images=("aa", "bb"),
    )
    assert attrs.fields_dict(GenerateRequest).keys() <= PLAIN_FIELDS.names()
