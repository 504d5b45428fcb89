"""GIF: the first frame, the colour that is transparent in it, and its colour profile, which is read apart."""

from mflux_api.images.child.formats.refused import MAX_PARTS, MAX_PROFILE, BadProfile, damaged, too_many_parts

_MAX_BLOCKS = 400_000
"""Blocks of 255 bytes: twice as many as 48 MB have. The end of each row of blocks is one."""
_EXTENSION, _IMAGE, _CONTROL, _APPLICATION = 0x21, 0x2C, 0xF9, 0xFF
_CONTROL_BYTES = 4
_END = 0x3B
_PROFILE = b"\x0bICCRGBG1012"


def plain_gif(data: bytes) -> bytes:
    """Return a GIF file with the first frame alone.

    Raises:
        Refused: it has too many blocks, or is cut off.
    """
    at = _first_part(data)
    parts, control, blocks, strays = [data[:at]], b"", 0, 0
    while True:
        kind = _byte(data, at)
        if kind == _EXTENSION:
            begin = at
            at, blocks = _skip_blocks(data, at + 2, blocks)
            if _byte(data, begin + 1) == _CONTROL and data[begin + 2] >= _CONTROL_BYTES:
                control = data[begin:at]
        elif kind == _IMAGE:
            begin = at
            # A descriptor, a table of colours, the size of the first code.
            at, blocks = _skip_blocks(data, at + 10 + _table_bytes(data, at + 9) + 1, blocks, may_end=True)
            parts += [control, data[begin:at], b"\0;" if at == len(data) else b";"]
            return b"".join(parts)
        else:
            # Stray bytes between the parts mean nothing, but the end ends it.
            at, strays = at + 1, strays + 1
            if kind == _END or strays > MAX_PARTS:
                raise damaged()


def gif_profile(data: bytes) -> bytes:
    """Return the colour profile before the first frame of a GIF file; b"" where there is none.

    Raises:
        BadProfile: it is too large.
    """
    at, blocks = _first_part(data), 0
    while _byte(data, at) == _EXTENSION:
        begin = at + 2
        at, blocks = _skip_blocks(data, begin, blocks)
        if data[begin - 1] == _APPLICATION and data.startswith(_PROFILE, begin):
            if at - begin > MAX_PROFILE:
                raise BadProfile("is too large")
            pieces, block = list[bytes](), begin + len(_PROFILE)
            while length := data[block]:
                pieces.append(data[block + 1 : block + 1 + length])
                block += 1 + length
            return b"".join(pieces)
    return b""


def _first_part(data: bytes) -> int:
    return 13 + _table_bytes(data, 10)


def _table_bytes(data: bytes, at: int) -> int:
    flags = _byte(data, at)
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int, count: int, *, may_end: bool = False) -> tuple[int, int]:
    while count < _MAX_BLOCKS:
        if may_end and at == len(data):
            # The last block is whole, and nothing says that it is the last.
            return at, count
        # The end counts, too: there may be nothing before it.
        length, count = _byte(data, at), count + 1
        at += 1 + length
        if not length:
            return at, count
    raise too_many_parts()


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise damaged()
    return data[at]
