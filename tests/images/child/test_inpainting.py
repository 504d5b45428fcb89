"""Masks: how they are read, what of an image is inpainted, and what the engine gets."""

import base64
from io import BytesIO
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageFilter

from mflux_api.actors.decoding import CheckedImages
from mflux_api.errors import InvalidParameter
from mflux_api.images.child.filling import fill_holes
from mflux_api.images.child.inpainting import (
    NothingMasked,
    black_and_white,
    compose,
    covering_box,
    crop_box,
    lay_out,
    mask_levels,
    soften,
)
from mflux_api.jobs.inpainting import Inpainting
from mflux_api.jobs.resolve import ResolvedRequest
from tests.support.local_decoding import LOCAL
from tests.support.requests import resolved_request
from tests.support.sample_images import to_base64

NOISE = Image.merge("RGB", [Image.effect_noise((500, 333), 60) for _ in range(3)])
RIGHT = Image.new("L", (500, 333))
RIGHT.paste(255, (250, 0, 500, 333))


def half(mode: str = "L", white: object = 255, black: object = 0, size: tuple[int, int] = (8, 4)) -> Image.Image:
    """A mask whose right half is inpainted."""
    mask = Image.new(mode, size, black)  # type: ignore[arg-type]
    mask.paste(white, (size[0] // 2, 0, *size))  # type: ignore[arg-type]
    return mask


EXPECTED = half().tobytes()


@pytest.mark.parametrize(
    "mask",
    [
        half(),
        half("1", 1),
        half("RGB", (255, 255, 255), (0, 0, 0)),
        half("RGB", (200, 200, 200), (90, 90, 90)),
        half().convert("P"),
        half("LA", (255, 255), (0, 255)),
        half("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
        half("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
        half("RGBA", (255, 0, 0, 200), (255, 255, 255, 0)),
        half("LA", (9, 255), (9, 0)),
        half("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)),
        half("LAB", (255, 128, 128), (0, 128, 128)),
    ],
    ids=lambda mask: f"{mask.mode} {mask.getpixel((7, 0))} {mask.getpixel((0, 0))}",
)
def test_white_is_inpainted_and_of_transparent_masks_what_is_opaque(mask: Image.Image) -> None:
    assert black_and_white(mask_levels(mask)).tobytes() == EXPECTED


async def read(mask: str, *, invert: bool = False) -> tuple[int, int]:
    (size,) = (await check(mask, invert=invert)).sizes
    return size


async def check(mask: str, source: tuple[int, int] = (300, 100), **changes: Any) -> CheckedImages:
    return await LOCAL.check_mask(mask, Inpainting(**{"result": source, **changes}), source)


async def test_transparent_mask_is_refused_for_what_it_is() -> None:
    with pytest.raises(InvalidParameter, match="transparency what is opaque"):
        await read(to_base64(Image.new("RGBA", (9, 9), (255, 255, 255, 0))))


WHITE_LEFT = Image.new("L", (300, 100))
WHITE_LEFT.paste(255, (0, 0, 20, 100))
WHITE_DOT = Image.new("L", (300, 100))
WHITE_DOT.putpixel((150, 50), 255)


@pytest.mark.parametrize(
    ("mask", "changes", "problem"),
    [
        (WHITE_LEFT, {"result": (64, 64)}, "'mask' is invalid: all that it masks is cut off"),
        (WHITE_DOT, {"blur": (64.0, 64.0)}, "'mask' is invalid: what it masks is too small for this 'mask_blur'"),
        (None, {"result": (64, 64), "extend": (10, 0, 0, 0)}, "'extend' is invalid: all that it masks is cut off"),
    ],
)
async def test_run_that_would_inpaint_nothing_is_refused_before_it_waits(
    mask: Image.Image | None, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidParameter, match=problem):
        await check(to_base64(mask) if mask else "", **changes)


async def test_greys_of_a_mask_are_not_dropped_in_silence() -> None:
    ramp = Image.linear_gradient("L").resize((300, 100))
    (warning,) = (await check(to_base64(ramp))).warnings
    assert "grey" in warning
    brush = half(size=(300, 100)).filter(ImageFilter.GaussianBlur(4))
    assert (await check(to_base64(brush))).warnings == ()
    assert (await check(to_base64(half(size=(300, 100)), "JPEG"))).warnings == ()


async def test_what_the_shape_of_the_result_cuts_off_a_mask_is_said() -> None:
    both = WHITE_LEFT.copy()
    both.paste(255, (150, 40, 160, 60))
    (warning,) = (await check(to_base64(both), result=(64, 64))).warnings
    assert "300 × 100 pixels were cut to the shape of 64 × 64" in warning
    assert (await check(to_base64(both), result=(304, 96))).warnings == ()


@pytest.mark.parametrize(("kind", "size"), [("PNG", (3, 7)), ("JPEG", (64, 1)), ("GIF", (2000, 3)), ("BMP", (1, 2))])
async def test_mask_may_have_any_size_and_format(kind: str, size: tuple[int, int]) -> None:
    assert await read(to_base64(Image.new("L", size, 255), kind)) == size


async def test_mask_of_16_bits_is_not_white_all_over() -> None:
    image = half("I;16", 65535, 3000)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    request = masked(mask=text, width=64, height=64, blur=(0.0, 0.0))
    inputs = (await LOCAL.run_inputs(request)).inpainting
    assert inputs is not None
    assert inputs.mask[:64] == bytes(32) + b"\xff" * 32


@pytest.mark.parametrize(
    ("mask", "invert", "problem"),
    [
        (to_base64(Image.new("L", (9, 9), 0)), False, "protects the whole image; what is white is inpainted"),
        (to_base64(Image.new("L", (9, 9), 255)), True, "protects the whole image; what is black"),
        ("aGVsbG8=", False, "it is not an image"),
        ("http://127.0.0.1/mask.png", False, "it is a URL"),
        (to_base64(half())[:60], False, "it is "),
    ],
)
async def test_mask_that_cannot_be_used_is_refused_under_its_name(mask: str, invert: bool, problem: str) -> None:
    with pytest.raises(InvalidParameter, match=f"'mask' is invalid: .*{problem}") as caught:
        await read(mask, invert=invert)
    assert caught.value.details["field"] == "mask"


@pytest.mark.parametrize("blur", [(0.0, 0.0), (4.0, 4.0), (0.0, 9.0)])
def test_result_in_the_images_own_size_has_its_own_bytes_where_the_blurred_mask_is_0(blur: tuple[float, float]) -> None:
    layers = compose(NOISE, RIGHT, run=(496, 336), result=(500, 333), blur=blur, padding=None, fill=False)
    assert layers.overlay.tobytes() == NOISE.tobytes()
    protected, seen = RIGHT.filter(ImageFilter.GaussianBlur(blur)).tobytes(), layers.blurred.tobytes()
    assert all((share == 0) == (blurred == 0) for share, blurred in zip(seen, protected, strict=True))
    assert layers.box == (0, 0, 500, 333)
    assert layers.start.size == layers.mask.size == (496, 336)
    assert set(layers.mask.tobytes()) == {0, 255}


@pytest.mark.parametrize(("width", "blur"), [(250, 4), (250, 64), (40, 16), (3, 4), (1, 4), (1, 16)])
def test_what_is_white_shows_nothing_of_what_was_there_however_the_mask_is_blurred(width: int, blur: float) -> None:
    mask = Image.new("L", (300, 40))
    mask.paste(255, (20, 0, 20 + width, 40))
    blurred = soften(mask, (blur, blur))
    assert blurred.crop((20, 0, 20 + width, 40)).getextrema() == (255, 255)
    assert blurred.getpixel((19, 20)) != 0


def test_mask_of_which_its_blur_leaves_nothing_is_refused() -> None:
    mask = Image.new("L", NOISE.size)
    mask.putpixel((250, 160), 255)
    with pytest.raises(NothingMasked, match="too small for this 'mask_blur'"):
        compose(NOISE, mask, run=(496, 336), result=(500, 333), blur=(64, 64), padding=None, fill=False)


def test_result_in_another_size_has_the_bytes_of_the_resized_image() -> None:
    whole, mask = Image.merge("RGB", [Image.effect_noise((256, 192), 60) for _ in range(3)]), half(size=(256, 192))
    layers = compose(whole, mask, run=(128, 96), result=(128, 96), blur=(4, 4), padding=None, fill=False)
    assert layers.overlay.tobytes() == whole.resize((128, 96), Image.Resampling.LANCZOS).tobytes()
    assert layers.start.tobytes() == layers.overlay.tobytes()


@pytest.mark.parametrize(
    ("size", "wanted", "box"),
    [
        ((80, 64), (160, 128), (0, 0, 80, 64)),
        ((300, 100), (64, 64), (100, 0, 200, 100)),
        ((100, 300), (64, 32), (0, 125, 100, 175)),
        ((333, 333), (64, 64), (0, 0, 333, 333)),
        ((997, 331), (997, 331), (0, 0, 997, 331)),
    ],
)
def test_image_covers_another_shape_around_its_middle(
    size: tuple[int, int], wanted: tuple[int, int], box: tuple[float, ...]
) -> None:
    assert covering_box(size, wanted) == box


@pytest.mark.parametrize(
    ("masked", "padding", "run", "expected"),
    [
        ((100, 100, 200, 150), 0, (512, 512), (100, 75, 100, 100)),
        ((100, 100, 200, 150), 32, (512, 512), (68, 43, 164, 164)),
        ((0, 0, 40, 10), 0, (512, 512), (0, 0, 40, 40)),
        ((560, 390, 600, 400), 0, (512, 512), (560, 360, 40, 40)),
        ((100, 0, 110, 400), 32, (512, 512), (0, 0, 400, 400)),
        ((0, 100, 600, 110), 5, (64, 64), (0, 0, 600, 400)),
        ((10, 10, 590, 390), 32, (512, 512), (0, 0, 600, 400)),
        ((100, 100, 151, 150), 0, (256, 512), (100, 74, 51, 102)),
    ],
)
def test_region_that_is_generated_is_that_of_a1111_and_diffusers(
    masked: tuple[int, int, int, int], padding: int, run: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert crop_box(masked, padding, run, (600, 400)) == expected


def test_crop_holds_all_of_the_blurred_mask() -> None:
    mask = Image.new("L", NOISE.size)
    mask.paste(255, (300, 100, 340, 130))
    layers = compose(NOISE, mask, run=(256, 256), result=NOISE.size, blur=(8, 8), padding=0, fill=False)
    left, top, width, height = layers.box
    outside = layers.blurred.copy()
    outside.paste(0, (left, top, left + width, top + height))
    assert outside.getbbox() is None
    assert (
        layers.start.tobytes()
        == NOISE.crop((left, top, left + width, top + height)).resize((256, 256), Image.Resampling.LANCZOS).tobytes()
    )


def test_dot_of_a_mask_does_not_vanish_when_it_is_scaled() -> None:
    mask = Image.new("L", (2000, 2000))
    mask.putpixel((1000, 1000), 255)
    layers = compose(
        Image.new("RGB", mask.size), mask, run=(64, 64), result=(64, 64), blur=(0, 0), padding=None, fill=False
    )
    assert layers.mask.getbbox() is not None
    assert layers.blurred.getbbox() is not None


def test_line_of_a_mask_does_not_vanish_beside_an_area_when_it_is_scaled() -> None:
    mask = Image.new("L", (2000, 1000))
    mask.paste(255, (0, 0, 1000, 1000))
    mask.paste(255, (1500, 0, 1502, 1000))
    layers = compose(
        Image.new("RGB", mask.size), mask, run=(256, 128), result=mask.size, blur=(0, 0), padding=None, fill=False
    )
    line = layers.mask.crop((192, 0, 193, 128))
    assert line.getextrema() == (255, 255)
    layers.mask.paste(0, (192, 0, 193, 128))
    assert layers.mask.getbbox() == (0, 0, 128, 128)


def test_mask_beyond_what_the_result_shows_is_refused() -> None:
    mask = Image.new("L", (300, 100))
    mask.paste(255, (0, 0, 20, 100))
    with pytest.raises(NothingMasked, match="64 × 64"):
        compose(Image.new("RGB", mask.size), mask, run=(64, 64), result=(64, 64), blur=(4, 4), padding=None, fill=False)


def test_holes_are_filled_with_the_colours_around_them() -> None:
    image = Image.new("RGB", (200, 100), (200, 0, 0))
    image.paste((0, 0, 200), (100, 0, 200, 100))
    holes = Image.new("L", image.size)
    holes.paste(255, (20, 20, 60, 80))
    image.paste((0, 255, 0), (20, 20, 60, 80))
    filled = fill_holes(image, holes)
    assert (
        ImageChops.multiply(
            ImageChops.difference(filled, image), holes.point([255] + [0] * 255).convert("RGB")
        ).getbbox()
        is None
    )
    red, green, _ = filled.getpixel((40, 50))  # type: ignore[misc]
    assert red > 150
    assert green < 10
    assert fill_holes(image, Image.new("L", image.size, 255)).getextrema() == ((128, 128),) * 3


def test_large_image_keeps_its_bytes_beside_what_is_filled() -> None:
    image = Image.new("RGB", (1500, 1000), (10, 200, 30))
    image.paste((200, 10, 30), (0, 0, 700, 1000))
    holes = half(size=image.size)
    filled = fill_holes(image, holes)
    assert filled.crop((0, 0, 750, 1000)).tobytes() == image.crop((0, 0, 750, 1000)).tobytes()
    red, green, _ = filled.getpixel((760, 500))  # type: ignore[misc]
    assert green > 2 * red


def test_extended_image_is_masked_where_it_is_new_and_has_the_colours_of_its_edge() -> None:
    image = Image.new("RGB", (60, 40), (0, 90, 200))
    whole, mask = lay_out(image, None, invert=False, extend=(10, 0, 30, 20))
    assert whole.size == mask.size == (100, 60)
    off = ImageChops.difference(whole, Image.new("RGB", whole.size, (0, 90, 200)))
    assert max(off.tobytes()) <= 1
    added = Image.new("L", (100, 60), 255)
    added.paste(0, (10, 0, 70, 40))
    assert mask.tobytes() == added.tobytes()


def test_mask_of_an_extended_image_is_that_of_the_image_before() -> None:
    _, mask = lay_out(NOISE, half(), invert=True, extend=(0, 0, 0, 67))
    assert [mask.getpixel(place) for place in ((10, 10), (490, 10), (490, 390))] == [255, 0, 255]


def masked(
    *,
    mask: str = "",
    images: tuple[Image.Image, ...] = (NOISE,),
    width: int = 496,
    height: int = 336,
    result: tuple[int, int] | None = None,
    **changes: object,
) -> ResolvedRequest:
    inpainting = Inpainting(result=result or (width, height), masked=bool(mask), **changes)  # type: ignore[arg-type]
    return resolved_request(
        width=width,
        height=height,
        init_images=tuple(map(to_base64, images)),
        image_strength=0.75,
        inpainting=inpainting,
        mask=mask,
    )


async def test_engine_gets_the_part_that_it_generates_as_start_and_as_first_reference() -> None:
    mask = Image.new("L", NOISE.size)
    mask.paste(255, (300, 100, 340, 130))
    other = Image.new("RGB", (64, 80), (1, 2, 3))
    request = masked(mask=to_base64(mask), images=(NOISE, other), width=256, height=256, result=NOISE.size, padding=16)
    inputs = await LOCAL.run_inputs(request)
    assert inputs.start is not None
    assert inputs.inpainting is not None
    assert [image.size for image in inputs.references] == [(256, 256), (64, 80)]
    assert inputs.references[0].rgb == inputs.start.rgb
    assert inputs.inpainting.overlay.rgb == NOISE.tobytes()
    assert inputs.inpainting.fill == "original"
    assert len(inputs.inpainting.mask) == 256 * 256


@pytest.mark.parametrize(("fill", "name"), [(0, "original"), (2, "noise"), (3, "nothing")])
async def test_what_is_to_be_forgotten_is_no_reference(fill: int, name: str) -> None:
    red = Image.new("RGB", (64, 64), (200, 0, 0))
    red.paste((0, 200, 0), (32, 0, 64, 64))
    other = Image.new("RGB", (64, 80), (1, 2, 3))
    inputs = await LOCAL.run_inputs(
        masked(mask=to_base64(half(size=(64, 64))), images=(red, other), width=64, height=64, fill=fill)
    )
    assert inputs.start is not None
    assert inputs.inpainting is not None
    assert [image.size for image in inputs.references] == [(64, 80)]
    assert inputs.inpainting.fill == name
    start = Image.frombytes("RGB", (64, 64), inputs.start.rgb)
    red_level, green_level, _ = start.getpixel((60, 32))  # type: ignore[misc]
    assert (red_level > 190, green_level > 190) == (fill == 0, fill != 0)


async def test_reference_of_an_extended_image_is_the_image_before() -> None:
    source = Image.new("RGB", (64, 48), (200, 0, 0))
    inputs = await LOCAL.run_inputs(
        masked(images=(source,), width=128, height=64, result=(120, 64), extend=(0, 16, 56, 0))
    )
    assert [(image.size, image.rgb) for image in inputs.references] == [((64, 48), source.tobytes())]
