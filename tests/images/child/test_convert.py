"""Finished images in other formats."""

from io import BytesIO
from typing import Literal

import pytest
from PIL import Image

from mflux_api.errors import InternalError
from mflux_api.images.encode import ImageFormat, ImageTarget
from mflux_api.images.png import encode_png
from tests.support.local_decoding import LOCAL

PIXELS = bytes(range(256)) * 12


@pytest.mark.parametrize("target", ["jpeg", "webp"])
async def test_other_formats_keep_size_and_infotext(target: Literal["jpeg", "webp"]) -> None:
    data = await LOCAL.convert_image(encode_png(PIXELS, 32, 32, parameters="Grüße"), ImageTarget(format=target))
    with Image.open(BytesIO(data)) as image:
        assert (image.format, image.size) == (target.upper(), (32, 32))
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be") == "Grüße"


@pytest.mark.parametrize("target", ["jpeg", "webp"])
async def test_image_that_says_nothing_about_itself_says_nothing_in_other_formats(
    target: Literal["jpeg", "webp"],
) -> None:
    data = await LOCAL.convert_image(encode_png(PIXELS, 32, 32, parameters=""), ImageTarget(format=target))
    with Image.open(BytesIO(data)) as image:
        assert 0x8769 not in image.getexif()


@pytest.mark.parametrize("cut", [0, 20, 60, -60])
async def test_damaged_file_is_said_to_be_damaged(cut: int) -> None:
    with pytest.raises(InternalError, match="cannot be read") as caught:
        await LOCAL.convert_image(encode_png(PIXELS, 32, 32, parameters="a")[:cut], ImageTarget(format="jpeg"))
    assert caught.value.details == {"reason": "the file is damaged"}


@pytest.mark.parametrize("target", ["png", "jpeg", "webp"])
async def test_smaller_image_keeps_its_shape_and_is_never_larger(target: ImageFormat) -> None:
    wide = encode_png(PIXELS, 64, 16, parameters="")
    for side, size in ((32, (32, 8)), (64, (64, 16)), (256, (64, 16))):
        data = await LOCAL.convert_image(wide, ImageTarget(format=target, side=side))
        with Image.open(BytesIO(data)) as image:
            assert (image.format, image.size) == (target.upper(), size)


async def test_lower_quality_takes_fewer_bytes() -> None:
    whole = encode_png(PIXELS * 4, 64, 64, parameters="")
    sizes = [len(await LOCAL.convert_image(whole, ImageTarget(format="jpeg", quality=q))) for q in (0, 40, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
