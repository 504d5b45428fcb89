"""GIF: the first frame, and the colour that is transparent in it."""

from mflux_api.images.child.formats.refused import damaged, too_many_parts

_MAX_BLOCKS = 400_000
"""Blocks of 255 bytes: twice as many as 48 MB have. The end of each row of blocks is one."""
_EXTENSION, _IMAGE, _CONTROL = 0x21, 0x2C, 0xF9


def plain_gif(data: bytes) -> bytes:
    """Return a GIF file with the first frame alone.

    Raises:
        Refused: it has too many blocks, or is cut off.
    """
    at = 13 + _table_bytes(data, 10)
    parts, control, blocks = [data[:at]], b"", 0
    while True:
        kind = _byte(data, at)
        if kind == _EXTENSION:
            begin = at
            at, blocks = _skip_blocks(data, at + 2, blocks)
            if _byte(data, begin + 1) == _CONTROL:
                control = data[begin:at]
        elif kind == _IMAGE:
            begin = at
            # A descriptor, a table of colours, the size of the first code.
            at, blocks = _skip_blocks(data, at + 10 + _table_bytes(data, at + 9) + 1, blocks)
            parts += [control, data[begin:at], b";"]
            return b"".join(parts)
        else:
            raise damaged()


def _table_bytes(data: bytes, at: int) -> int:
    flags = _byte(data, at)
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int, count: int) -> tuple[int, int]:
    while count < _MAX_BLOCKS:
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
