"""One image as raw pixels: what crosses every wall between decoding, the engine and the disk."""

import attrs

CHANNELS = 3


@attrs.frozen
class RGBImage:
    """RGB8 pixels, row by row from the top left: ``width × height × 3`` bytes.

    Raises:
        ValueError: there are more or fewer bytes than that.
    """

    width: int
    """Pixels in a row."""
    height: int
    """Rows."""
    rgb: bytes = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        if len(self.rgb) != self.width * self.height * CHANNELS:
            raise ValueError("an image must have 3 bytes per pixel")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height
