"""Which format a file has, the file as its decoder gets it, and the colour profile, which no decoder gets."""

from collections.abc import Callable, Mapping

from mflux_api.images.child.formats.avif import plain_avif
from mflux_api.images.child.formats.bmp import bmp_profile, plain_bmp
from mflux_api.images.child.formats.gif import gif_profile, plain_gif
from mflux_api.images.child.formats.jpeg import jpeg_profile, plain_jpeg
from mflux_api.images.child.formats.png import plain_png, png_profile
from mflux_api.images.child.formats.refused import Refused
from mflux_api.images.child.formats.tiff import plain_tiff, tiff_profile
from mflux_api.images.child.formats.webp import plain_webp, webp_profile
from mflux_api.images.png import SIGNATURE


def plain_file(data: bytes) -> tuple[str, bytes]:
    """Return the format that Pillow is to open a file as, and the file without what pixels do not need.

    Raises:
        Refused: it is not of a known format, or beyond the format's bounds.
    """
    for name, matches in _NOT_READ:
        if matches(data):
            raise Refused(f"is {name}, which is not read; send a PNG, JPEG or WebP")
    for kind, matches, plain in _FORMATS:
        if matches(data):
            return kind, plain(data)
    raise Refused("is not an image of a known format; send a PNG, JPEG or WebP")


def read_profile(data: bytes) -> bytes:
    """Return the colour profile in a file that :func:`plain_file` took; b"" where there is none, or a decoder has it.

    Raises:
        BadProfile: it is damaged or too large.
    """
    for kind, matches, _ in _FORMATS:
        if matches(data) and kind in _PROFILES:
            return _PROFILES[kind](data)
    return b""


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _is_avif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and any(brand in data[8:64] for brand in (b"avif", b"avis", b"mif1", b"msf1"))


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and b"avif" not in data[8:64]


_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def _begins(*heads: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(heads)


_FORMATS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], bytes]], ...] = (
    ("PNG", _begins(SIGNATURE), plain_png),
    ("JPEG", _begins(b"\xff\xd8\xff"), plain_jpeg),
    ("WEBP", _is_webp, plain_webp),
    ("GIF", _begins(b"GIF87a", b"GIF89a"), plain_gif),
    ("TIFF", _begins(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), plain_tiff),
    ("BMP", _begins(b"BM"), plain_bmp),
    ("AVIF", _is_avif, plain_avif),
)

_NOT_READ: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("HEIC", _is_heic),
    ("JPEG XL", _begins(b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    ("JPEG 2000", _begins(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    ("SVG", _begins(b"<svg", b"<?xml")),
    ("a PDF", _begins(b"%PDF")),
    ("a file of Photoshop's", _begins(b"8BPS")),
    ("an icon", _begins(b"\0\0\1\0", b"icns")),
)

_PROFILES: Mapping[str, Callable[[bytes], bytes]] = {
    "PNG": png_profile,
    "JPEG": jpeg_profile,
    "WEBP": webp_profile,
    "GIF": gif_profile,
    "TIFF": tiff_profile,
    "BMP": bmp_profile,
}
