"""What files say of themselves goes through every format, and strangers' files do no harm."""

import base64
import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from mflux_api.errors import InvalidParameter
from mflux_api.images.encode import ImageFormat, ImageTarget
from mflux_api.images.png import SIGNATURE, chunk, encode_png
from tests.support.local_decoding import LOCAL

PIXELS = bytes(range(256)) * 12
SAID, RECORD = "ein Haus, 猫 \U0001f680\nSteps: 4", '{"request": {"prompt": "\\u732b"}}'


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_texts_go_through_every_format(kind: ImageFormat) -> None:
    data = encode_png(PIXELS, 64, 16, parameters=SAID, record=RECORD)
    if kind != "png":
        data = await LOCAL.convert_image(data, ImageTarget(format=kind, side=32))
    found = await LOCAL.read_metadata(text_of(data))
    assert (found.infotext, found.record, found.format) == (SAID, RECORD, kind)
    assert (found.width, found.height) == ((64, 16) if kind == "png" else (32, 8))


async def test_file_that_says_nothing_is_no_error() -> None:
    found = await LOCAL.read_metadata(text_of(encode_png(PIXELS, 64, 16, parameters="")))
    assert (found.infotext, found.record, dict(found.items)) == ("", "", {})


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
async def test_comment_of_other_programs_is_read_in_either_order_of_bytes(order: str) -> None:
    image, exif, buffer = Image.new("RGB", (8, 8)), Image.Exif(), BytesIO()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat\nSteps: 20".encode(order)
    image.save(buffer, "JPEG", exif=exif)
    assert (await LOCAL.read_metadata(text_of(buffer.getvalue()))).infotext == "a cat\nSteps: 20"


async def test_other_programs_texts_are_items_within_limits() -> None:
    whole = encode_png(PIXELS, 64, 16, parameters="")
    head, rest = whole[: len(SIGNATURE) + 25], whole[len(SIGNATURE) + 25 :]
    texts = [chunk(b"tEXt", b"workflow\0" + b"x" * 100_000), chunk(b"tEXt", b"prompt\0{}")]
    texts += [chunk(b"tEXt", f"key{number}".encode() + b"\0v") for number in range(50)]
    found = await LOCAL.read_metadata(text_of(head + b"".join(texts) + rest))
    assert found.items["prompt"] == "{}"
    assert len(found.items["workflow"]) == 16 * 1024
    assert len(found.items) == 16


async def test_packed_text_that_is_a_bomb_is_left_out() -> None:
    whole = encode_png(PIXELS, 64, 16, parameters="")
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(50_000_000)))
    at = len(SIGNATURE) + 25
    found = await LOCAL.read_metadata(text_of(whole[:at] + bomb + whole[at:]))
    assert found.infotext == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        b"\xff\xd8\xff",
        SIGNATURE,
        SIGNATURE + struct.pack(">I", 2**31),
        b"RIFF\0\0\0\0WEBP",
        b"x" * 1000,
    ],
)
async def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidParameter) as caught:
        await LOCAL.read_metadata(text_of(data))
    assert caught.value.details["field"] == "image"
