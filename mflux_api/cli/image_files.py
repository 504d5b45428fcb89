"""Image files that a command reads: their content, and how they were made, by their own words."""

import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mflux_api.cli.error_text import name_options
from mflux_api.errors import InvalidParameter, ServiceError
from mflux_api.images.generation_record import ImageMetadata, recipe_of
from mflux_api.jobs.parse import convert
from mflux_api.jobs.request import GenerateRequest


def content_of(path: Path, what: str, details: Mapping[str, Any]) -> bytes:
    """Read a file that the person at the command named.

    Args:
        path: where it is.
        what: what it is called in the error.
        details: the error's.

    Raises:
        InvalidParameter: it cannot be read.
    """
    try:
        return path.expanduser().read_bytes()
    except (OSError, RuntimeError) as error:
        # Of a user without a home '~' is not known.
        reason = error.strerror if isinstance(error, OSError) else "the home folder that '~' stands for is unknown"
        raise InvalidParameter(f"The {what} {path} cannot be read: {reason}", details) from None


def read_file(path: Path) -> ImageMetadata:
    """Return what a file tells of itself.

    Raises:
        InvalidParameter: it cannot be read, or is not a PNG, JPEG or WebP file.
    """
    # Pillow takes a while to import, and the other commands do without.
    from mflux_api.images.child.metadata import read_metadata
    from mflux_api.images.child.protocol import ReadMetadata

    data = content_of(path, "image", {"limit": "a file"})
    try:
        done, blobs = read_metadata(ReadMetadata(), (base64.b64encode(data),))
    except ServiceError as error:
        raise InvalidParameter(f"The image {path}: {error.message}", dict(error.details)) from None
    return done.with_texts(blobs)


def read_request(path: Path) -> GenerateRequest:
    """Return the request that makes a file's image again; what it does not tell is told on standard error.

    Raises:
        InvalidParameter: the file cannot be read, or does not say how it was made.
    """
    recipe = recipe_of(read_file(path))
    if not recipe.request:
        raise InvalidParameter(f"The image {path} does not say how it was made; give a prompt instead")
    for warning in recipe.warnings:
        print(f"mflux-api: warning: {name_options(warning)}", file=sys.stderr)
    return convert(recipe.request, GenerateRequest)
