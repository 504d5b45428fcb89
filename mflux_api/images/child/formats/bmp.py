"""BMP: a bound on packed pixels, which the decoder unpacks run by run; the file itself goes on as it is."""

from mflux_api.images.child.formats.refused import Refused

_MAX_PACKED = 8 << 20
"""Bytes of runs, two seconds' work. Programs write packed files of few colours, which are small."""
_RLE8, _RLE4 = 1, 2


def plain_bmp(data: bytes) -> bytes:
    """Return the file, unless its pixels are packed into very many runs.

    Raises:
        Refused: they are.
    """
    # Where the header is the older one, of 12 bytes, this is a colour or a pixel; such a file is never packed.
    header, compression = (int.from_bytes(data[at : at + 4], "little") for at in (14, 30))
    if header > 12 and compression in (_RLE8, _RLE4) and len(data) > _MAX_PACKED:
        raise Refused("is packed run by run and too large for that; save it again as a plain PNG or JPEG")
    return data
