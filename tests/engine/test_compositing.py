"""The finished image of an inpainting has the source's bytes where it is protected and the generated ones elsewhere."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mflux_api.engine.sampling.compositing import composite
from mflux_api.images.inpainting import Box, InpaintingInputs
from mflux_api.images.rgb import RGBImage


def noise(width: int, height: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def inputs(overlay: Any, shares: Any, box: Box | None = None) -> InpaintingInputs:
    height, width, _ = overlay.shape
    return InpaintingInputs(
        mask=b"",
        overlay=RGBImage(width, height, overlay.tobytes()),
        blurred_mask=shares.tobytes(),
        box=box or (0, 0, width, height),
    )


def never() -> None:
    """Never stop."""


def test_every_share_mixes_every_pair_of_levels_rounded_and_exact_at_its_ends() -> None:
    levels = np.arange(0, 256, 5)
    kept, made, share = (each.reshape(-1) for each in np.meshgrid(levels, levels, np.arange(256)))
    rows = kept.size // 256
    overlay, generated = (np.repeat(each.reshape(rows, 256, 1), 3, axis=2).astype(np.uint8) for each in (kept, made))
    shares = share.reshape(rows, 256).astype(np.uint8)
    result = composite(generated, inputs(overlay, shares), never)
    exact = (kept * (255 - share) + made * share) / 255
    np.testing.assert_array_equal(result[..., 0].reshape(-1), np.rint(exact))
    assert (result[shares == 0] == overlay[shares == 0]).all()
    assert (result[shares == 255] == generated[shares == 255]).all()


def test_generated_image_goes_into_its_box_scaled_and_the_rest_is_the_overlays_whatever_the_mask() -> None:
    overlay, generated = noise(90, 70, 1), noise(32, 48, 2)
    shares = np.full((70, 90), 255, np.uint8)
    shares[30, 40] = 0
    result = composite(generated, inputs(overlay, shares, (17, 23, 40, 31)), never)
    scaled = np.asarray(Image.fromarray(generated).resize((40, 31), Image.Resampling.LANCZOS))
    expected = overlay.copy()
    expected[23:54, 17:57] = scaled
    expected[30, 40] = overlay[30, 40]
    np.testing.assert_array_equal(result, expected)
    assert result.flags.c_contiguous


def test_overlay_itself_stays_as_it_was() -> None:
    overlay = noise(16, 16, 1)
    given = inputs(overlay, np.full((16, 16), 255, np.uint8))
    composite(noise(16, 16, 2), given, never)
    assert given.overlay.rgb == overlay.tobytes()


def test_composition_of_a_large_image_can_be_stopped_between_strips() -> None:
    overlay, asked = noise(16, 1100, 1), 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked > 3:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        composite(noise(16, 1100, 2), inputs(overlay, np.full((1100, 16), 255, np.uint8)), check)
    assert asked == 4
