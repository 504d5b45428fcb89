"""Images that tests send and get."""

import base64
from io import BytesIO

from PIL import Image


def to_base64(image: Image.Image, kind: str = "PNG") -> str:
    """Return an image file as base64."""
    buffer = BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def to_image(text: str) -> Image.Image:
    """Return the image of a base64 file, as RGB."""
    return Image.open(BytesIO(base64.b64decode(text))).convert("RGB")


def scene(size: tuple[int, int] = (80, 64)) -> Image.Image:
    """Return a sky above a meadow."""
    image = Image.new("RGB", size, (90, 160, 230))
    image.paste((40, 130, 60), (0, size[1] // 2, *size))
    return image
