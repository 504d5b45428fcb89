"""Where downloaded repositories lie: folders, the marker that one is complete, the trash. Read by the service, too.

The layout is huggingface_hub's own (``models--{owner}--{name}/snapshots/{commit}``), so an existing cache can be used.
In its ``.mflux-api`` folder lie the service's marks: which revisions are complete, and whether it made the folder.
"""

import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import attrs
import msgspec

from mflux_api.system.durable import PendingFile, make_folder, sync_file, sync_folder, sync_folders_below

MAIN = "main"
_OURS = ".mflux-api"
_OWNED = "owned"
_TRASH = ".deleted-"


@attrs.frozen(kw_only=True)
class Marker:
    """The record of a finished download."""

    repo: str
    revision: str
    """The branch, tag or commit that was asked for."""
    commit: str
    """The commit that it was on that day."""
    files: Mapping[str, int]
    """Every file of the snapshot, by its path in the repository, and its bytes."""


@attrs.frozen
class HubCache:
    """The repositories below one folder."""

    root: Path

    def repository(self, repo: str) -> Path:
        """Return the folder of a repository, whether it exists or not."""
        return self.root / f"models--{repo.replace('/', '--')}"

    def holds_files(self, repo: str) -> bool:
        """Whether something of a repository has arrived, whole or not."""
        return any((self.repository(repo) / "blobs").glob("*"))

    def snapshot(self, repo: str, revision: str | None) -> tuple[Path, Marker] | None:
        """Return the folder of a complete download and its marker; ``None`` when a file is missing or has another size.

        Looks at every file, so call it in a thread.
        """
        marker = self._read_marker(repo, revision)
        if marker is None:
            return None
        folder = self.repository(repo) / "snapshots" / marker.commit
        whole = all(_size(folder / name) == size for name, size in marker.files.items())
        return (folder, marker) if whole else None

    def is_ours(self, repo: str) -> bool:
        """Whether this service made the repository's folder."""
        return (self.repository(repo) / _OURS / _OWNED).is_file()

    def claim(self, repo: str) -> None:
        """Make the repository's folder; a folder that was there before stays its owner's.

        Raises:
            OSError: it cannot be made.
        """
        folder = self.repository(repo)
        if not folder.exists():
            # Renamed in the end, so that a folder without our mark is never ours.
            fresh = self.root / f".{folder.name}.{secrets.token_hex(4)}"
            (fresh / _OURS).mkdir(parents=True)
            (fresh / _OURS / _OWNED).touch()
            sync_folders_below(fresh)
            try:
                fresh.rename(folder)
            except OSError:
                shutil.rmtree(fresh, ignore_errors=True)
                if not folder.is_dir():
                    raise
            sync_folder(self.root)
        make_folder(folder / _OURS)

    def complete(self, marker: Marker) -> None:
        """Write the mark that a download is complete, once all that it names is on disk.

        Raises:
            OSError: a file is not there, or cannot be written.
        """
        repository = self.repository(marker.repo)
        snapshot = repository / "snapshots" / marker.commit
        for name in marker.files:
            # A link to a blob, whose content is synced.
            sync_file(snapshot / name)
        # The folders of the blobs, of the snapshot and of the reference to its commit.
        sync_folders_below(repository)
        path = self._marker_path(marker.repo, marker.revision)
        # Another service on this folder may write the same mark.
        with PendingFile(path.with_name(f".{path.name}.{os.getpid()}.tmp")) as pending:
            pending.write(msgspec.json.encode(attrs.asdict(marker)))
            pending.publish(path)

    def remove(self, repo: str) -> bool:
        """Remove a repository with all that was downloaded of it, complete or not; return whether there was anything.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            self.remove_folder(self.repository(repo))
        except FileNotFoundError:
            return False
        return True

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder in one step, so that it is never found half removed.

        Raises:
            OSError: it cannot be removed.
        """
        trash = self.root / f"{_TRASH}{secrets.token_hex(4)}"
        folder.rename(trash)
        # Another service on this folder may be emptying the trash.
        with suppress(FileNotFoundError):
            shutil.rmtree(trash)

    def empty_trash(self) -> None:
        """Remove what a killed process had begun to remove."""
        for folder in self.root.glob(f"{_TRASH}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _marker_path(self, repo: str, revision: str | None) -> Path:
        return self.repository(repo) / _OURS / f"complete@{quote(revision or MAIN, safe='')}.json"

    def _read_marker(self, repo: str, revision: str | None) -> Marker | None:
        try:
            return msgspec.json.decode(self._marker_path(repo, revision).read_bytes(), type=Marker)
        except (OSError, ValueError, msgspec.DecodeError):
            # Also where the revision is a name that no file can have.
            return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
