"""Images as a program has them become what a request carries."""

import base64
from io import BytesIO
from pathlib import Path

import attrs
import pytest
from PIL import Image, ImageOps

from mflux_api.errors import InvalidParameter
from mflux_api.images.child.decode import decode_image
from mflux_api.jobs.given_images import encode_image
from mflux_api.jobs.parse import validate
from mflux_api.jobs.request import GenerateRequest


def png_bytes(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


GRADIENT = Image.linear_gradient("L").resize((32, 16)).convert("RGB")


def test_path_bytes_pillow_and_base64_are_the_same_image(tmp_path: Path) -> None:
    data = png_bytes(GRADIENT)
    (tmp_path / "house.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    given = (tmp_path / "house.png", data, bytearray(data), memoryview(data), text)
    assert GenerateRequest(prompt="a", init_images=given[:4]).init_images == (text,) * 4
    assert [encode_image(each) for each in given] == [text] * 5
    request = GenerateRequest(prompt="a", init_images=[GRADIENT], mask=tmp_path / "house.png")
    assert request.mask == text
    with Image.open(BytesIO(base64.b64decode(request.init_images[0]))) as image:
        assert image.tobytes() == GRADIENT.tobytes()
    assert validate(request) == request
    assert attrs.evolve(request, seed=1).init_images == request.init_images


def test_one_image_alone_is_a_list_of_one() -> None:
    assert GenerateRequest(prompt="a", init_images="aGVq").init_images == ("aGVq",)
    assert GenerateRequest(prompt="a", init_images=b"hej").init_images == ("aGVq",)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_every_mode_of_pillow_arrives(mode: str) -> None:
    image = GRADIENT.convert("I").convert("I;16") if mode == "I;16" else GRADIENT.convert(mode)
    found = decode_image(base64.b64decode(encode_image(image)), 0)
    assert found.size == (32, 16)


def test_photograph_is_turned_as_its_file_is(tmp_path: Path) -> None:
    exif = GRADIENT.getexif()
    exif[0x0112] = 6
    GRADIENT.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        given = decode_image(base64.b64decode(encode_image(opened)), 0)
        turned = ImageOps.exif_transpose(opened)
        assert given.size == turned.size == (16, 32)
        assert given.convert("RGB").tobytes() == turned.convert("RGB").tobytes()


@pytest.mark.parametrize(("name", "reason"), [("none.png", "No such file or directory"), (".", "it is not a file")])
def test_file_that_cannot_be_read_is_named_without_its_folder(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InvalidParameter, match=reason) as refused:
        GenerateRequest(prompt="a", init_images=(tmp_path / name,))
    assert str(tmp_path.parent) not in str(refused.value)


@pytest.mark.parametrize("fields", [{"init_images": (5,)}, {"init_images": 5}, {"mask": 5}])
def test_what_is_not_an_image_is_refused_as_its_field(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidParameter) as refused:
        validate(GenerateRequest(prompt="a", **fields))  # type: ignore[arg-type]
    assert refused.value.details["field"] == next(iter(fields))
