"""BMP: a bound on packed pixels, which the decoder unpacks run by run, and the colour profile; no part is cut out."""

from mflux_api.images.child.formats.refused import MAX_PROFILE, BadProfile, Refused

_MAX_PACKED = 8 << 20
"""Bytes of runs, two seconds' work. Programs write packed files of few colours, which are small."""
_RLE8, _RLE4 = 1, 2
_HEADER_AT, _V5_BYTES = 14, 124
_EMBEDDED = b"DEBM"


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


def bmp_profile(data: bytes) -> bytes:
    """Return the colour profile in a BMP file; b"" where there is none.

    Raises:
        BadProfile: it is cut off or too large.
    """
    header = data[_HEADER_AT : _HEADER_AT + _V5_BYTES]
    if len(header) < _V5_BYTES or int.from_bytes(header[:4], "little") != _V5_BYTES or header[56:60] != _EMBEDDED:
        return b""
    at, size = (int.from_bytes(header[place : place + 4], "little") for place in (112, 116))
    if size > MAX_PROFILE:
        raise BadProfile("is too large")
    if _HEADER_AT + at + size > len(data):
        raise BadProfile("is not whole")
    return data[_HEADER_AT + at : _HEADER_AT + at + size]
