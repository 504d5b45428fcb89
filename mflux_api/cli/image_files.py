"""Image files that a command reads: how they were made, by their own words."""

import base64
import sys
from pathlib import Path

from mflux_api.cli.error_text import name_options
from mflux_api.errors import InvalidParameter, ServiceError
from mflux_api.images.generation_record import ImageMetadata, recipe_of
from mflux_api.jobs.parse import convert
from mflux_api.jobs.request import GenerateRequest

MAX_BYTES = 256 * 2**20


def read_file(path: Path) -> ImageMetadata:
    """Return what a file tells of itself.

    Raises:
        InvalidParameter: it cannot be read, or is not a PNG, JPEG or WebP file.
    """
    # Pillow takes a while to import, and the other commands do without.
    from mflux_api.images.child.metadata import read_metadata
    from mflux_api.images.child.protocol import ReadMetadata

    try:
        data = path.expanduser().read_bytes()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the home folder that '~' stands for is unknown"
        raise InvalidParameter(f"The image {path} cannot be read: {reason}", {"limit": "a file"}) from None
    try:
        done, blobs = read_metadata(ReadMetadata(), (base64.b64encode(data),))
    except ServiceError as error:
        raise InvalidParameter(f"The image {path}: {error.message}", dict(error.details)) from None
    infotext, record, *values = (blob.decode("utf-8", "replace") for blob in blobs)
    return ImageMetadata(
        width=done.width,
        height=done.height,
        format=done.format,
        infotext=infotext,
        record=record,
        items=dict(zip(done.items, values, strict=True)),
    )


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
