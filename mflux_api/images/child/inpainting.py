"""What a run needs that keeps a part of an image: the mask, what is generated, and what is seen of either.

Masks are of one byte a pixel: 255 is inpainted, 0 is kept.
"""

import math

import attrs
from PIL import Image, ImageChops, ImageFilter

from mflux_api.images.child.filling import fill_holes
from mflux_api.images.child.protocol import Box, Margins, Size

_HALF = 128
_DARK = 32
_MEANT = 0.1
_BINARY = [255 * (value >= _HALF) for value in range(256)]
_OPPOSITE = [255 - value for value in range(256)]
_DOUBLED = [min(255, 2 * value) for value in range(256)]
_ANY = [0] + [255] * 255


class NothingMasked(Exception):
    """No pixel of the result is inpainted; the message is a clause about the mask."""


@attrs.frozen
class Layers:
    """The images of a run; ``start`` and ``mask`` are what is generated, in its own size."""

    start: Image.Image
    mask: Image.Image
    overlay: Image.Image
    """The whole image in the result's size."""
    blurred: Image.Image
    """Its mask, with a soft edge around what is white."""
    box: Box
    """Where in the result the generated part is."""


def mask_levels(image: Image.Image, *, transparent: bool = False) -> Image.Image:
    """Return how white a decoded mask is, one byte a pixel.

    An image whose alpha is not opaque everywhere is read by it: opaque is inpainted, as in A1111, or what is
    ``transparent``, as OpenAI has it.
    """
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.point(_OPPOSITE).getbbox() is not None:
            return alpha.point(_OPPOSITE) if transparent else alpha
    # Pillow has no other way from Lab, whose first channel is the brightness.
    return image.getchannel(0) if image.mode == "LAB" else image.convert("L")


def black_and_white(levels: Image.Image) -> Image.Image:
    """Return a mask: from the middle on white, which is inpainted."""
    return levels.point(_BINARY)


def is_soft(levels: Image.Image) -> bool:
    """Whether so much of a mask is grey that it was meant; edges and JPEG make a little of it."""
    counts = levels.histogram()
    return sum(counts[_DARK:-_DARK]) > _MEANT * sum(counts)


def lay_out(
    source: Image.Image, mask: Image.Image | None, *, invert: bool, extend: Margins
) -> tuple[Image.Image, Image.Image]:
    """Return the image, extended by the colours of its edges, and its mask; what is added is masked.

    Args:
        source: RGB.
        mask: in any size; ``None``: only what is added is masked.
        invert: whether the mask's black is inpainted.
        extend: pixels that are added left, above, right and below.
    """
    holes = lay_out_mask(mask, source.size, invert=invert, extend=extend)
    if not any(extend):
        return source, holes
    whole = Image.new("RGB", holes.size)
    whole.paste(source, extend[:2])
    return fill_holes(whole, lay_out_mask(None, source.size, invert=False, extend=extend)), holes


def lay_out_mask(mask: Image.Image | None, source: Size, *, invert: bool, extend: Margins) -> Image.Image:
    """Return the mask of an image that is extended; what is added is masked.

    Args:
        mask: in any size; ``None``: only what is added is masked.
        source: the size of the image.
        invert: whether the mask's black is inpainted.
        extend: pixels that are added left, above, right and below.
    """
    mask = Image.new("L", source, 0) if mask is None else _scaled(mask.point(_OPPOSITE) if invert else mask, source)
    if not any(extend):
        return mask
    left, top, right, bottom = extend
    holes = Image.new("L", (source[0] + left + right, source[1] + top + bottom), 255)
    holes.paste(mask, (left, top))
    return holes


def compose(
    whole: Image.Image,
    mask: Image.Image,
    *,
    run: Size,
    result: Size,
    blur: tuple[float, float],
    padding: int | None,
    fill: bool,
) -> Layers:
    """Return the images of a run.

    Args:
        whole: RGB.
        mask: of its size.
        run: the size to generate at.
        result: the size of the result.
        blur: radius of the mask's edge in pixels of the result.
        padding: how much around the masked part is generated with it; ``None``: the whole image is.
        fill: whether the masked part starts from the colours around it.

    Raises:
        NothingMasked: nothing of what is masked is seen in the result.
    """
    mask, blurred = place_mask(mask, result, blur)
    overlay = whole.resize(result, Image.Resampling.LANCZOS, box=covering_box(whole.size, result))
    box = (0, 0, *result)
    if padding is not None and (masked := blurred.getbbox()) is not None:
        box = crop_box(masked, padding, run, result)
    left, top, width, height = box
    corners = (left, top, left + width, top + height)
    start = overlay.crop(corners).resize(run, Image.Resampling.LANCZOS)
    mask = _scaled(mask.crop(corners), run)
    return Layers(fill_holes(start, mask) if fill else start, mask, overlay, blurred, box)


def place_mask(mask: Image.Image, result: Size, blur: tuple[float, float]) -> tuple[Image.Image, Image.Image]:
    """Return a mask in the size of the result, and the same with its soft edge.

    Args:
        mask: of the whole image.
        result: the size of the result.
        blur: radius across and down.

    Raises:
        NothingMasked: nothing of what is masked is seen in the result.
    """
    mask = _scaled(mask, result, covering_box(mask.size, result))
    if mask.getbbox() is None:
        across, down = result
        raise NothingMasked(f"all that it masks is cut off by the shape of the result, {across} × {down} pixels")
    blurred = soften(mask, blur) if any(blur) else mask
    if blurred.getbbox() is None:
        raise NothingMasked("what it masks is too small for this 'mask_blur', which leaves nothing of it")
    return mask, blurred


def is_cut_off(mask: Image.Image, result: Size) -> bool:
    """Whether the shape of the result cuts off some of what is masked; a rounding of its size does not count.

    Args:
        mask: of the whole image.
        result: the size of the result.
    """
    left, top, right, bottom = covering_box(mask.size, result)
    # Sizes are snapped to multiples of 16, by a percent of a side.
    across, down = 2 + mask.width // 100, 2 + mask.height // 100
    rest = mask.copy()
    rest.paste(0, (int(left) - across, int(top) - down, math.ceil(right) + across, math.ceil(bottom) + down))
    return rest.getbbox() is not None


def soften(mask: Image.Image, blur: tuple[float, float]) -> Image.Image:
    """Return a mask with a soft edge: white where it was, darker the farther out, and 0 where its blur is 0.

    A blur alone would be grey within the mask, too, and show what was there: a ghost of what is to go. So it is
    doubled, as A1111 does it: at a straight edge it is white then. What is narrower than the blur stays white as well.

    Args:
        mask: 0 and 255.
        blur: radius across and down.
    """
    blurred = mask.filter(ImageFilter.GaussianBlur(blur))
    kept = ImageChops.darker(mask, blurred.point(_ANY))
    return ImageChops.lighter(kept, blurred.point(_DOUBLED))


def crop_box(masked: tuple[int, int, int, int], padding: int, run: Size, result: Size) -> Box:
    """Return which part of an image is generated: the masked part and its padding, in the sides' ratio of the run.

    It is A1111's and diffusers' region: it grows to both sides alike, is moved into the image, and is cut off there.

    Args:
        masked: left, top, right and bottom of the masked part.
        padding: pixels around it.
        run: the size to generate at.
        result: the size of the image.
    """
    left, top, right, bottom = masked
    across = max(left - padding, 0), min(right + padding, result[0])
    down = max(top - padding, 0), min(bottom + padding, result[1])
    width, height = across[1] - across[0], down[1] - down[0]
    ratio = run[0] / run[1]
    if width / height > ratio:
        down = _grown(down, int(width / ratio), result[1])
    else:
        across = _grown(across, int(height * ratio), result[0])
    return across[0], down[0], across[1] - across[0], down[1] - down[0]


def _grown(span: tuple[int, int], length: int, limit: int) -> tuple[int, int]:
    begin, end = span
    more = max(0, length - (end - begin))
    begin, end = begin - more // 2, end + more - more // 2
    if end > limit:
        begin, end = begin - (end - limit), limit
    if begin < 0:
        begin, end = 0, end - begin
    return begin, min(end, limit)


def covering_box(size: Size, wanted: Size) -> tuple[float, float, float, float]:
    """Return the middle of an image that has the sides' ratio of another size: left, top, right and bottom."""
    (width, height), (across, down) = size, wanted
    # Whole numbers first: a ratio that is the same leaves the image whole, to the last bit.
    if width * down > height * across:
        cut = (width - height * across / down) / 2
        return cut, 0, width - cut, height
    cut = (height - width * down / across) / 2
    return 0, cut, width, height - cut


def _scaled(mask: Image.Image, size: Size, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """Return a mask, or a box of it, in another size; what is smaller than a pixel does not vanish."""
    box = (0, 0, *mask.size) if box is None else box
    scaled = mask.resize(size, Image.Resampling.BILINEAR, box=box).point(_BINARY)
    if size[0] < box[2] - box[0] or size[1] < box[3] - box[1]:
        # A line beside an area: what is white in part stays, where nothing near it is.
        touched = mask.resize(size, Image.Resampling.BOX, box=box).point(_ANY)
        near = scaled.filter(ImageFilter.MaxFilter(3))
        scaled = ImageChops.lighter(scaled, ImageChops.subtract(touched, near))
    inner = mask.crop((math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])))
    if scaled.getbbox() is None and (masked := inner.getbbox()) is not None:
        left, top, right, bottom = masked
        across, down = size[0] / inner.width, size[1] / inner.height
        scaled.paste(255, (int(left * across), int(top * down), math.ceil(right * across), math.ceil(bottom * down)))
    return scaled
