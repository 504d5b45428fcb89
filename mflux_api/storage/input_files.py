"""Init images of asynchronous jobs on disk: a job that waits across a restart still has what it was given."""

import hashlib
from pathlib import Path

import attrs

from mflux_api.system.durable import make_folder, write_whole


@attrs.frozen
class InputFiles:
    """Files by the digest of their content, so that what several jobs share is kept once."""

    folder: Path

    def keep(self, text: str) -> str:
        """Keep an input as the client sent it (base64 or data URL) and return its digest; durable when this returns.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder / digest
        if not path.exists():
            make_folder(self.folder)
            write_whole(path, data)
        return digest

    def read(self, digest: str) -> str:
        """Return an input. It is empty when its file was removed or is broken, so that only its own job fails."""
        try:
            return (self.folder / digest).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    def discard(self, digest: str) -> None:
        """Remove an input that no job needs any more."""
        (self.folder / digest).unlink(missing_ok=True)
