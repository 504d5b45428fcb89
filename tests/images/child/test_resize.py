"""Init images in the sizes that the engine takes."""

import pytest
from PIL import Image

from mflux_api.images.child.resize import as_reference, as_start
from mflux_api.images.sizes import MAX_AREA, reference_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((1024, 1024), (1024, 1024)),
        ((1000, 700), (992, 688)),
        ((4000, 3000), (1168, 880)),
        ((3000, 4000), (880, 1168)),
        ((100_000, 20), (72400, 0)),
        ((15, 15), (0, 0)),
    ],
)
def test_references_keep_their_shape_within_1_megapixel(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert reference_size(*size) == expected


@pytest.mark.parametrize("size", [(16, 16), (47, 33), (2000, 1500), (1025, 1024), (700, 6000)])
def test_references_are_whole_images_of_that_size(size: tuple[int, int]) -> None:
    reference = as_reference(Image.new("RGB", size, (1, 2, 3)))
    assert (reference.width, reference.height) == reference_size(*size)
    assert reference.width * reference.height <= MAX_AREA
    assert reference.rgb == bytes((1, 2, 3)) * (reference.width * reference.height)


def test_reference_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        as_reference(Image.new("RGB", (64, 15)))


def test_references_lose_the_same_on_both_sides() -> None:
    image = Image.new("RGB", (18, 20))
    image.putpixel((1, 2), (255, 0, 0))
    assert as_reference(image).rgb[:3] == bytes((255, 0, 0))


@pytest.mark.parametrize("size", [(64, 48), (640, 480), (30, 500), (500, 30), (64, 50)])
def test_start_image_covers_the_output(size: tuple[int, int]) -> None:
    start = as_start(Image.new("RGB", size, (9, 8, 7)), 64, 48)
    assert (start.width, start.height) == (64, 48)
    assert start.rgb == bytes((9, 8, 7)) * (64 * 48)


def test_start_image_of_the_right_size_is_unchanged() -> None:
    image = Image.effect_noise((64, 48), 60).convert("RGB")
    assert as_start(image, 64, 48).rgb == image.tobytes()


@pytest.mark.parametrize(("size", "middle"), [((192, 64), (64, 0, 128, 64)), ((64, 192), (0, 64, 64, 128))])
def test_start_image_is_the_middle(size: tuple[int, int], middle: tuple[int, int, int, int]) -> None:
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), middle)
    assert as_start(image, 64, 64).rgb == bytes((0, 0, 255)) * 64 * 64


def test_start_image_of_a_strip_takes_no_memory() -> None:
    # Scaled as a whole it would have 640,000 by 512 pixels, which is a gigabyte.
    assert len(as_start(Image.new("RGB", (20_000, 16)), 512, 512).rgb) == 512 * 512 * 3
