"""Forms in the place of JSON: ``curl -F`` with files, as clients and by hand."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests import Request

from mflux_api.errors import BodyTooLarge, InvalidParameter
from mflux_api.http.a1111.dialect import IMG2IMG_FIELDS, PLAIN_FIELDS
from mflux_api.http.form import MOST_PARTS, MOST_TEXT_BYTES, read_form
from tests.support.sample_images import scene, to_base64
from tests.support.scripted_api import scripted_api

BOUNDARY = "b0undary"


def form(*parts: tuple[str, bytes | str, str | None]) -> bytes:
    body = b""
    for name, content, file in parts:
        head = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        data = content.encode() if isinstance(content, str) else content
        body += f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + data + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def read(*parts: tuple[str, bytes | str, str | None]) -> dict[str, Any]:
    return read_form(form(*parts), BOUNDARY, PLAIN_FIELDS).values


def test_texts_are_read_by_their_field_and_files_become_base64() -> None:
    values = read(
        ("prompt", "ein Haus, 猫", None),
        ("steps", "4", None),
        ("low_ram", "true", None),
        ("lora_files", "a", None),
        ("lora_files[]", "b", None),
        ("lora_scales", "[0.5, 1]", None),
        ("extend", '{"left": 16, "top": null}', None),
        ("init_images", b"\x89PNG", "a.png"),
        ("init_images", base64.b64encode(b"GIF8"), None),
        ("mask", b"\xff\xd8\r\n--b0und", "m.jpg"),
        ("negative_prompt", "", None),
        ("seed", "", None),
    )
    assert values == {
        "prompt": "ein Haus, 猫",
        "steps": "4",
        "low_ram": "true",
        "lora_files": ["a", "b"],
        "lora_scales": [0.5, 1],
        "extend": {"left": 16, "top": None},
        "init_images": [base64.b64encode(b"\x89PNG").decode(), base64.b64encode(b"GIF8").decode()],
        "mask": base64.b64encode(b"\xff\xd8\r\n--b0und").decode(),
        "negative_prompt": "",
        "seed": None,
    }


def raw(*parts: bytes, boundary: str = BOUNDARY) -> dict[str, Any]:
    """The fields of parts that come with their headers."""
    lines = b"".join(f"--{boundary}\r\n".encode() + part + b"\r\n" for part in parts)
    return read_form(lines + f"--{boundary}--".encode(), boundary, PLAIN_FIELDS).values


PROMPT = b'Content-Disposition: form-data; name="prompt"'


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        # .NET's HttpClient, Dart's http, aiohttp, and RFC 2046's own ways to write it.
        (b"Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=prompt\r\n\r\na", "a"),
        (b'content-disposition: form-data; name="prompt"\r\ncontent-transfer-encoding: binary\r\n\r\na', "a"),
        (b"Content-Length: 1\r\n" + PROMPT + b"\r\n\r\na", "a"),
        (PROMPT + b"\r\n\r\n", ""),
        (PROMPT + b"\r\n\r\na\r\n--b0undary2\r\n--b0undary x", "a\r\n--b0undary2\r\n--b0undary x"),
        (PROMPT + b"\r\n\r\n\r\n", "\r\n"),
    ],
)
def test_part_is_read_as_clients_write_it(part: bytes, expected: str) -> None:
    assert raw(part) == {"prompt": expected}


def test_what_is_around_the_parts_and_blanks_behind_a_boundary_are_passed_over() -> None:
    data = b"before\r\n--b0undary \t\r\n" + PROMPT + b"\r\n\r\na\r\n--b0undary--\r\nbehind\r\n--b0undary\r\n"
    assert read_form(data, BOUNDARY, PLAIN_FIELDS).values == {"prompt": "a"}


def test_boundary_may_have_letters_that_mean_something_elsewhere() -> None:
    assert raw(PROMPT + b"\r\n\r\na", boundary="(.*)+?:'=") == {"prompt": "a"}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (PROMPT + b"\r\nContent-Transfer-Encoding: base64\r\n\r\nYQ==", "without Content-Transfer-Encoding"),
        (b"\r\na", "1 to 16 headers"),
        (PROMPT + b"\r\n" + b"A: b\r\n" * 16 + b"\r\na", "1 to 16 headers"),
        (b"Content-Disposition: form-data\r\n\r\na", "Content-Disposition: form-data"),
        (b'Content-Disposition: attachment; name="prompt"\r\n\r\na', "Content-Disposition: form-data"),
    ],
)
def test_part_that_cannot_be_read_is_never_passed_over(part: bytes, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        raw(part, PROMPT + b"\r\n\r\nb")


def test_field_for_files_that_was_left_empty_is_absent() -> None:
    empty = b'name="%s"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n'
    parts = [b"Content-Disposition: form-data; " + empty % name for name in (b"init_images", b"mask")]
    assert raw(*parts) == {"mask": None}


@pytest.mark.parametrize(
    ("head", "content", "most"),
    [
        ('name="init_images"; filename="a"', b"\r\n" * 2**22, 1.8),
        ('name="init_images"', b"A" * 2**23, 1.5),
        ('name="init_images"', b"A" * 2**23 + "😀".encode(), 1.5),
        ('name="init_images"', b'["' + b"A" * 2**23 + b'"]', 1.5),
        ('name="init_images"', b"[" + b"[]," * 2**21 + b"[]]", 0.3),
        ('name="prompt"', b"A" * 2**23, 0.1),
        ('name="x"', b"A" * 2**23, 0.1),
    ],
)
def test_form_takes_no_more_memory_than_what_is_read_of_it(head: str, content: bytes, most: float) -> None:
    body = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content
    body += f"\r\n--{BOUNDARY}--\r\n".encode()
    tracemalloc.start()
    with suppress(InvalidParameter, BodyTooLarge):
        read_form(body, BOUNDARY, PLAIN_FIELDS)
    beside = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert beside < most * len(body)


def test_large_list_in_json_is_as_dense_as_a_json_body_may_be() -> None:
    with pytest.raises(BodyTooLarge, match="are not base64"):
        read(("init_images", b"[" + b"[]," * 2**19 + b"[]]", None))


def test_unknown_fields_are_told() -> None:
    got = read_form(form(("promt", "x", None), ("url", "y", None)), BOUNDARY, PLAIN_FIELDS)
    assert "did you mean 'prompt'" in got.warnings[0]
    assert "'url'" in got.warnings[1]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("steps", b"x", "a.png")], "a text and not a file"),
        ([("prompt", "a", None), ("prompt", "b", None)], "one part"),
        ([("prompt", b"\xff", None)], "UTF-8"),
        ([("extend", "left", None)], "JSON"),
        ([("extend", "[" * 100_000, None)], "at most 64 KB"),
        ([("extend", "{" * 10_000, None)], "JSON"),
        ([("prompt", "a" * (MOST_TEXT_BYTES + 1), None)], "at most 64 KB"),
        ([("init_images", b"x", "a")] * 5, "at most 4 entries"),
        ([(f"x{index}", "", None) for index in range(MOST_PARTS + 1)], f"at most {MOST_PARTS} parts"),
        ([("n" * 200_000, "", None)], "headers"),
    ],
)
def test_forms_that_cannot_be_are_refused_with_what_was_expected(parts: list[Any], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        read(*parts)


@pytest.mark.parametrize("cut", [0, 10, 60, -1, -4])
def test_form_that_is_cut_off_is_refused(cut: int) -> None:
    whole = form(("prompt", "a lake", None)).rstrip(b"\r\n")
    with pytest.raises(InvalidParameter, match="a whole multipart"):
        read_form(whole[:cut], BOUNDARY, PLAIN_FIELDS)


@pytest.mark.parametrize("boundary", ["", "x" * 201, "ü"])
def test_boundary_that_is_none_is_refused(boundary: str) -> None:
    with pytest.raises(InvalidParameter, match="boundary"):
        read_form(b"", boundary, PLAIN_FIELDS)


@given(st.binary(max_size=400), st.integers(0, 200_000))
def test_any_file_comes_out_as_it_went_in(content: bytes, padding: int) -> None:
    data = content + b"\r\n--b0undar" * (padding // 10_000) + bytes(padding)
    (text,) = read(("init_images", data, "a"))["init_images"]
    assert base64.b64decode(text) == data


@given(st.binary(max_size=300))
def test_any_bytes_are_a_form_or_refused(data: bytes) -> None:
    with suppress(InvalidParameter):
        assert read_form(b"--b0undary\r\n" + data, BOUNDARY, PLAIN_FIELDS).texts


def test_large_file_is_read_in_time_that_grows_with_its_size() -> None:
    def seconds(size: int) -> float:
        body = form(("init_images", b"\r\n" * (size // 2), "a"))
        begun = time.process_time()
        read_form(body, BOUNDARY, IMG2IMG_FIELDS)
        return time.process_time() - begun

    small, large = min(seconds(2**21) for _ in range(3)), seconds(2**24)
    assert large < 40 * max(small, 0.005)


@pytest.mark.slow
async def test_form_is_the_same_request_as_its_json(tmp_path: Path) -> None:
    image = base64.b64decode(to_base64(scene((64, 64))))
    fields = {"prompt": "a lake", "model": "demo", "steps": "1", "seed": "7", "width": "64", "height": "64"}
    async with scripted_api(tmp_path) as api:
        text = base64.b64encode(image).decode()
        whole = await api.http.post("/sdapi/v1/img2img", json=_typed(fields) | {"init_images": [text]})
        parts = [("init_images", ("a.png", image, "image/png"))]
        made = await api.http.post("/sdapi/v1/img2img", data=fields, files=parts)
        assert made.status_code == whole.status_code == 200
        assert made.json()["images"] == whole.json()["images"]
        assert made.json()["parameters"] == whole.json()["parameters"]
        # A key is that of the fields, however they come.
        keyed = {"Idempotency-Key": "once"}
        first = await api.http.post("/api/v1/generate", data=fields, files=parts, headers=keyed)
        again = await api.http.post("/api/v1/generate", data=fields, files=parts, headers=keyed)
        assert first.json()["job_id"] == again.json()["job_id"]
        plain = Request("POST", "http://x", files={k: (None, v) for k, v in fields.items()}).prepare()
        assert isinstance(plain.body, bytes)
        head = {"Content-Type": plain.headers["Content-Type"]}
        text_only = await api.http.post("/sdapi/v1/txt2img", content=plain.body, headers=head)
        assert text_only.status_code == 200
        assert text_only.json()["parameters"]["seed"] == 7
        bad = await api.http.post("/sdapi/v1/txt2img", content=b"x", headers={"Content-Type": "multipart/form-data"})
        assert (bad.status_code, bad.json()["code"]) == (400, "INVALID_PARAMETER")


NEUTRAL: dict[str, Any] = {
    **{"enable_hr": False, "tiling": False, "restore_faces": None, "subseed": -1, "subseed_strength": 0, "eta": 0.0},
    **{"styles": [], "alwayson_scripts": {}, "override_settings": {}, "script_args": [], "script_name": None},
    **{"sampler_name": "Euler", "scheduler": "Automatic", "clip_skip": 1, "url": "x", "auth": "x"},
}
ASKING: dict[str, Any] = {
    "enable_hr": True,
    "tiling": "true",
    "styles": ["a"],
    "alwayson_scripts": {"ADetailer": {"args": [True]}},
}
CALL = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1, "cfg_scale": 1}


@pytest.mark.slow
async def test_fields_of_a1111_ask_for_as_much_in_a_form_as_in_json(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        for extra, count in ((NEUTRAL, 0), (ASKING, 4)):
            told = await api.http.post("/sdapi/v1/txt2img", json=CALL | extra)
            parts = [(name, (None, _as_text(value))) for name, value in (CALL | extra).items()]
            by_form = await api.http.post("/sdapi/v1/txt2img", files=parts)
            assert told.json()["warnings"] == by_form.json()["warnings"]
            assert len(by_form.json()["warnings"]) == count
        # What has no effect is told, and never a reason to refuse the call.
        odd: list[Any] = [
            *(("styles", (None, "a")), ("styles", (None, "b"))),
            ("latent_mask", ("a.png", b"x", "image/png")),
            ("tiling", (None, "x" * (MOST_TEXT_BYTES + 1))),
            ("infotext", (None, b"\xff")),
        ]
        asked = await api.http.post("/sdapi/v1/txt2img", files=[(k, (None, str(v))) for k, v in CALL.items()] + odd)
        assert asked.status_code == 200
        assert [each.split("'")[1] for each in asked.json()["warnings"]] == [
            "styles",
            "styles",
            "tiling",
            "latent_mask",
        ]


@pytest.mark.slow
async def test_image_is_upscaled_from_a_form(tmp_path: Path) -> None:
    image = base64.b64decode(to_base64(scene((64, 64))))
    fields = {"upscaling_resize": "2", "upscaler_1": "Lanczos", "gfpgan_visibility": "0", "resize_mode": "0"}
    async with scripted_api(tmp_path) as api:
        made = await api.http.post(
            "/sdapi/v1/extra-single-image", data=fields, files={"image": ("a.png", image, "image/png")}
        )
        assert made.status_code == 200
        assert made.json()["warnings"] == []
        whole = {"image": base64.b64encode(image).decode(), "upscaling_resize": 2, "upscaler_1": "Lanczos"}
        assert made.json()["image"] == (await api.http.post("/sdapi/v1/extra-single-image", json=whole)).json()["image"]


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _typed(fields: dict[str, str]) -> dict[str, Any]:
    return {name: int(value) if value.isdigit() else value for name, value in fields.items()}
