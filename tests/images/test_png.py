"""Our own PNG files, read with Pillow."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from mflux_api.images import png
from mflux_api.images.png import encode_png
from tests.support.server import ROOT

PIXELS = bytes(range(256)) * 12
DEMO = sorted((ROOT / "docs" / "images" / "demo").glob("*.png"))


@pytest.mark.parametrize("parameters", ["plain", "Grüße\nSteps: 4", "世界 " * 1000])
def test_png_keeps_pixels_and_infotext_where_pillow_keeps_them(parameters: str) -> None:
    text, theirs = PngImagePlugin.PngInfo(), BytesIO()
    (text.add_text if parameters.isascii() else text.add_itxt)("parameters", parameters)
    Image.frombytes("RGB", (32, 32), PIXELS).save(theirs, "PNG", pnginfo=text)
    ours = encode_png(PIXELS, 32, 32, parameters=parameters)
    with Image.open(BytesIO(ours)) as image:
        assert image.tobytes() == PIXELS
        assert image.info["parameters"] == parameters
    assert ours[: ours.index(b"IDAT") - 4] == theirs.getvalue()[: theirs.getvalue().index(b"IDAT") - 4]


@given(st.data(), st.integers(1, 40), st.integers(1, 40))
def test_pixels_of_any_image_come_back(data: st.DataObject, width: int, height: int) -> None:
    seed = data.draw(st.binary(min_size=1, max_size=64))
    pixels = (seed * (3 * width * height))[: 3 * width * height]
    with Image.open(BytesIO(encode_png(pixels, width, height, parameters=""))) as image:
        assert (image.size, image.mode, image.tobytes()) == ((width, height), "RGB", pixels)
        assert image.info == {}


def test_image_of_many_strips_and_chunks_comes_back() -> None:
    noise = Image.effect_noise((1200, 1100), 90).convert("RGB")
    png = encode_png(noise.tobytes(), *noise.size, parameters="")
    assert png.count(b"IDAT") > 1
    with Image.open(BytesIO(png)) as image:
        assert image.tobytes() == noise.tobytes()


@pytest.mark.parametrize("path", DEMO, ids=lambda path: path.stem)
def test_files_are_about_as_large_as_pillows(path: Path) -> None:
    with Image.open(path) as image:
        rgb, theirs = image.convert("RGB"), BytesIO()
    rgb.save(theirs, "PNG", compress_level=zlib.Z_BEST_SPEED)
    assert len(encode_png(rgb.tobytes(), *rgb.size, parameters="")) <= 1.15 * len(theirs.getvalue())


def test_wrong_number_of_bytes_is_refused() -> None:
    for width, height in ((32, 31), (0, 0)):
        with pytest.raises(ValueError, match="3 bytes per pixel"):
            encode_png(PIXELS, width, height, parameters="")


@pytest.mark.parametrize("size", [(1200, 1100), (512, 512), (4000, 30), (7, 30000)])
def test_file_does_not_depend_on_how_many_cores_compressed_it(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = Image.effect_noise(size, 40).convert("RGB").tobytes()
    files = set()
    for cores in (1, 2, 16):
        monkeypatch.setattr(png, "usable_cores", lambda cores=cores: cores)
        files.add(encode_png(pixels, *size, parameters=""))
    (file,) = files
    chunks = dict.fromkeys([b"IDAT"], b"")
    at = len(png.SIGNATURE)
    while at < len(file):
        length, kind = struct.unpack(">I4s", file[at : at + 8])
        chunks[kind] = chunks.get(kind, b"") + file[at + 8 : at + 8 + length]
        at += 12 + length
    # Its checksum is compared, which Pillow does not do.
    assert len(zlib.decompress(chunks[b"IDAT"])) == size[1] * (3 * size[0] + 1)
