"""A run's images become the blobs of its frame and come out as they went in; blobs that do not fit are refused."""

from typing import Any

import attrs
import pytest

from mflux_api.engine.protocol import Inpainting
from mflux_api.engine.run_images import WrongImages, describe_inpainting, from_blobs, to_blobs
from mflux_api.images.inpainting import InpaintingInputs
from mflux_api.images.rgb import RGBImage
from mflux_api.images.run_inputs import RunInputs
from tests.support.engine_contract import RUN


def image(width: int, height: int, level: int) -> RGBImage:
    return RGBImage(width, height, bytes([level]) * (width * height * 3))


MASKED = RunInputs(
    references=(image(32, 48, 1), image(16, 16, 2)),
    start=image(64, 64, 3),
    inpainting=InpaintingInputs(
        mask=bytes([4]) * 64 * 64,
        overlay=image(70, 80, 5),
        blurred_mask=bytes([6]) * 70 * 80,
        box=(3, 7, 67, 73),
        fill="noise",
    ),
)
FRAME = attrs.evolve(
    RUN,
    references=((32, 48), (16, 16)),
    start=True,
    inpainting=Inpainting(fill="noise", result=(70, 80), box=(3, 7, 67, 73)),
)


@pytest.mark.parametrize(
    ("inputs", "frame"),
    [
        (RunInputs(), RUN),
        (attrs.evolve(MASKED, inpainting=None), attrs.evolve(FRAME, inpainting=None)),
        (attrs.evolve(MASKED, inpainting=None, start=None), attrs.evolve(FRAME, inpainting=None, start=False)),
        (MASKED, FRAME),
    ],
    ids=["none", "start", "references", "mask"],
)
def test_images_come_out_as_they_went_in(inputs: RunInputs, frame: Any) -> None:
    assert describe_inpainting(inputs) == frame.inpainting
    assert from_blobs(frame, to_blobs(inputs)) == inputs


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("change", [lambda blob: blob[:-1], lambda blob: blob + b"x", lambda blob: b""])
def test_blob_of_another_length_is_refused_with_its_number_and_both_lengths(place: int, change: Any) -> None:
    blobs = list(to_blobs(MASKED))
    blobs[place] = change(blobs[place])
    with pytest.raises(WrongImages, match=rf"^Image {place + 1} of the run has {len(blobs[place])} bytes instead of"):
        from_blobs(FRAME, blobs)


@pytest.mark.parametrize("count", [0, 3, 5, 7])
def test_another_number_of_images_is_refused(count: int) -> None:
    with pytest.raises(WrongImages, match=f"^The run came with {count} images instead of 6"):
        from_blobs(FRAME, (to_blobs(MASKED) * 2)[:count])


def test_mask_without_an_image_to_start_from_is_refused() -> None:
    with pytest.raises(WrongImages, match="a mask and no image"):
        from_blobs(attrs.evolve(FRAME, start=False), to_blobs(MASKED))


@pytest.mark.parametrize("box", [(-1, 0, 70, 80), (0, 0, 71, 80), (1, 0, 70, 80), (0, 1, 70, 80), (0, 0, 0, 80)])
def test_box_that_is_not_in_the_result_is_refused_on_both_sides(box: Any) -> None:
    assert MASKED.inpainting is not None
    with pytest.raises(ValueError, match="within its result"):
        attrs.evolve(MASKED.inpainting, box=box)
    with pytest.raises(ValueError, match="within its result"):
        Inpainting(result=(70, 80), box=box)


def test_blurred_mask_has_the_size_of_the_overlay() -> None:
    assert MASKED.inpainting is not None
    with pytest.raises(ValueError, match="one byte for each pixel"):
        attrs.evolve(MASKED.inpainting, blurred_mask=bytes(70 * 80 - 1))
