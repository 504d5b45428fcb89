"""The secret of a service's tokens on disk, so that sessions and signed paths outlive a restart."""

import logging
from pathlib import Path

from mflux_api.system.durable import make_folder
from mflux_api.system.private_files import write_private

NAME = "mflux-api.secret"

logger = logging.getLogger(__name__)


def read_or_make(folder: Path, fresh: bytes) -> bytes:
    """Return the secret that a folder keeps; it keeps ``fresh`` from now on where it has none. Call it in a thread.

    Where the folder cannot be read or written the fresh one is returned, and ends with the process.
    """
    path = folder / NAME
    try:
        found = path.read_bytes() if path.exists() else b""
        if len(found) == len(fresh):
            return found
        make_folder(folder)
        write_private(path, fresh)
    except OSError as error:
        logger.warning("sessions and signed paths end with this process: %s cannot be kept (%s)", NAME, error.strerror)
    return fresh
