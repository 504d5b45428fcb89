"""Why a file is not decoded."""

MAX_PARTS = 65_536
"""Chunks or segments of a file: a PNG of 48 MB in chunks of 1 KB has fewer."""
MAX_NOTES = 512 * 1024
"""Bytes of EXIF or XMP: a JPEG's segment holds 64 KB, and elsewhere there may be a preview in it."""


MAX_PROFILE = 4 << 20
"""Bytes of a colour profile: those of presses have one to three million."""


class Refused(Exception):
    """The message completes the sentence "image 1 …"."""


class BadProfile(Exception):
    """The message completes the sentence "its colour profile …"."""


def too_many_parts() -> Refused:
    """Return the error for a file that is cut into more parts than programs write."""
    return Refused("has too many parts; save it again as a plain PNG or JPEG")


def damaged() -> Refused:
    """Return the error for a file that is not whole, or not what it says."""
    return Refused("is damaged or cut off; save or send it again")
