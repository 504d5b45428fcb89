"""LoRA files in the folders of ``lora.dirs``: listing them, finding one by its name, and adding one.

A name from outside is never made into a path: it is compared with the names of the files that were found, so it can
mean nothing but one of them, whatever it holds.
"""

import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import attrs

from mflux_api.errors import InvalidParameter
from mflux_api.system.durable import PendingFile, make_folder, remove_abandoned

SUFFIX = ".safetensors"
_MAX_DEPTH = 8
"""Folders below a folder of ``lora.dirs`` that are looked at."""
_MAX_FILES = 10_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,119}")
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")


@attrs.frozen(kw_only=True)
class LoraFile:
    """One file that a request may name."""

    name: str
    """Its path in its folder, with ``/`` and the suffix; what requests and answers call it."""
    path: Path
    size: int
    modified_at: datetime


@attrs.frozen
class LoraFiles:
    """The LoRAs of one service."""

    dirs: tuple[Path, ...]

    def all(self) -> tuple[LoraFile, ...]:
        """Return every LoRA, by name. Looks at the disk, so call it in a thread; a missing folder holds nothing.

        A file whose name a file in an earlier folder has too is called by its whole path.
        """
        found: dict[str, LoraFile] = {}
        for file in self._found():
            name = file.name if file.name not in found else str(file.path)
            found[name] = attrs.evolve(file, name=name)
        return tuple(sorted(found.values(), key=lambda file: file.name.casefold()))

    def resolve(self, names: Iterable[str]) -> tuple[LoraFile, ...]:
        """Return the files that a request means by their names or paths, with or without the suffix.

        A name alone also finds a file in a folder below, if only one is called so. Looks at the disk.

        Raises:
            InvalidParameter: no file has this name; the error is the same whatever was asked for.
        """
        files = self.all()
        return tuple(_find(files, name) for name in names)

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
        return remove_abandoned(path for path in folder.iterdir() if _PART.fullmatch(path.name) and path.is_file())

    def _found(self) -> Iterator[LoraFile]:
        """Yield every regular file with the suffix whose real path lies below one of the folders."""
        roots = [Path(os.path.realpath(folder)) for folder in self.dirs]
        count = 0
        for folder in self.dirs:
            for path in _walk(folder, _MAX_DEPTH):
                name = path.relative_to(folder).as_posix()
                if _UNWRITABLE.search(str(path)):
                    # No request could name it, and no answer: bytes that are not UTF-8, or a line break.
                    continue
                try:
                    real = Path(os.path.realpath(path, strict=True))
                    status = real.stat()
                except (OSError, ValueError):
                    continue
                if not stat.S_ISREG(status.st_mode) or not any(real.is_relative_to(root) for root in roots):
                    continue
                yield LoraFile(
                    name=name,
                    path=path,
                    size=status.st_size,
                    modified_at=datetime.fromtimestamp(status.st_mtime, UTC),
                )
                count += 1
                if count >= _MAX_FILES:
                    return


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
        name = checked_name(name)
        final = self._folder / name
        try:
            self._pending.publish(final, overwrite=overwrite)
        except FileExistsError:
            raise _invalid("name", f"a name that is not taken, or overwrite=true: there is a {name}") from None
        status = final.stat()
        modified = datetime.fromtimestamp(status.st_mtime, UTC)
        return LoraFile(name=name, path=final, size=status.st_size, modified_at=modified)


def checked_name(name: str) -> str:
    """Return the file name for an upload, with the suffix.

    Raises:
        InvalidParameter: it has a folder in it, or characters that some system would take for something else.
    """
    stem = name.removesuffix(SUFFIX)
    if not _NAME.fullmatch(stem) or stem.endswith((" ", ".")) or ".." in stem:
        raise _invalid("name", "letters, digits, spaces and . _ - + ( ), up to 120, without a folder")
    return stem + SUFFIX


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.name.endswith(SUFFIX):
            yield folder / entry.name
        elif depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, depth - 1)


def _find(files: Sequence[LoraFile], name: str) -> LoraFile:
    wanted = _with_suffix(_normal(name))
    # A path from the working directory is one, too; os.path does nothing but string work here.
    absolute = _with_suffix(_normal(os.path.abspath(name)))
    for file in files:
        if wanted == _normal(file.name) or absolute == _normal(str(file.path)):
            return file
        if os.path.isabs(name) and absolute == _normal(os.path.realpath(file.path)):
            return file
    below = [file for file in files if _normal(file.path.name) == wanted]
    if len(below) == 1:
        return below[0]
    raise InvalidParameter.for_field(
        "lora_files",
        "is invalid: expected the name of a .safetensors file in lora.dirs; GET /api/v1/loras lists them",
        value=_shown(name),
        limit="a name that GET /api/v1/loras lists",
    )


def _normal(name: str) -> str:
    """Return one spelling of a path: file systems differ in how they keep accents."""
    return unicodedata.normalize("NFC", os.path.normpath(name)) if name else ""


def _with_suffix(name: str) -> str:
    return name if name.endswith(SUFFIX) else name + SUFFIX


def _shown(name: str) -> str:
    """Return what a client sent, cut, without characters that JSON cannot hold."""
    return name[:64].encode("utf-8", "replace").decode() + ("…" if len(name) > 64 else "")


def _invalid(field: str, limit: str) -> InvalidParameter:
    return InvalidParameter.for_field(field, f"is invalid: expected {limit}", limit=limit)
