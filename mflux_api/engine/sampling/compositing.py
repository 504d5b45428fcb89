"""Inpainting's last step, in pixels: the generated image goes into the source, which keeps its own bytes elsewhere.

Without it the protected part would be the VAE's round trip, which no latents can make exact.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from mflux_api.images.inpainting import InpaintingInputs
from mflux_api.images.rgb import CHANNELS

# So that little is computed at once: 4 MB of an image of 32 MP.
_STRIP_ROWS = 256


def composite(
    generated: npt.NDArray[np.uint8], inpainting: InpaintingInputs, check: Callable[[], None]
) -> npt.NDArray[np.uint8]:
    """Return the finished image, RGB8 (height, width, 3) in the overlay's size, contiguous.

    It has the overlay's bytes outside the box and where the blurred mask is 0, the generated ones where that is 255,
    and their rounded linear mix between. The generated image is scaled to the box with Lanczos where sizes differ.

    Args:
        generated: RGB8 (height, width, 3) in the run's size.
        inpainting: overlay, blurred mask and box.
        check: called between strips of rows; what it raises passes through.
    """
    width, height = inpainting.overlay.size
    result = np.frombuffer(inpainting.overlay.rgb, np.uint8).reshape(height, width, CHANNELS).copy()
    shares = np.frombuffer(inpainting.blurred_mask, np.uint8).reshape(height, width, 1)
    left, top, columns, rows = inpainting.box
    if generated.shape[:2] != (rows, columns):
        check()
        scaled = Image.fromarray(generated).resize((columns, rows), Image.Resampling.LANCZOS)
        generated = np.asarray(scaled, np.uint8)
    for first in range(0, rows, _STRIP_ROWS):
        check()
        count = min(_STRIP_ROWS, rows - first)
        place = np.s_[top + first : top + first + count, left : left + columns]
        share = shares[place].astype(np.uint16)
        # 255 x 255 + 127 still fits 16 bits.
        mixed = result[place] * (255 - share) + generated[first : first + count] * share + 127
        result[place] = mixed // 255
    return result
