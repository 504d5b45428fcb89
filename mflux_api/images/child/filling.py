"""Holes in an image filled with the colours around them, smoother the farther from their edge."""

from PIL import Image

from mflux_api.images.sizes import scale_to_limit

_UNKNOWN = (128, 128, 128)


def fill_holes(image: Image.Image, holes: Image.Image) -> Image.Image:
    """Return an RGB image whose holes are filled; elsewhere it has its own bytes.

    The image is halved until one pixel is left, each pixel being the mean of those that are known; what a level does
    not know comes from the next smaller one ("push-pull", Gortler et al., The Lumigraph, 1996).

    Args:
        image: RGB.
        holes: of the same size: 255 where a pixel is not known, else 0.
    """
    size = scale_to_limit(*image.size)
    if size != image.size:
        # What is filled is smooth: it takes no more pixels, and of 32 MP they would take 300 MB.
        small = image.resize(size, Image.Resampling.BOX), holes.resize(size, Image.Resampling.BOX).point(_ANY)
        filled = _fill(*small).resize(image.size, Image.Resampling.BILINEAR)
        filled.paste(image, mask=holes.point(_OPPOSITE))
        return filled
    return _fill(image, holes)


def _fill(image: Image.Image, holes: Image.Image) -> Image.Image:
    known = image.convert("RGBA")
    known.putalpha(holes.point(_OPPOSITE))
    levels = [known]
    while max(levels[-1].size) > 1:
        levels.append(_halved(levels[-1]))
    filled = Image.new("RGBA", (1, 1), (*_UNKNOWN, 255))
    while levels:
        level = levels.pop()
        filled = filled.resize(level.size, Image.Resampling.BILINEAR)
        filled.paste(level, mask=level.getchannel("A"))
    return filled.convert("RGB")


def _halved(level: Image.Image) -> Image.Image:
    width, height = (max(1, (side + 1) // 2) for side in level.size)
    # With premultiplied alpha: what is not known counts for nothing.
    half = level.convert("RGBa").resize((width, height), Image.Resampling.BOX).convert("RGBA")
    half.putalpha(half.getchannel("A").point(_ANY))
    return half


_OPPOSITE = [255 - value for value in range(256)]
_ANY = [0] + [255] * 255
