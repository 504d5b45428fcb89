"""Init images of asynchronous jobs on disk: a job that waits across a restart still has what it was given."""

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from mflux_api.images.base64_text import NotAFile, decode_text, encode_text
from mflux_api.system.private_files import make_private_folder, tighten, write_private

_OURS = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.tmp")
_DIGEST = re.compile(r"[0-9a-f]{64}")

_TEXT = re.compile(rb"data:.*|[A-Za-z0-9+/_=\s-]{1,64}", re.DOTALL | re.IGNORECASE)
"""How a file of 2.0.0 begins, which holds the text as it was sent; no format of images begins so."""


class InputFiles:
    """Files by the digest of their content, so that what several jobs share is kept once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(self._sizes.values())

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a file under its digest; durable when this returns.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        path = self._folder / digest
        if not path.exists():
            make_private_folder(self._folder)
            write_private(path, data)
        self._sizes[digest] = len(data)

    def bytes_more(self, files: Mapping[str, bytes]) -> int:
        """Return how much more keeping these, by their digests, would take."""
        return sum(len(data) for digest, data in files.items() if digest not in self._sizes)

    def read(self, digest: str) -> str:
        """Return a file as base64. It is empty when it was removed or is broken, so that only its own job fails."""
        try:
            data = (self._folder / digest).read_bytes()
        except OSError:
            return ""
        if digest_of(data) != digest:
            return ""
        return data.decode() if _TEXT.fullmatch(data.lstrip()[:64]) else encode_text(data)

    def discard(self, digest: str) -> None:
        """Remove a file that no job needs any more.

        Raises:
            OSError: it cannot be removed.
        """
        (self._folder / digest).unlink(missing_ok=True)
        self._sizes.pop(digest, None)

    def discard_all_but(self, needed: Collection[str]) -> int:
        """Remove what no job needs, and what a killed process left half written; return how many files that were.

        Raises:
            OSError: the folder cannot be read, or some of it cannot be removed; the rest is.
        """
        tighten([self._folder])
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        self._sizes = {name: (self._folder / name).lstat().st_size for name in names if _DIGEST.fullmatch(name)}
        tighten(self._folder / name for name in names if name in needed)
        count = 0
        stuck: OSError | None = None
        for name in names:
            if not _OURS.fullmatch(name) or name in needed:
                continue
            try:
                self.discard(name)
                count += 1
            except OSError as error:
                stuck = error
        if stuck is not None:
            raise stuck
        return count


def digest_of(data: bytes) -> str:
    """Return the name that a file gets."""
    return hashlib.sha256(data).hexdigest()


def stored_form(text: str) -> bytes:
    """Return what is kept of an init image: the bytes of the file that a client sent as base64 or data URL."""
    try:
        return decode_text(text)
    except NotAFile:
        # Whatever it is, its own job says what is wrong with it when it runs.
        return text.encode()
