"""What image files say of themselves, read and written: texts of PNG, EXIF of JPEG and WebP. No pixel is decoded."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Final

from PIL import Image

from mflux_api.images.base64_text import NotAFile, decode_text
from mflux_api.images.child import protocol as p
from mflux_api.images.child.formats.png import plain_png, read_text, text_names
from mflux_api.images.child.formats.refused import Refused
from mflux_api.images.png import RECORD_KEY, SIGNATURE

_MOST_TEXT: Final = 64 * 1024
_MOST_ITEMS: Final = 16
_MOST_ITEM: Final = 16 * 1024

# Exif 2.32: the Exif IFD; UserComment, whose first 8 bytes name its encoding; MakerNote, for a maker's own data.
_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"
_OURS: Final = b"mflux_api\0"


def to_exif(infotext: str, record: str) -> Image.Exif:
    """Return the EXIF data of a conversion; empty where there is nothing to say."""
    exif = Image.Exif()
    if infotext:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + infotext.encode("utf-16-be")
    if record:
        exif.get_ifd(_EXIF_IFD)[_MAKER_NOTE] = _OURS + record.encode("ascii", "replace")
    return exif


def read_metadata(order: p.ReadMetadata, texts: Sequence[bytes]) -> tuple[p.MetadataRead, Sequence[bytes]]:
    """Return what a file tells of itself.

    Raises:
        InvalidParameter: it is not a PNG, JPEG or WebP file.
    """
    try:
        data = decode_text(texts[0].decode("ascii"))
        is_png = data.startswith(SIGNATURE)
        with Image.open(BytesIO(plain_png(data) if is_png else data), formats=("PNG", "JPEG", "WEBP")) as image:
            size, kind = image.size, image.format or ""
            infotext, record = ("", "") if is_png else _of_exif(image)
    except (NotAFile, Refused) as refused:
        raise order.refuse(0, str(refused)) from None
    except (OSError, SyntaxError, ValueError):
        # Pillow's words for what it does not know.
        raise order.refuse(0, "is not a PNG, JPEG or WebP file, or is damaged") from None
    items = dict[str, str]()
    if is_png:
        infotext, record = _short(read_text(data, "parameters")), _short(read_text(data, RECORD_KEY))
        items = dict(_items(data))
    found = p.MetadataRead(width=size[0], height=size[1], format=kind.lower(), items=tuple(items))
    return found, [text.encode("utf-8", "replace") for text in (infotext, record, *items.values())]


def _items(data: bytes) -> Iterator[tuple[str, str]]:
    for name in text_names(data)[:_MOST_ITEMS]:
        if name not in ("parameters", RECORD_KEY):
            yield name, read_text(data, name)[:_MOST_ITEM]


def _of_exif(image: Image.Image) -> tuple[str, str]:
    """Return the infotext and the record of a JPEG or WebP file."""
    ifd = image.getexif().get_ifd(_EXIF_IFD)
    comment, note = ifd.get(_USER_COMMENT, b""), ifd.get(_MAKER_NOTE, b"")
    infotext = _comment(comment) if isinstance(comment, bytes) else str(comment)
    record = note.removeprefix(_OURS).decode("ascii", "replace") if _is_ours(note) else ""
    return _short(infotext), _short(record)


def _is_ours(note: object) -> bool:
    return isinstance(note, bytes) and note.startswith(_OURS)


def _comment(data: bytes) -> str:
    if data.startswith(_UNICODE):
        # Programs differ on the order of bytes: of two readings that of fewer strange letters is meant.
        text = data.removeprefix(_UNICODE)
        readings = [text.decode(order, "replace").strip("\0") for order in ("utf-16-be", "utf-16-le")]
        return max(readings, key=lambda reading: sum(letter < "\u0250" for letter in reading))
    return data.removeprefix(_ASCII).decode("utf-8", "replace").strip("\0")


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else ""
