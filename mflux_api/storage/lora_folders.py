"""What lies in the folders of ``lora.dirs``: the LoRA files, and what is left out, each with its reason.

Nothing is opened here. A link is followed where it ends inside one of the folders, or anywhere when the operator says
so; no folder is looked at inside itself, and depth and number are bounded, so that every look has an end.
"""

import errno
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

from mflux_api.ipc.printable import printable

SUFFIX = ".safetensors"
MAX_DEPTH = 8
"""Folders below one another that are looked at, the one of ``lora.dirs`` among them."""
MAX_FILES = 10_000
MAX_ENTRIES = 100_000
"""Names of any kind that are looked at: links to folders can show the same ones again and again."""
MAX_SKIPPED = 100

_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LAST_SECOND = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_OTHER_FORMATS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".gguf", ".sft", ".npz")


@attrs.frozen(kw_only=True)
class LoraFile:
    """One file that a request may name."""

    name: str
    """Its path in its folder, with ``/`` and the suffix; what requests and answers call it."""
    path: Path
    size: int
    modified_at: datetime
    alias: str = ""
    """Its path with the name of its folder of ``lora.dirs`` before it: a name that no other file takes over."""
    through_link: bool = False
    """Whether a folder on its way is a link: the file lies somewhere else."""


@attrs.frozen
class Skipped:
    """Something in the folders that no request can name."""

    name: str
    """Its path in its folder; what no text can hold is escaped."""
    reason: str


@attrs.frozen(kw_only=True)
class Listing:
    """What one look found."""

    files: tuple[LoraFile, ...]
    """By name."""
    skipped: tuple[Skipped, ...] = ()
    """The first of those that were left out."""
    skipped_total: int = 0


@attrs.frozen
class _Folder:
    root: Path
    label: str
    """What the root is called where two have a file of one name."""
    prefix: str
    """Its path below the root, with ``/`` at its end; empty for the root."""
    depth: int = 1
    above: frozenset[tuple[int, int]] = frozenset()
    """Device and number of it and of every folder above it, up to the root."""
    through_link: bool = False

    @property
    def path(self) -> Path:
        return self.root / self.prefix


def look(dirs: Sequence[Path], *, follow_links: bool = False) -> Listing:
    """Return what lies in the folders; those that are not there hold nothing. Looks at the disk.

    A file whose name a file in an earlier folder has too is called after its folder.

    Args:
        dirs: the folders.
        follow_links: whether a link may end outside of them.
    """
    search = _Search(dirs, follow_links)
    for label, folder in _labels(dirs).items():
        search.run(folder, label)
    files = sorted(search.files.values(), key=lambda file: file.name.casefold())
    return Listing(files=tuple(files), skipped=tuple(search.skipped), skipped_total=search.skipped_total)


def has_suffix(name: str) -> bool:
    """Whether a name is that of a safetensors file; the suffix may have capitals."""
    return name.lower().endswith(SUFFIX)


def stem(name: str) -> str:
    """Return a name without the suffix, if it has it."""
    return name[: -len(SUFFIX)] if has_suffix(name) else name


def modification_time(status: os.stat_result) -> datetime:
    """Return when a file was last written; a time that no calendar has is the nearest one that has."""
    return datetime.fromtimestamp(min(max(status.st_mtime, 0.0), _LAST_SECOND), UTC)


def escape(name: str) -> str:
    """Return a name of a file as a text that every answer, terminal and log can hold; most are left as they are."""
    return printable(_UNWRITABLE.sub(lambda found: _escaped(found[0]), name))


def _escaped(character: str) -> str:
    # How Python keeps a byte that is not UTF-8.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class _Search:
    """One look at all folders, and what it found until now."""

    def __init__(self, dirs: Sequence[Path], follow_links: bool) -> None:
        self._roots = [os.path.realpath(folder) for folder in dirs]
        self._follow_links = follow_links
        self._entries = 0
        self.files: dict[str, LoraFile] = {}
        self.skipped: list[Skipped] = []
        self.skipped_total = 0

    def run(self, root: Path, label: str) -> None:
        """Look at a folder and those below it, the nearest first: what is too much lies deep."""
        waiting = deque([_Folder(root, label, "", above=_identity(root))])
        while waiting:
            folder = waiting.popleft()
            for entry in self._entries_of(folder):
                if len(self.files) >= MAX_FILES or self._entries >= MAX_ENTRIES:
                    most = f"{MAX_FILES:,} LoRAs" if len(self.files) >= MAX_FILES else f"{MAX_ENTRIES:,} names"
                    self._skip(
                        folder.prefix or folder.root.name, f"{most} are listed, and what comes after them is not"
                    )
                    return
                self._entries += 1
                below = self._look_at(entry, folder)
                if below is not None:
                    waiting.append(below)

    def _entries_of(self, folder: _Folder) -> Sequence[os.DirEntry[str]]:
        try:
            with os.scandir(folder.path) as entries:
                # One more than are looked at tells that there are more.
                found = list(itertools.islice(entries, MAX_ENTRIES - self._entries + 1))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as error:
            self._skip(folder.prefix or folder.root.name, _cannot_be_read(error))
            return ()
        return sorted(found, key=lambda entry: entry.name)

    def _look_at(self, entry: os.DirEntry[str], folder: _Folder) -> _Folder | None:
        """Note an entry, as a file or as left out; return it where it is a folder to look at."""
        name = folder.prefix + entry.name
        if entry.name.startswith("._"):
            # What macOS keeps beside each file on foreign disks.
            return None
        try:
            is_link, status = entry.is_symlink(), entry.stat()
        except (OSError, ValueError) as error:
            # An editor's locks are links to nothing, and hidden.
            if not entry.name.startswith(".") or has_suffix(entry.name):
                self._skip(name, _cannot_be_read(error))
            return None
        is_folder = stat.S_ISDIR(status.st_mode) and not has_suffix(entry.name)
        if not is_folder and not has_suffix(entry.name):
            if entry.name.lower().endswith(_OTHER_FORMATS):
                self._skip(name, f"only {SUFFIX} files are taken: save it as one")
            return None
        reason = self._reason(entry, folder, status, is_link=is_link, is_folder=is_folder)
        if reason is not None:
            self._skip(name, reason)
            return None
        if not is_folder:
            self._add(name, folder, status)
            return None
        identity = (status.st_dev, status.st_ino)
        return _Folder(
            folder.root,
            folder.label,
            f"{name}/",
            folder.depth + 1,
            folder.above | {identity},
            through_link=folder.through_link or is_link,
        )

    def _reason(
        self, entry: os.DirEntry[str], folder: _Folder, status: os.stat_result, *, is_link: bool, is_folder: bool
    ) -> str | None:
        """Return why a folder, or a file with the suffix, is left out; ``None`` where it is not."""
        if _UNWRITABLE.search(entry.name):
            return "its name is not UTF-8, or has control characters: rename it"
        if entry.name.startswith("."):
            return "its name begins with a dot"
        if not is_folder and not stat.S_ISREG(status.st_mode):
            return "it is not a file"
        if is_link and not self._follow_links and not self._inside(folder.path / entry.name):
            return "a link that leaves lora.dirs: set lora.follow_links = true to have it followed"
        if is_folder and (status.st_dev, status.st_ino) in folder.above:
            return "a link to a folder that it lies in"
        if is_folder and folder.depth >= MAX_DEPTH:
            return f"it lies too deep: {MAX_DEPTH - 1} folders below one of lora.dirs are the most"
        return None

    def _inside(self, path: Path) -> bool:
        try:
            real = Path(os.path.realpath(path, strict=True))
        except (OSError, ValueError):
            return False
        return any(real.is_relative_to(root) for root in self._roots)

    def _add(self, name: str, folder: _Folder, status: os.stat_result) -> None:
        alias = f"{folder.label}/{name}"
        # A folder below an earlier one may be called as this one is.
        ways = itertools.chain([name, alias], (f"{folder.label}-{number}/{name}" for number in itertools.count(2)))
        free = next(way for way in ways if way not in self.files)
        self.files[free] = LoraFile(
            name=free,
            path=folder.root / name,
            alias=alias,
            size=status.st_size,
            modified_at=modification_time(status),
            through_link=folder.through_link,
        )

    def _skip(self, name: str, reason: str) -> None:
        self.skipped_total += 1
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append(Skipped(escape(name.rstrip("/")), reason))


def _labels(dirs: Sequence[Path]) -> dict[str, Path]:
    """Return what each folder is called, in their order; one that is named twice, or by a link to it, is one folder."""
    labels, seen = dict[str, Path](), set[str]()
    for folder in dirs:
        real, name = os.path.realpath(folder), escape(folder.name) or "loras"
        if real not in seen:
            ways = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
            labels[next(way for way in ways if way not in labels)] = folder
        seen.add(real)
    return labels


def _identity(folder: Path) -> frozenset[tuple[int, int]]:
    try:
        status = folder.stat()
    except (OSError, ValueError):
        return frozenset()
    return frozenset({(status.st_dev, status.st_ino)})


def _cannot_be_read(error: Exception) -> str:
    match getattr(error, "errno", None):
        case errno.ENOENT:
            # Of what a folder names itself only a link can lead to nothing.
            return "a link to nothing"
        case errno.ELOOP:
            return "a link that leads back to itself"
    return f"it cannot be read ({getattr(error, 'strerror', None) or 'its name is not one'})"
