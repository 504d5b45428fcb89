"""Contact sheets: images in a grid with a caption under each."""

import textwrap

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    images: list[npt.NDArray[np.uint8]],
    captions: list[str],
    columns: int,
    cell: int = 192,
    failed: list[bool] | None = None,
) -> Image.Image:
    """Put images into a grid of square cells, with a caption under each.

    Args:
        images: Images [H, W, 3] of any sizes; larger ones are scaled down to their cell.
        captions: One for each image; three lines at most are shown.
        columns: Cells in a row.
        cell: The side of a cell in pixels.
        failed: Which images get a red frame.
    """
    font = ImageFont.load_default(size=max(10, cell // 17))
    text_height = cell // 4
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (cell + 6), rows * (cell + text_height + 6)), "#f2f2f2")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = index % columns * (cell + 6) + 3, index // columns * (cell + text_height + 6) + 3
        image = Image.fromarray(pixels)
        image.thumbnail((cell, cell))
        sheet.paste(image, (x, y))
        if failed and failed[index]:
            draw.rectangle((x - 3, y - 3, x + cell + 2, y + cell + 2), outline="#e00000", width=4)
        lines = textwrap.wrap(caption, 34)[:3]
        draw.multiline_text((x, y + cell + 1), "\n".join(lines), fill="#202020", font=font, spacing=1)
    return sheet
