"""Colour profiles of each kind, made here: what they say is known to the last digit."""

import struct
from collections.abc import Mapping, Sequence
from io import BytesIO

from PIL import ImageCms

Vector = tuple[float, float, float]

_D50: Vector = (0.9642, 1.0, 0.8249)
_SRGB_COLORANTS: tuple[Vector, Vector, Vector] = (
    (0.4361, 0.2225, 0.0139),
    (0.3851, 0.7169, 0.0971),
    (0.1431, 0.0606, 0.7141),
)


def srgb() -> bytes:
    """The sRGB that editors put into files."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """An RGB profile whose red is sRGB's blue, with a gamma of 2.2: any image changes visibly."""
    red, green, blue = _SRGB_COLORANTS
    return matrix(blue, green, red)


def matrix(red: Vector, green: Vector, blue: Vector, gamma: float = 2.2) -> bytes:
    """An RGB profile by its colorants."""
    curve = _curve(gamma)
    colours = {b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", colours | {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey(gamma: float = 1.0) -> bytes:
    """A profile of grey levels; those of a gamma of 1 are much brighter in sRGB."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk() -> bytes:
    """A profile of a press on which cyan prints as green: Lab values for each corner of its inks."""
    corners = list[Sequence[float]]()
    for cyan in (0, 1):
        for magenta in (0, 1):
            for yellow in (0, 1):
                for black in (0, 1):
                    light = 100.0 * (1 - black) * (1 - 0.4 * cyan) * (1 - 0.4 * magenta) * (1 - 0.05 * yellow)
                    corners.append((light, -80.0 * cyan + 70.0 * magenta, 50.0 * cyan + 60.0 * yellow))
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": _table(4, corners)})


def _table(inputs: int, corners: Sequence[Sequence[float]]) -> bytes:
    """A table of 16 bits with two points for each input."""
    identity = struct.pack(">9i", *(65536 if place % 4 == 0 else 0 for place in range(9)))
    head = b"mft2\0\0\0\0" + bytes((inputs, 3, 2, 0)) + identity + struct.pack(">HH", 2, 2)
    straight = struct.pack(">HH", 0, 65535)
    points = b"".join(
        struct.pack(">HHH", round(light * 652.8), round((a + 128) * 256), round((b + 128) * 256))
        for light, a, b in corners
    )
    return head + straight * inputs + points + straight * 3


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def _xyz(value: Vector) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(each * 65536) for each in value))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    description = b"a test profile\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(description)) + description + bytes(79)
    everything = {b"desc": described, b"wtpt": _xyz(_D50), b"cprt": b"text\0\0\0\0none\0", **tags}
    table, body = BytesIO(), BytesIO()
    at = 128 + 4 + 12 * len(everything)
    for name, value in everything.items():
        padded = value + bytes(-len(value) % 4)
        table.write(name + struct.pack(">II", at + body.tell(), len(value)))
        body.write(padded)
    rest = struct.pack(">I", len(everything)) + table.getvalue() + body.getvalue()
    head = struct.pack(">I4s4s4s4s4s", 128 + len(rest), b"test", b"\x02\x40\0\0", kind, space, connection)
    date = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    middle = date + b"acsp" + bytes(28) + struct.pack(">3i", *(round(each * 65536) for each in _D50))
    return (head + middle).ljust(128, b"\0") + rest
