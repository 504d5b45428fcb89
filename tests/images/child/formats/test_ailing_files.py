"""Whatever ails a part that the pixels do not need, the pixels are read; what ails the pixels is told."""

import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial

import pytest
from PIL import Image, TiffImagePlugin

from mflux_api.errors import InvalidParameter
from mflux_api.images.child.decode import decode_image
from mflux_api.images.child.formats.png import read_text
from tests.support.hostile_images import chunk, saved

SCENE = Image.effect_noise((64, 64), 90).convert("RGB")
RANDOM = Image.effect_noise((1024, 1024), 120).tobytes()
"""A megabyte that hardly packs, as a workflow with images in it."""
PNG, JPEG, GIF, TIFF, BMP = (saved(SCENE, kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP"))
PROGRESSIVE = saved(SCENE, "JPEG", progressive=True)
STILL = saved(SCENE, "WEBP", lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
NOTES = Image.Exif()
NOTES[0x010F] = "a camera"
AVIF = saved(SCENE, "AVIF", exif=NOTES.tobytes())
LOSSY = saved(SCENE, "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")


def png(*chunks: bytes) -> bytes:
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def wrong(part: bytes) -> bytes:
    """A chunk whose checksum is not its content's."""
    return part[:-4] + bytes(4)


def jpeg(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def webp(data: bytes, kind: bytes, at: int, change: bytes) -> bytes:
    """A WebP file with a few bytes of a chunk changed."""
    place = data.index(kind) + at
    return data[:place] + change + data[place + len(change) :]


def gif(*parts: bytes) -> bytes:
    at = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)
    return GIF[:at] + b"".join(parts) + GIF[at:]


def tiff(tag: int, kind: int, value: object, compression: str | None = None) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[tag] = kind
    tags[tag] = value
    return saved(SCENE, "TIFF", tiffinfo=tags, compression=compression)


def tiff_entry(data: bytes, entry: bytes) -> bytes:
    """A TIFF file with one more entry of its directory, which is moved to the end."""
    at = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[at : at + 2])[0]
    entries = sorted([*(data[at + 2 + 12 * n : at + 14 + 12 * n] for n in range(count)), entry])
    table = struct.pack("<H", count + 1) + b"".join(entries) + struct.pack("<I", at)
    data += bytes(len(data) % 2)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + table


LOSSLESS: Mapping[str, Callable[[], bytes]] = {
    "png text of megabytes": lambda: png(chunk(b"tEXt", b"workflow\0" + RANDOM * 3)),
    "png packed text of megabytes": lambda: png(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(RANDOM * 3, 1))),
    "png packed texts of 100 MB": lambda: png(
        *(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(5 << 20), 1)) for _ in range(20))
    ),
    "png international text of megabytes": lambda: png(chunk(b"iTXt", b"workflow\0\0\0\0\0" + RANDOM * 3)),
    "png colour profile of megabytes": lambda: png(chunk(b"iCCP", b"p\0\0" + zlib.compress(RANDOM * 5, 1))),
    "png xmp of megabytes": lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + RANDOM)),
    "png xmp that is not UTF-8": lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\xff\0\xff\0<x")),
    "png exif of nonsense": lambda: png(chunk(b"eXIf", RANDOM[:60_000])),
    "png raw profile of nonsense": lambda: png(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\nz"))
    ),
    **{
        f"png {kind.decode()} with a wrong checksum": partial(png, wrong(chunk(kind, b"abc")))
        for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"bKGD", b"acTL", b"eXIf", b"tEXt", b"iTXt", b"PLTE")
    },
    **{
        f"png {kind.decode()} that is empty": partial(png, chunk(kind, b""))
        for kind in (b"gAMA", b"cHRM", b"pHYs", b"tRNS", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"sBIT")
    },
    "png transparency cut short": lambda: png(chunk(b"tRNS", b"\0")),
    "png chunk longer than the file": lambda: png(struct.pack(">I", 2**31 + 5) + b"teXt" + b"abc" + bytes(4)),
    "png with garbage behind its end": lambda: PNG + RANDOM[:1000],
    "png without an end": lambda: PNG[:-12],
    "png with half an end": lambda: PNG[:-5],
    "gif without a trailer": lambda: GIF[:-1],
    "gif without the end of its blocks": lambda: GIF[:-2],
    "gif with stray bytes": lambda: gif(b"\0\0\0"),
    "gif with odd extensions": lambda: gif(b"\x21\xff\3abc\0", b"\x21\1\0", b"\x21\xf9\1a\0", b"\x21\x99\0"),
    "gif with garbage behind its end": lambda: GIF + RANDOM[:500],
    "tiff with layers of 20 MB": lambda: tiff(37724, 7, bytes(20 << 20)),
    "tiff packed, with layers of 20 MB": lambda: tiff(37724, 7, bytes(20 << 20), "tiff_lzw"),
    "tiff with 300,000 numbers of a program's own": lambda: tiff(60001, 3, (1,) * 300_000),
    "tiff with photoshop's resources of 17 MB": lambda: tiff(34377, 1, bytes(17 << 20)),
    **{
        f"tiff with {name}": partial(tiff_entry, TIFF, struct.pack("<HHII", *entry))
        for name, entry in {
            "an entry beyond the file": (60000, 4, 100, 10**8),
            "an entry of a type that is not known": (60000, 99, 1, 8),
            "EXIF data beyond the file": (34665, 4, 1, 10**8),
            "a description beyond the file": (270, 2, 1000, 10**8),
            "an empty name": (305, 2, 0, 8),
            "a place beyond the file": (34853, 4, 1, 10**8),
            "images inside that never end": (330, 4, 1, 8),
        }.items()
    },
    "bmp with a wrong size": lambda: BMP[:2] + bytes(4) + BMP[6:],
    "bmp with a wrong size of its pixels": lambda: BMP[:34] + b"\xff\xff\xff\x7f" + BMP[38:],
    "bmp with an odd resolution": lambda: BMP[:38] + b"\xff" * 8 + BMP[46:],
    "bmp with garbage behind its end": lambda: BMP + RANDOM[:99],
    "webp with exif cut off": lambda: STILL[:-4],
    "webp with exif longer than the file": lambda: webp(STILL, b"EXIF", 4, struct.pack("<I", 10**6)),
    "webp with exif of nonsense": lambda: webp(STILL, b"EXIF", 8, b"\xff" * 16),
    "webp with a wrong size": lambda: webp(STILL, b"RIFF", 4, b"\1\0\0\0"),
    "webp with wrong flags": lambda: webp(STILL, b"VP8X", 8, b"\xff"),
    "webp with a wrong canvas": lambda: webp(STILL, b"VP8X", 12, b"\1\0\0\1\0\0"),
    "webp with garbage behind its end": lambda: STILL + RANDOM[:99],
}

SAME_AS: Mapping[str, tuple[bytes, Callable[[], bytes]]] = {
    "jpeg with zeros before its end": (JPEG, lambda: JPEG[:-2] + bytes(100) + b"\xff\xd9"),
    "jpeg with garbage before its end": (JPEG, lambda: JPEG[:-2] + b"\xff\x00ab" + RANDOM[:3000] + b"\xff\xd9"),
    "jpeg with half segments before its end": (JPEG, lambda: JPEG[:-2] + b"\xff\xe1\xff\xffab" * 9 + b"\xff\xd9"),
    "jpeg with a frame of no size before its end": (JPEG, lambda: JPEG[:-2] + b"\xff\xc0\0\1ab\xff\xd9"),
    "jpeg with garbage behind its end": (JPEG, lambda: JPEG + RANDOM[:1000]),
    "jpeg without an end": (JPEG, lambda: JPEG[:-2]),
    "jpeg with half an end": (JPEG, lambda: JPEG[:-1]),
    "jpeg of many scans without an end": (PROGRESSIVE, lambda: PROGRESSIVE[:-2]),
    "jpeg with a note longer than the file": (JPEG, lambda: jpeg(b"\xff\xe1\xff\xff")),
    "jpeg with a note of no length": (JPEG, lambda: jpeg(b"\xff\xed\0\0")),
    "jpeg with half a colour mark": (JPEG, lambda: jpeg(b"\xff\xee\0\x07Adobe")),
    "jpeg with empty exif": (JPEG, lambda: jpeg(b"\xff\xe1\0\x08Exif\0\0")),
    "jpeg with a comment of nonsense": (JPEG, lambda: jpeg(b"\xff\xfe\0\x06\xff\xfe\xff\xfe")),
    "avif with exif of nonsense": (AVIF, lambda: AVIF.replace(NOTES.tobytes()[6:14], bytes(8))),
    "lossy webp with exif cut off": (LOSSY, lambda: LOSSY[:-4]),
    "lossy webp with wrong flags": (LOSSY, lambda: webp(LOSSY, b"VP8X", 8, b"\xff")),
    "lossy webp with half a header": (
        LOSSY,
        lambda: LOSSY[: LOSSY.index(b"VP8X") + 4] + b"\4\0\0\0" + LOSSY[20:24] + LOSSY[30:],
    ),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_pixels_are_read_whatever_ails_the_rest(name: str) -> None:
    data = LOSSLESS[name]()
    expected = decode_image(GIF, 0) if name.startswith("gif") else SCENE
    assert decode_image(data, 0).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", SAME_AS)
def test_pixels_are_those_of_the_sound_file_whatever_ails_the_rest(name: str) -> None:
    sound, made = SAME_AS[name]
    assert decode_image(made(), 0).tobytes() == decode_image(sound, 0).tobytes()


def test_transparency_with_a_wrong_checksum_is_transparency() -> None:
    transparent = SCENE.getpixel((5, 5))
    data = png(wrong(chunk(b"tRNS", struct.pack(">3H", *transparent))))  # type: ignore[misc]  # three levels
    assert decode_image(data, 0).getpixel((5, 5)) == (255, 255, 255)


def test_palette_that_is_only_a_suggestion_may_be_damaged_and_another_may_not() -> None:
    assert decode_image(png(wrong(chunk(b"PLTE", bytes(7)))), 0).tobytes() == SCENE.tobytes()
    data = saved(SCENE.quantize(), "PNG")
    at = data.index(b"PLTE")
    with pytest.raises(InvalidParameter, match="damaged"):
        decode_image(data[: at + 9] + b"\x7f" + data[at + 10 :], 0)


CUT: Mapping[str, bytes] = {
    "png": PNG[: len(PNG) // 2],
    "jpeg": JPEG[: len(JPEG) // 2],
    "jpeg of which hardly anything is missing": JPEG[:-60],
    "jpeg of many scans": PROGRESSIVE[: len(PROGRESSIVE) // 2],
    "gif": GIF[: len(GIF) // 2],
    "tiff": TIFF[: len(TIFF) // 2],
    "webp": STILL[: len(STILL) // 2],
    "lossy webp": LOSSY[: len(LOSSY) // 2],
    "bmp": BMP[: len(BMP) // 2],
}


@pytest.mark.parametrize("name", CUT)
def test_missing_pixels_are_still_told(name: str) -> None:
    with pytest.raises(InvalidParameter, match="damaged or cut off"):
        decode_image(CUT[name], 0)


def test_jpeg_without_an_end_that_says_that_it_is_enormous_is_not_decoded() -> None:
    frame = JPEG.index(b"\xff\xc0")
    data = JPEG[: frame + 5] + struct.pack(">HH", 25_000, 25_000) + JPEG[frame + 9 : -2]
    with pytest.raises(InvalidParameter, match="scale it down to 32 MP"):
        decode_image(data, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_infotext_beside_a_workflow_of_megabytes_is_read(packed: bool) -> None:
    text = b"a lake\nSteps: 4"
    infotext = (
        chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text)) if packed else chunk(b"tEXt", b"parameters\0" + text)
    )
    data = png(chunk(b"tEXt", b"workflow\0" + RANDOM * 3), wrong(chunk(b"tEXt", b"prompt\0{}")), infotext)
    assert read_text(data, "parameters") == text.decode()
    assert decode_image(data, 0).tobytes() == SCENE.tobytes()
