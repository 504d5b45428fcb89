"""Files on this machine: which of them the tools may read, and the images that they have named to the client."""

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import attrs

from mflux_api.errors import InvalidParameter
from mflux_api.images.base64_text import encode_text
from mflux_api.ipc.printable import printable
from mflux_api.system.regular_files import FileTooLarge, NotRegularFile, read_regular
from mflux_api.system.threads import read_in_thread

MAX_FILE_BYTES: Final = 48 * 2**20
"""Largest file that is read, or brought back: as base64 it is the largest body of the REST API."""
MAX_LINKS: Final = 256
"""Images that the client can read by their links, the newest ones."""
_LONGEST_PATH: Final = 4096
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20})://")

MoreFolders = Callable[[], Awaitable[Sequence[Path]]]
"""Asks for the folders that the client has opened."""


def may_be_root(folder: Path) -> bool:
    """Whether a working directory is a folder of someone's work: not all of the disk, and not all of a home."""
    home = Path("~").expanduser()
    return folder.parent != folder and folder.resolve() != home.resolve()


@attrs.frozen
class InputFiles:
    """The images that requests name."""

    folders: tuple[Path, ...]
    """Where they may lie."""
    base: Path
    """What a relative path is relative to."""

    async def as_text(self, text: str, field: str, more: MoreFolders) -> str:
        """Return an image as requests carry it: of a path the file's content, and anything else as it is.

        Args:
            text: a path, base64 or a data URL.
            field: what the client calls it, for errors.
            more: asks for further folders; only where it is in none of those that are known.

        Raises:
            InvalidParameter: it is the address of something else, or a file that may not or cannot be read.
        """
        path = self._path(text, field)
        if path is None:
            return text
        try:
            resolved = await read_in_thread(path.resolve)
        except RuntimeError:
            raise _refuse(field, path, "is behind links that lead in a circle; name the file itself") from None
        if not any(resolved.is_relative_to(folder) for folder in self.folders):
            opened = await read_in_thread(_resolve, await more())
            if not any(resolved.is_relative_to(folder) for folder in opened):
                raise _refuse(
                    field,
                    path,
                    "is outside of the folders that may be read; copy it into the working directory or the output "
                    "folder, or start `mflux-api mcp` with --root FOLDER",
                )
        try:
            data = await read_in_thread(read_regular, resolved, MAX_FILE_BYTES)
        except FileTooLarge:
            raise _refuse(field, path, f"is larger than {MAX_FILE_BYTES // 2**20} MB; send a smaller one") from None
        except NotRegularFile:
            raise _refuse(field, path, "is not a file; name an image file") from None
        except OSError as error:
            why = (error.strerror or "it is not a path").lower()
            raise _refuse(field, path, f"cannot be read ({why}); check the path") from None
        return await read_in_thread(encode_text, data)

    def _path(self, text: str, field: str) -> Path | None:
        """Return the path that a text is; base64 has no full stop, and hardly a file of images is without one."""
        scheme = _SCHEME.match(text)
        if scheme is not None and scheme[1].lower() == "file":
            parts = urlsplit(text)
            if parts.netloc not in ("", "localhost"):
                raise InvalidParameter.for_field(
                    field, "names a file of another machine; expected file:///path", limit="file:///path"
                )
            return self._absolute(unquote(parts.path), field)
        if scheme is not None:
            raise InvalidParameter.for_field(
                field, "is a URL; save the image to a file and give its path, or send base64", limit="a path or base64"
            )
        if text[:5].lower() == "data:" or len(text) > _LONGEST_PATH or not ("." in text or text.startswith("~")):
            return None
        return self._absolute(text, field)

    def _absolute(self, text: str, field: str) -> Path:
        try:
            if "\0" in text:
                raise ValueError("a NUL")
            return self.base / Path(text).expanduser()
        except (RuntimeError, ValueError):
            raise InvalidParameter.for_field(
                field, "is not a path; write the whole path of the file", limit="a path"
            ) from None


def resolve_folders(folders: Sequence[Path]) -> tuple[Path, ...]:
    """Return folders without links in their paths, each once."""
    return tuple(dict.fromkeys(_resolve(folders)))


def _resolve(folders: Sequence[Path]) -> list[Path]:
    return [folder.resolve() for folder in folders]


def folder_of_uri(uri: str) -> Path | None:
    """Return the folder of this machine that a ``file://`` URI names; ``None`` where it is another URI."""
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or "\0" in path or not path.startswith("/"):
        return None
    return Path(path)


def _refuse(field: str, path: Path, problem: str) -> InvalidParameter:
    details: dict[str, Any] = {"value": None, "limit": "a file in a folder that may be read"}
    return InvalidParameter.for_field(field, f"is invalid: the file '{printable(path.name, 64)}' {problem}", **details)


@attrs.frozen
class Link:
    """An image that was named to the client."""

    uri: str
    path: Path
    size: int


class Links:
    """The newest images that were named to the client: what it may read, and nothing else by any spelling of a path."""

    def __init__(self) -> None:
        self._links: OrderedDict[str, Link] = OrderedDict()

    async def add(self, path: Path) -> Link:
        """Name a file.

        Raises:
            OSError: it is not there any more.
        """
        link = Link(path.as_uri(), path, (await read_in_thread(path.stat)).st_size)
        self._links[link.uri] = link
        self._links.move_to_end(link.uri)
        while len(self._links) > MAX_LINKS:
            self._links.popitem(last=False)
        return link

    def newest_first(self) -> tuple[Link, ...]:
        """Return them all."""
        return tuple(reversed(self._links.values()))

    async def read(self, uri: str) -> str | None:
        """Return a named file as base64; ``None`` where none is called so.

        Raises:
            OSError: it cannot be read.
        """
        link = self._links.get(uri)
        if link is None:
            return None
        return encode_text(await read_in_thread(read_regular, link.path, MAX_FILE_BYTES))
