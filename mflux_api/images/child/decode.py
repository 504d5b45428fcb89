"""Images from strangers: base64 or a data URL becomes RGB pixels, or one clear error.

These bytes come from clients: only formats that browsers and cameras write are opened, a decoder gets only what the
pixels need, their number is known before the first is decoded, and whatever it raises is the same error to the client.
"""

from collections.abc import Callable
from io import BytesIO

from PIL import (
    AvifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    ImageOps,
    TiffImagePlugin,
    UnidentifiedImageError,
)

from mflux_api.errors import InvalidParameter
from mflux_api.images.base64_text import NotAFile, decode_text
from mflux_api.images.child.colour import lab_to_rgb, to_srgb
from mflux_api.images.child.formats.jpeg import END_OF_JPEG
from mflux_api.images.child.formats.plain import plain_file, read_profile
from mflux_api.images.child.formats.refused import BadProfile, Refused, damaged
from mflux_api.images.sizes import MAX_PIXELS, MULTIPLE, reference_size

LIMIT = f"base64 or a data URL of a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF image of at most {MAX_PIXELS // 10**6} MP"

_WHITE_IS_ZERO = 0
_PLANES = 2
_RAW = 1

# A thread for each core would each reserve memory, and one image is to take no more than one core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _keep_silent(problem: str) -> None:
    """Say nothing: who checked the image before has said it."""


def decode_image(
    data: bytes,
    index: int,
    field: str = "init_images",
    *,
    reference: bool = True,
    warn: Callable[[str], None] = _keep_silent,
) -> Image.Image:
    """Return an image as sRGB: turned as its EXIF orientation says, on white where it is transparent.

    Its colour profile is followed. An animation gives its first frame. Takes up to a second for a large image.

    Args:
        data: the file.
        index: its place in the request, for the error.
        field: what the client calls the list it is in, for the error.
        reference: whether it is for editing, which needs a least size; ``False`` for upscaling.
        warn: is given a sentence about what is wrong with the image and does not keep it from being used.

    Raises:
        InvalidParameter: it is not a whole image of a known format, or too large or too small.
    """

    def convert(image: Image.Image) -> Image.Image:
        try:
            image = _follow_profile(image, data)
        except BadProfile as bad:
            warn(f"Image {index + 1} of '{field}': its colour profile {bad}; it was ignored")
        return _put_on_white(image)

    try:
        return _decode(data, reference=reference, convert=convert)
    except Refused as refused:
        raise _error(field, index, refused) from None


def decode_mask(data: bytes, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Return a mask, turned as its EXIF orientation says; a colour profile means nothing in it.

    Args:
        data: the file.
        convert: makes the mask of an image of at most 8 bits a channel.

    Raises:
        Refused: it is not a whole image of a known format, or too large.
    """
    return _decode(data, reference=False, convert=convert)


def file_of(text: str, index: int, field: str = "init_images") -> bytes:
    """Return the file that a client sent as base64 or a data URL.

    Args:
        text: what it sent.
        index: its place in the request, for the error.
        field: what the client calls the list it is in, for the error.

    Raises:
        InvalidParameter: it is neither.
    """
    try:
        return decode_text(text)
    except NotAFile as refused:
        raise _error(field, index, refused) from None


def _error(field: str, index: int, refused: Exception) -> InvalidParameter:
    return InvalidParameter.for_field(field, f"is invalid: image {index + 1} {refused}", limit=LIMIT, index=index)


def _decode(data: bytes, *, reference: bool, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    kind, plain = plain_file(data)
    try:
        if kind == "JPEG" and not plain.endswith(END_OF_JPEG):
            plain = _ended_jpeg(plain, reference)
        with Image.open(BytesIO(plain), formats=(kind,)) as image:
            _check_size(*image.size, reference)
            negative, covered = _is_negative(image), _covered(image)
            _load(image, plain)
            if covered is not None:
                return convert(_alone(image, covered))
            # After the frame is chosen and before anything forgets the EXIF data.
            upright = _with_eight_bits(_apply_orientation(image))
            return convert(ImageOps.invert(upright) if negative else upright)
    except Refused:
        raise
    except UnidentifiedImageError:
        raise _not_read(kind) from None
    except MemoryError:
        # The limit of the process, and not the image's own fault: who set it says what it means.
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(f"has too many pixels; scale it down to {MAX_PIXELS // 10**6} MP") from None
    except Exception as error:  # noqa: BLE001 - a decoder may raise anything on bytes from outside
        raise (_not_read(kind) if "unsupported" in str(error).casefold() else damaged()) from None


def _not_read(kind: str) -> Refused:
    return Refused(f"is {kind} of a kind that is not read, or damaged; save it as a plain PNG or JPEG")


def _covered(image: ImageFile.ImageFile) -> tuple[int, int, int, int] | None:
    """Return what the first frame of a GIF file covers of its image; ``None`` where that is all."""
    if image.format != "GIF" or not image.tile or image.tile[0].extents in (None, (0, 0, *image.size)):
        return None
    return image.tile[0].extents


def _alone(image: Image.Image, covered: tuple[int, int, int, int]) -> Image.Image:
    """Return an image in which there is nothing around a frame, as browsers show it: the decoder has a colour there."""
    alone = Image.new("RGBA", image.size)
    alone.paste(image.crop(covered).convert("RGBA"), covered[:2])
    return alone


def _is_negative(image: ImageFile.ImageFile) -> bool:
    """Whether an image of 16 bits has white for 0, which its decoder does not follow.

    Raises:
        Refused: it has colours in planes of 16 bits, which the decoder takes for 8 where they are not compressed.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    raw = tags.get(TiffImagePlugin.COMPRESSION, _RAW) == _RAW
    planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _PLANES
    if raw and planar and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8:
        raise Refused("has its colours in planes of 16 bits; save it with compression, or as a plain PNG")
    return image.mode.startswith("I;16") and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO


def _load(image: ImageFile.ImageFile, plain: bytes) -> None:
    # In blocks a decoder that waits for the end of a row, or of a marker, begins anew with each of them.
    image.decodermaxblock = max(image.decodermaxblock, len(plain))
    image.load()


def _ended_jpeg(cut: bytes, reference: bool) -> bytes:
    """Return a JPEG file with its end, of which nothing but that is missing.

    What a decoder makes of missing pixels depends on what follows; pixels that are there do not.

    Raises:
        Refused: pixels are missing, too.
    """
    seen = list[Image.Image]()
    for follows in (b"", bytes(range(1, 255)) * 16):
        try:
            with Image.open(BytesIO(cut + follows + END_OF_JPEG), formats=("JPEG",)) as image:
                _check_size(*image.size, reference)
                _load(image, cut)
                seen.append(image)
        except (OSError, SyntaxError, ValueError):
            raise damaged() from None
    if ImageChops.difference(*seen).getbbox() is not None:
        raise damaged()
    return cut + END_OF_JPEG


def _apply_orientation(image: Image.Image) -> Image.Image:
    try:
        turned: Image.Image = ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - the pixels are sound; what a program wrote beside them does not matter
        return image
    return turned


def _with_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion would clip 16 bits at 255: all white. It scales "I" alone in every byte order.
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("I", "F"):
        # The value of white is unknown in them, and Pillow's own conversion would clip them at 255, too.
        raise Refused("has 32 bits a pixel; save it with 8 or 16")
    return image


def _follow_profile(image: Image.Image, data: bytes) -> Image.Image:
    # The decoder of an AVIF file has it; of the others it gets the pixels alone.
    profile = read_profile(data) or image.info.get("icc_profile")
    return to_srgb(image, profile) if profile else image


def _check_size(width: int, height: int, reference: bool) -> None:
    if width * height > MAX_PIXELS:
        raise Refused(f"has {width} × {height} pixels; scale it down to {MAX_PIXELS // 10**6} MP")
    if reference and not all(reference_size(width, height)):
        raise Refused(f"has {width} × {height} pixels; a side needs at least {MULTIPLE}, also once scaled to 1 MP")


def _put_on_white(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        return lab_to_rgb(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
