"""Init images from clients: every usual image, and one clear error for everything else."""

import base64
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import quote

import attrs
import pytest
from PIL import Image

from mflux_api.errors import GenerationFailed, InvalidParameter
from mflux_api.images.child import decode
from mflux_api.images.run_inputs import output_size
from mflux_api.images.sizes import MAX_PIXELS
from tests.support.local_decoding import LOCAL
from tests.support.requests import resolved_request

RED, BLUE = (250, 10, 20), (20, 30, 240)


def halves(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def decode_image(text: str, index: int) -> Image.Image:
    return decode.decode_image(decode.file_of(text, index), index)


def near(pixel: Any, colour: tuple[int, int, int], distance: int = 12) -> bool:
    return all(abs(a - b) <= distance for a, b in zip(pixel, colour, strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_usual_formats_become_rgb(kind: str) -> None:
    image = decode_image(encoded(halves(), kind), 0)
    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert near(image.getpixel((4, 4)), RED)
    assert near(image.getpixel((44, 28)), BLUE)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L", "LA", "1", "I;16"])
def test_modes_become_rgb(mode: str) -> None:
    image = Image.new("I;16", (48, 32), 40000) if mode == "I;16" else halves(mode)
    decoded = decode_image(encoded(image, "TIFF"), 0)
    assert decoded.mode == "RGB"
    if mode == "I;16":
        assert decoded.getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize(
    "written",
    [
        lambda text: text,
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"DATA:image/png;charset=utf-8;BASE64,{text}",
        lambda text: f"data:;base64,{text}",
        lambda text: "\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
        lambda text: text.rstrip("="),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: f"  {text}\r\n",
        lambda text: f" \ndata:image/png;base64, {text}",
        lambda text: "data:image/png;base64," + quote(text, safe=""),
        lambda text: f"data:image/png; base64 ,{text}",
        lambda text: f'data:image/png;name="a,b;c.png";base64,{text}',
        lambda text: f"data:image/png;base64;charset=utf-8,{text}",
        lambda text: f"data:image/png;name={'x' * 500};base64,{text}",
        lambda text: "data:image/png," + quote(base64.b64decode(text), safe=""),
        lambda text: "data:," + quote(base64.b64decode(text)),
    ],
    ids=[
        *("plain", "url", "capitals", "bare url", "lines", "unpadded", "url-safe", "spaces", "url in spaces"),
        *("percent", "blanks in the head", "quoted name", "base64 not last", "long name", "bytes escaped", "no type"),
    ],
)
def test_base64_as_clients_write_it(written: Callable[[str], str]) -> None:
    assert decode_image(written(encoded(halves())), 0).tobytes() == halves().tobytes()


def _big_endian_tiff(level: int) -> str:
    """A TIFF file of 32 x 32 pixels of 16 bits, the high byte first."""
    data = struct.pack(">H", level) * 32 * 32
    fields = [(256, 32), (257, 32), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 32), (279, len(data))]
    table = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in fields)
    head = b"MM\0*" + struct.pack(">I", 8 + len(data))
    return base64.b64encode(head + data + struct.pack(">H", len(fields)) + table + bytes(4)).decode()


def test_sixteen_bits_with_the_high_byte_first_are_not_called_damaged() -> None:
    assert decode_image(_big_endian_tiff(40000), 0).getpixel((5, 5)) == (156, 156, 156)


@pytest.mark.parametrize(("mode", "white"), [("I", 2**31 - 1), ("I", 65535), ("F", 1.0)])
def test_thirty_two_bits_are_refused_and_not_shown_as_black_or_white(mode: str, white: float) -> None:
    with pytest.raises(InvalidParameter, match="32 bits a pixel; save it with 8 or 16"):
        decode_image(encoded(Image.new(mode, (32, 32), white), "TIFF"), 0)


def test_exif_orientation_is_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Taken with the camera turned: to be shown a quarter turn clockwise.
    image = decode_image(encoded(halves(), "JPEG", exif=exif, quality=95), 0)
    assert image.size == (32, 48)
    assert near(image.getpixel((16, 4)), RED, 40)
    assert near(image.getpixel((16, 44)), BLUE, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("notes", [b"Exif\0\0garbage garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"])
def test_image_with_broken_exif_data_is_accepted_unrotated(kind: str, notes: bytes) -> None:
    image = decode_image(encoded(halves(), kind, exif=notes), 0)
    assert near(image.getpixel((4, 4)), RED)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_white(mode: str) -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    if mode == "PA":
        decoded = decode_image(encoded(image.quantize(), "PNG"), 0)
    else:
        decoded = decode_image(encoded(image.convert(mode)), 0)
    assert near(decoded.getpixel((4, 4)), (0, 0, 0))
    assert near(decoded.getpixel((28, 4)), (255, 255, 255))


def test_half_transparent_is_half_white() -> None:
    assert near(decode_image(encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 128))), 0).getpixel((1, 1)), (127,) * 3, 2)


def test_colour_that_stands_for_transparency_is_white() -> None:
    image = decode_image(encoded(halves(), transparency=BLUE), 0)
    assert (near(image.getpixel((4, 4)), RED), image.getpixel((44, 4))) == (True, (255, 255, 255))


def test_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE)]
    image = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 0)
    assert near(image.getpixel((1, 1)), RED)


def _png(width: int, height: int) -> str:
    """A PNG file that says how large it is, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    return base64.b64encode(data).decode()


NOISE = encoded(Image.effect_noise((256, 256), 90).convert("RGB"))
REFUSED = {
    "empty": "",
    "spaces": "   ",
    "no base64": "not base64!",
    "one character": "A",
    "text": base64.b64encode(b"hello").decode(),
    "empty data URL": "data:image/png;base64,",
    "data URL without base64": "data:image/png,abc",
    "web address": "https://example.com/a.png",
    "file address": "file:///etc/passwd",
    "path": "/etc/passwd",
    "svg": base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
    "postscript": base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n").decode(),
    "pdf": base64.b64encode(b"%PDF-1.4\n").decode(),
    "html": base64.b64encode(b"<html></html>").decode(),
    "cut png": NOISE[: len(NOISE) // 8 * 4],
    "cut jpeg": (jpeg := encoded(halves(size=(256, 256)), "JPEG"))[: len(jpeg) // 8 * 4],
    "cut webp": (webp := encoded(halves(size=(256, 256)), "WEBP", lossless=True))[: len(webp) // 8 * 4],
    "png header alone": NOISE[:64],
    "bomb of 400 megapixels": _png(20000, 20000),
    "bomb of 100 megapixels": _png(10000, 10000),
    "bomb of 2^60 pixels": _png(2**30, 2**30),
    "33 megapixels": _png(8250, 4000),
    "missing pixels": _png(512, 512),
    "no pixels": _png(0, 0),
    "ppm": encoded(halves(), "PPM"),
    "tga": encoded(halves(), "TGA"),
    "eps": encoded(halves(), "EPS"),
    "icon": encoded(halves(), "ICO"),
    "too small": encoded(Image.new("RGB", (15, 64))),
    "too narrow": encoded(Image.new("RGB", (100_000, 20))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_one_clear_error(name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        decode_image(REFUSED[name], 1)
    error = caught.value
    assert error.message.startswith("'init_images' is invalid: image 2 ")
    assert error.details.items() >= {"field": "init_images", "index": 1}.items()
    assert len(error.message) < 200


@pytest.mark.slow
def test_32_megapixels_are_taken() -> None:
    image = decode_image(encoded(Image.new("L", (8000, 4000), 7), compress_level=1), 0)
    assert image.width * image.height == MAX_PIXELS
    with pytest.raises(InvalidParameter, match="scale it down to 32 MP"):
        decode_image(encoded(Image.new("L", (8016, 4000), 7), compress_level=1), 0)


# --- what becomes of them ---


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((256, 192), (256, 192)),
        ((250, 199), (240, 192)),
        ((3000, 2000), (1248, 832)),
        ((40, 40), (64, 64)),
        ((4000, 100), (2048, 96)),
    ],
)
async def test_output_has_the_first_images_size_snapped_within_the_limits(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    checked = await LOCAL.check_images([encoded(Image.new("RGB", size))])
    assert output_size(checked.sizes[0]) == expected


async def test_every_image_is_a_reference_and_the_first_the_start_below_strength_1() -> None:
    images = tuple(encoded(halves(size=size)) for size in ((64, 48), (48, 64), (32, 32)))
    request = resolved_request(width=96, height=64, init_images=images, image_strength=0.5)
    inputs = await LOCAL.run_inputs(request)
    references, start = inputs.references, inputs.start
    assert [(reference.width, reference.height) for reference in references] == [(64, 48), (48, 64), (32, 32)]
    assert start is not None
    assert (start.width, start.height, len(start.rgb)) == (96, 64, 96 * 64 * 3)
    whole = await LOCAL.run_inputs(attrs.evolve(request, image_strength=1.0))
    assert (len(whole.references), whole.start) == (3, None)


async def test_init_image_that_was_removed_by_hand_fails_its_job_with_the_reason() -> None:
    with pytest.raises(GenerationFailed, match="removed from the state directory"):
        await LOCAL.run_inputs(resolved_request(width=64, height=64, init_images=("",), image_strength=0.5))


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "GIF"])
def test_what_the_first_frame_of_an_animation_does_not_cover_is_white(kind: str) -> None:
    frame = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    frame.paste((255, 0, 0, 255), (16, 16, 48, 48))
    last = Image.new("RGBA", (64, 64), (0, 0, 255, 255))
    more: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encoded(frame, kind, save_all=True, append_images=[last], **more), 0)
    assert (image.getpixel((3, 3)), image.getpixel((32, 32))) == ((255, 255, 255), (255, 0, 0))


def test_what_the_first_frame_of_a_gif_file_without_transparency_does_not_cover_is_white() -> None:
    data = bytearray(base64.b64decode(encoded(Image.new("P", (32, 32), 1), "GIF")))
    frame = data.index(b",\0\0\0\0 ")
    data[6:10], data[frame + 1 : frame + 5] = struct.pack("<HH", 64, 64), struct.pack("<HH", 16, 16)
    data[13:16] = bytes(BLUE)
    image = decode.decode_image(bytes(data), 0)
    assert [image.getpixel(place) for place in ((3, 3), (60, 60), (32, 32))] == [(255, 255, 255)] * 2 + [BLUE]
