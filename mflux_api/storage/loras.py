"""LoRA files in the folders of ``lora.dirs``: listing them, finding one, adding one and taking one away.

A name from outside is never made into a path: it is compared with the names of the files that were found, so it can
mean nothing but one of them, whatever it holds.
"""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import attrs

from mflux_api.config import Settings
from mflux_api.errors import InvalidParameter, LoraNotDeletable
from mflux_api.storage.lora_folders import SUFFIX, Listing, LoraFile, has_suffix, look, modification_time, stem
from mflux_api.storage.lora_lookup import find_file, find_listed, not_found, same_stem
from mflux_api.system.durable import PendingFile, make_folder, remove_abandoned, sync_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,119}")
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_MOST_LINKS = 40
"""Links after one another, as the system counts them."""


@attrs.frozen
class LoraFiles:
    """The LoRAs of one service."""

    dirs: tuple[Path, ...]
    follow_links: bool = False
    """Whether a link in one of the folders may end outside of all of them."""

    @classmethod
    def from_settings(cls, settings: Settings) -> "LoraFiles":
        """Return the LoRAs that the settings name."""
        return cls(settings.lora.dirs, settings.lora.follow_links)

    def look(self) -> Listing:
        """Return every LoRA and what is left out. Looks at the disk, so call it in a thread."""
        return look(self.dirs, follow_links=self.follow_links)

    def all(self) -> tuple[LoraFile, ...]:
        """Return every LoRA, by name. Looks at the disk."""
        return self.look().files

    def resolve(self, names: Iterable[str]) -> tuple[LoraFile, ...]:
        """Return the files that a request means by their names or paths, with or without the suffix.

        A name alone also finds a file in a folder below, if only one is called so. Looks at the disk.

        Raises:
            InvalidParameter: no file has this name; the error is the same whatever was asked for, but for what the list
                has of it: names that are close to it, or why it is left out.
        """
        listing = self.look()
        return tuple(find_file(listing, name, self.dirs) for name in names)

    # --- removing ---

    def plan_removal(self, name: str) -> "Removal":
        """Return what is to be removed by a name that is listed, with or without the suffix. Looks at the disk.

        Raises:
            LoraNotFound: no file is listed by this name.
            LoraNotDeletable: it lies somewhere else, behind a link to a folder.
        """
        listing = self.look()
        file = find_listed(listing, name)
        if file.through_link:
            raise LoraNotDeletable(
                f"LoRA '{file.name}' lies behind a link to a folder; delete it where it is", {"name": file.name}
            )
        gone, parents = _real_parent(file.path, {}), dict[Path, str]()
        affected = [each for each in listing.files if gone in _way(each.path, parents)]
        return Removal(file, tuple(name for each in affected for name in _names(each)))

    def remove(self, file: LoraFile) -> None:
        """Remove a file, of a link the link and never what it leads to; durable when this returns.

        Raises:
            LoraNotFound: it is gone already.
            OSError: the folder cannot be written.
        """
        try:
            os.unlink(file.path)
        except FileNotFoundError:
            raise not_found(file.name) from None
        sync_folder(file.path.parent)

    # --- uploads ---

    def begin(self) -> "Upload":
        """Open a file for what a client sends; it becomes a LoRA with :meth:`Upload.publish`.

        Raises:
            InvalidParameter: ``lora.dirs`` names no folder.
            OSError: the folder cannot be made or written.
        """
        if not self.dirs:
            raise InvalidParameter(
                "This service takes no LoRAs: its setting lora.dirs is empty",
                {"field": "file", "value": None, "limit": "lora.dirs"},
            )
        folder = self.dirs[0]
        make_folder(folder)
        return Upload(folder, PendingFile(folder / f".upload.{secrets.token_hex(4)}.part"))

    def remove_leftovers(self) -> int:
        """Remove uploads that killed processes left half done, not those that go on; return how many.

        Raises:
            OSError: the folder cannot be read or written.
        """
        folder = self.dirs[0] if self.dirs else None
        if folder is None or not folder.is_dir():
            return 0
        return remove_abandoned(path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name) and path.is_file())


@attrs.frozen
class Removal:
    """A file that is about to be removed."""

    file: LoraFile
    names: tuple[str, ...]
    """Its names, and those of links that lead to it."""


@attrs.frozen
class CheckedLora:
    """What the decoder found in order; without one no upload is published."""

    size: int
    """Bytes of the file that was checked."""


@attrs.define(eq=False)
class Upload:
    """A file that is being received. Use it as a context manager: what is not published is removed."""

    _folder: Path
    _pending: PendingFile
    size: int = 0

    def __enter__(self) -> "Upload":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pending.__exit__(kind, error, traceback)

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            OSError: the disk is full.
        """
        self._pending.write(data)
        self.size += len(data)

    @property
    def path(self) -> Path:
        """Its temporary name; all that was written is in it."""
        return self._pending.path

    def publish(self, name: str, checked: CheckedLora, *, overwrite: bool) -> LoraFile:
        """Give the file its name, all at once; it is durable when this returns.

        Args:
            name: what it is called, with or without the suffix.
            checked: of this file, as it is now.
            overwrite: whether it may replace a file of that name.

        Raises:
            InvalidParameter: its name is taken or not allowed.
            OSError: the folder cannot be written.
            ValueError: it was written to since it was checked.
        """
        if checked.size != self.size:
            raise ValueError("an upload must not grow after it was checked")
        name = self._present(checked_name(name))
        final = self._folder / name
        try:
            # A link of that name is replaced, and never written through.
            self._pending.publish(final, overwrite=overwrite)
        except FileExistsError:
            raise _invalid("name", f"a name that is not taken, or overwrite=true: there is a {name}") from None
        status = final.stat()
        return LoraFile(name=name, path=final, size=status.st_size, modified_at=modification_time(status))

    def _present(self, name: str) -> str:
        """Return the name of the file that differs from this one in capitals of the suffix, if there is one."""
        names = os.listdir(self._folder)
        return (
            name
            if name in names
            else next((each for each in names if has_suffix(each) and same_stem(each, name)), name)
        )


def checked_name(name: str) -> str:
    """Return the file name for an upload, with the suffix.

    Raises:
        InvalidParameter: it has a folder in it, or characters that some system would take for something else.
    """
    base = stem(name)
    if not _NAME.fullmatch(base) or base.endswith((" ", ".")) or ".." in base:
        raise _invalid("name", "letters from A to Z, digits, spaces and . _ - + ( ), up to 120, without a folder")
    return base + SUFFIX


def _names(file: LoraFile) -> tuple[str, ...]:
    """Return every name that a job may have a file by; earlier versions called some by their paths."""
    return tuple(dict.fromkeys((file.name, file.alias, str(file.path))))


def _way(path: Path, parents: dict[Path, str]) -> Iterator[str]:
    """Yield every file that a path leads over: links, one after the other, and where they end."""
    for _ in range(_MOST_LINKS):
        real = _real_parent(path, parents)
        yield real
        try:
            path = Path(os.path.dirname(real), os.readlink(real))
        except OSError:
            return


def _real_parent(path: Path, parents: dict[Path, str]) -> str:
    """Return a path whose folders are no links, while its last part may be one."""
    if path.parent not in parents:
        parents[path.parent] = os.path.realpath(path.parent)
    return os.path.join(parents[path.parent], path.name)


def _invalid(field: str, limit: str) -> InvalidParameter:
    return InvalidParameter.for_field(field, f"is invalid: expected {limit}", limit=limit)
