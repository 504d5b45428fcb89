"""Files before a decoder sees them: the usual ones unchanged in every pixel, hostile ones cut down or refused."""

import struct
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mflux_api.errors import InvalidParameter
from mflux_api.images.child.decode import decode_image
from mflux_api.images.child.formats.plain import plain_file
from mflux_api.images.child.formats.png import read_text
from mflux_api.images.child.formats.refused import Refused
from tests.support.hostile_images import ACCEPTED, REFUSED, chunk, png, saved


@pytest.mark.parametrize("name", REFUSED)
def test_file_that_no_program_writes_is_refused_before_a_decoder_sees_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = REFUSED[name]()
    monkeypatch.delattr(Image, "open")
    with pytest.raises(InvalidParameter, match=r"image 1 (has|is)"):
        decode_image(data, 0)


@pytest.mark.parametrize("name", ACCEPTED)
def test_costly_parts_that_pixels_do_not_need_never_come_to_a_decoder(name: str) -> None:
    data = ACCEPTED[name]()
    _, plain = plain_file(data)
    assert len(plain) < 500
    assert decode_image(data, 0).size == (64, 64)
    assert read_text(data, "parameters") == ""


def test_what_follows_the_pixels_of_a_png_is_not_unpacked() -> None:
    data = png(pixels=bytes(65 * 64) + bytes(20 << 20))
    assert decode_image(data, 0).size == (64, 64)


SMALL_PNG = saved(Image.new("L", (64, 64)), "PNG")
NARROW_BMP = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 15_000_000, 1, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: NARROW_BMP + bytes(45_000_000), id="one row of 15 million pixels"),
        pytest.param(
            lambda: saved(Image.new("L", (64, 64)), "JPEG")[:-2] + b"\xff" * 40_000_000 + b"\xd9",
            id="40 million fill bytes",
        ),
        pytest.param(
            lambda: png(*(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(1 << 19), 9)),) * 30_000),
            id="30,000 packed profiles",
        ),
        pytest.param(
            lambda: png(*(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(1 << 21), 9)),) * 10_000),
            id="10,000 packed infotexts",
        ),
    ],
)
def test_file_costs_no_more_than_its_bytes_and_pixels(data: Callable[[], bytes]) -> None:
    """Each took 5 to 30 s: the decoder began anew with every block of it, or all of what is small was unpacked."""
    file = data()
    began = time.process_time()
    assert decode_image(file, 0, reference=False).width in (64, 15_000_000)
    assert len(read_text(file, "parameters") if file.startswith(SMALL_PNG[:8]) else "") < 1 << 20
    assert time.process_time() - began < 3.0


def test_frames_behind_the_first_never_come_to_a_decoder() -> None:
    frames = [Image.new("RGB", (64, 64), (number, 0, 0)) for number in range(40)]
    for kind, limit in (("GIF", 1000), ("PNG", 500), ("WEBP", 500)):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        _, plain = plain_file(data)
        assert len(plain) < limit < len(data)
        assert decode_image(data, 0).size == (64, 64)


def _scene(mode: str) -> Image.Image:
    gradient = Image.linear_gradient("L").resize((57, 43))
    image = Image.merge("RGBA", (gradient, gradient.rotate(90, expand=False), gradient.rotate(180), gradient))
    return image.convert(mode)


USUAL: list[tuple[str, str, dict[str, Any]]] = [
    *(("PNG", mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
    ("PNG", "RGB", {"icc_profile": b"profile", "dpi": (72, 72)}),
    ("PNG", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (57, 43))]}),
    ("PNG", "P", {"transparency": 3}),
    *(("JPEG", mode, {"quality": 90}) for mode in ("RGB", "L", "CMYK")),
    ("JPEG", "RGB", {"progressive": True, "comment": b"hello", "icc_profile": b"x" * 70_000}),
    ("JPEG", "RGB", {"subsampling": 0, "restart_marker_rows": 1, "optimize": True}),
    *(("WEBP", mode, options) for mode in ("RGB", "RGBA") for options in ({"lossless": True}, {"quality": 80})),
    ("WEBP", "RGBA", {"save_all": True, "append_images": [Image.new("RGBA", (57, 43))], "duration": 9}),
    ("WEBP", "RGB", {"icc_profile": b"profile", "xmp": b"<x/>"}),
    ("GIF", "P", {"save_all": True, "append_images": [Image.new("P", (57, 43))], "comment": b"hello"}),
    ("GIF", "P", {"transparency": 3}),
    *(("TIFF", mode, {}) for mode in ("RGB", "RGBA", "L", "CMYK", "I;16", "1")),
    *(("TIFF", "RGB", {"compression": kind}) for kind in ("tiff_lzw", "tiff_deflate", "jpeg")),
    ("BMP", "RGB", {}),
    ("AVIF", "RGB", {"quality": 90}),
]


@pytest.mark.parametrize(("kind", "mode", "options"), USUAL)
def test_usual_file_has_the_same_pixels_and_transparency(kind: str, mode: str, options: dict[str, Any]) -> None:
    image = Image.new("I;16", (57, 43), 40000) if mode == "I;16" else _scene(mode)
    data = saved(image, kind, **options)
    found, plain = plain_file(data)
    assert found == kind
    with Image.open(BytesIO(data)) as before, Image.open(BytesIO(plain), formats=(kind,)) as after:
        assert (before.mode, before.size) == (after.mode, after.size)
        assert before.has_transparency_data == after.has_transparency_data
        assert before.convert("RGBA").tobytes() == after.convert("RGBA").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_stays(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_image(saved(_scene("RGB"), kind, exif=exif), 0)
    assert image.size == (43, 57)


def test_orientation_in_a_packed_text_of_a_png_stays() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(raw):8d}\n{raw.hex()}\n", zip=True)
    assert decode_image(saved(_scene("RGB"), "PNG", pnginfo=info), 0).size == (43, 57)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", ["a lake\nSteps: 4", "Grüße 世界"])
def test_infotext_is_what_pillow_reads(text: str, packed: bool) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "other")
    (info.add_text if text.isascii() else info.add_itxt)("parameters", text, zip=packed)
    data = saved(_scene("RGB"), "PNG", pnginfo=info)
    with Image.open(BytesIO(data)) as image:
        assert image.info["parameters"] == text
    assert read_text(data, "parameters") == text


SEEDS = [saved(_scene("RGB"), kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF")] + [saved(_scene("P"), "GIF"), png()]


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=6)), max_size=6))
def test_whatever_the_bytes_are_there_is_a_plain_file_or_one_error(
    seed: bytes, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(seed)
    for at, new in changes:
        at %= len(data)
        data[at : at + len(new)] = new
    try:
        _, plain = plain_file(bytes(data))
    except Refused:
        return
    assert len(plain) <= len(data) + 64
