"""Finished image files in answers: their formats, and PNG as base64."""

import os
from binascii import b2a_base64
from pathlib import Path

import attrs

from mflux_api.jobs.request import ImageFormat as ImageFormat
from mflux_api.jobs.resolve import ResolvedRequest

MEDIA_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@attrs.frozen(kw_only=True)
class ImageTarget:
    """What a finished image is made into."""

    format: ImageFormat = "png"
    quality: int | None = None
    """Of the lossy formats, 0 to 100; ``None``: 92."""
    side: int | None = None
    """The longer side in pixels, for a smaller image; one that is smaller already keeps its size."""

    @property
    def as_stored(self) -> bool:
        """Whether it is the file as it is on disk."""
        return self.format == "png" and self.side is None


def target_of(request: ResolvedRequest) -> ImageTarget:
    """Return what a job's images are made into for its answers."""
    # A row of a newer version may name a format that this one has not.
    wanted = request.output_format if request.output_format in MEDIA_TYPES else None
    lossy = wanted in ("jpeg", "webp")
    return ImageTarget(format=wanted or "png", quality=request.output_compression if lossy else None)


_PIECE_BYTES = 3 * 64 * 1024
_PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
_PNG_ENDS = b"\0\0\0\0IEND\xaeB`\x82"


def base64_length(size: int) -> int:
    """Return how long so many bytes are as base64."""
    return 4 * ((size + 2) // 3)


def read_png_as_base64(path: Path, size: int) -> bytearray:
    """Read a PNG file as base64, piece by piece: beside the result there is no copy in memory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a whole PNG file, or not of that size any more.
    """
    encoded = bytearray(base64_length(size))
    done, first, last = 0, b"", b""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise ValueError("the file has changed")
        while piece := file.read(_PIECE_BYTES):
            text = b2a_base64(piece, newline=False)
            if done + len(text) > len(encoded):
                raise ValueError("the file has grown")
            encoded[done : done + len(text)] = text
            done += len(text)
            first, last = first or piece[: len(_PNG_BEGINS)], (last + piece)[-len(_PNG_ENDS) :]
    if done != len(encoded) or first != _PNG_BEGINS or last != _PNG_ENDS:
        raise ValueError("the file is not a whole PNG file")
    return encoded
