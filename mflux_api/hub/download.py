"""Downloading a repository from the model hub: huggingface_hub's calls, plus resuming a file where it was cut.

huggingface_hub writes each file under a fresh temporary name, so a killed download begins its file again. Here a
file grows under one name until it is whole, is checked against its digest, and becomes a blob of huggingface_hub's
cache; its own ``snapshot_download`` then makes the snapshot out of the blobs.
"""

import hashlib
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import attrs
import httpx
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import DryRunFileInfo, http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from mflux_api.hub.bars import SilentBar, StoppableBar
from mflux_api.hub.cache import MAIN, HubCache, Marker
from mflux_api.hub.placing import locked, place
from mflux_api.hub.protocol import DownloadRequest
from mflux_api.hub.timeouts import limit_waits
from mflux_api.system.durable import make_folder, sync_file

_LIBRARY = "mflux-api"
_WORKERS = 4
_WRITE_BYTES = 1 << 16
"""Bytes that are written at once, which a kill may lose of a file."""
_SPARE_BYTES = 64_000_000
"""Disk space that a download leaves free."""
_DIGEST_CHUNK = 1 << 22
_SHA256 = re.compile(r"[0-9a-f]{64}")


class NoSpace(Exception):
    """The rest of the download is larger than what the disk has free."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"{needed} bytes are needed and {free} are free")
        self.needed, self.free = needed, free


class NotAHub(Exception):
    """What answers is not a model hub: a page of another program, or of a network that wants a login."""


class Damaged(Exception):
    """A file did not arrive as the hub described it."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} {what}")
        self.name, self.what = name, what


@attrs.frozen(kw_only=True)
class _File:
    """One file of the repository."""

    name: str
    commit: str
    size: int
    etag: str
    url: str
    blob: Path
    """The blob's path, once the file is whole."""
    pointer: Path
    """Its place in the snapshot: a link to the blob."""

    @property
    def partial(self) -> Path:
        return self.blob.with_name(f"{self.blob.name}.{_LIBRARY}.incomplete")


class Download:
    """One repository on its way into the cache. All methods block."""

    def __init__(self, order: DownloadRequest, endpoint: str = constants.ENDPOINT) -> None:
        limit_waits()
        self._order = order
        self._endpoint = endpoint
        self._cache = HubCache(Path(order.cache_dir))
        self._repository = self._cache.root / repo_folder_name(repo_id=order.repo, repo_type="model")
        self._headers = build_hf_headers(library_name=_LIBRARY)
        self._present = 0
        self._missing: tuple[_File, ...] = ()
        self._places: dict[Path, list[Path]] = {}
        """Blob → its places in the snapshot: files of the same content share one."""
        self._stopping = threading.Event()
        self.total: int | None = None
        """Bytes of all files that are wanted; ``None`` until :meth:`run` has asked the hub."""

    def done(self) -> int:
        """Return the bytes that are on disk."""
        return self._present + sum(_bytes_arrived(file) for file in self._missing)

    def run(self) -> Marker:
        """Download what is missing, and mark it as complete.

        Raises:
            NoSpace: the disk is too small for it; nothing was downloaded.
            NotAHub: what answers is not a model hub.
            Damaged: a file did not arrive whole.
            OSError: the disk is full or cannot be written, or the hub cannot be reached.
            HfHubHTTPError: the hub refuses.
        """
        make_folder(self._cache.root)
        self._cache.claim(self._order.repo)
        files = self._plan()
        commit = files[0].commit
        self._check_space()
        self._download_files()
        for file in {file.etag: file for file in files}.values():
            with self._locked(file):
                self._place(file)
        # Nothing is left to download or to link; this writes down which commit the revision is, and the files' sizes.
        folder = Path(self._snapshot(revision=commit, dry_run=False))
        sizes = {file.name: file.size for file in files}
        for name, size in sizes.items():
            if (folder / name).stat().st_size != size:
                raise Damaged(name, "has the wrong size")
        marker = Marker(repo=self._order.repo, revision=self._order.revision or MAIN, commit=commit, files=sizes)
        self._cache.complete(marker)
        return marker

    def _snapshot(self, *, revision: str | None, dry_run: bool) -> Any:
        return snapshot_download(
            self._order.repo,
            revision=revision,
            cache_dir=self._order.cache_dir,
            allow_patterns=list(self._order.files),
            library_name=_LIBRARY,
            endpoint=self._endpoint,
            max_workers=_WORKERS,
            tqdm_class=SilentBar,
            dry_run=dry_run,
        )

    def _plan(self) -> tuple[_File, ...]:
        try:
            listed: list[DryRunFileInfo] = self._snapshot(revision=self._order.revision, dry_run=True)
        except (JSONDecodeError, KeyError, TypeError, AssertionError) as error:
            # huggingface_hub takes any answer for a listing.
            raise NotAHub from error
        if not listed:
            raise Damaged("the repository", "has none of the files of a model")
        with ThreadPoolExecutor(_WORKERS) as pool:
            files = tuple(pool.map(self._describe, listed))
        for file in files:
            self._places.setdefault(file.blob, []).append(file.pointer)
        self._missing = tuple({file.etag: file for file in files if not self._is_whole(file)}.values())
        self.total = sum(file.size for file in files)
        self._present = self.total - sum(file.size for file in self._missing)
        return files

    def _describe(self, info: DryRunFileInfo) -> _File:
        url = hf_hub_url(self._order.repo, info.filename, revision=info.commit_hash, endpoint=self._endpoint)
        pointer = self._repository / "snapshots" / info.commit_hash / info.filename
        size: int | None
        etag: str | None
        try:
            metadata = get_hf_file_metadata(url, headers=self._headers, endpoint=self._endpoint)
        except (httpx.TransportError, OfflineModeIsEnabled):
            if not pointer.is_file():
                raise
            # A cache that another program filled needs no hub.
            size, etag = pointer.stat().st_size, pointer.resolve().name
        else:
            size, etag = metadata.size, metadata.etag
        if size is None:
            raise Damaged(info.filename, "has no size on the hub")
        if etag is None or "/" in etag:
            raise Damaged(info.filename, "has no name for its content on the hub")
        return _File(
            name=info.filename,
            commit=info.commit_hash,
            size=size,
            etag=etag,
            url=url,
            blob=self._repository / "blobs" / etag,
            pointer=pointer,
        )

    def _check_space(self) -> None:
        needed = sum(file.size - _bytes_arrived(file) for file in self._missing)
        free = shutil.disk_usage(self._cache.root).free
        if needed and needed + _SPARE_BYTES > free:
            raise NoSpace(needed, free)

    def _download_files(self) -> None:
        (self._repository / "blobs").mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(_WORKERS)
        try:
            # The largest first: nothing else is left to wait for in the end.
            largest_first = sorted(self._missing, key=lambda file: -file.size)
            futures = [pool.submit(self._download_file, file) for file in largest_first]
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        finally:
            # A failure is told at once; what the others have of their files stays.
            self._stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _download_file(self, file: _File) -> None:
        with self._locked(file, self._stopping.is_set) as held:
            if not held or self._stopping.is_set() or self._is_anywhere(file):
                return
            try:
                self._grow(file)
            except HfHubHTTPError as error:
                # The partial file is longer than the file on the hub: it belongs to another version.
                if error.response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise
                file.partial.unlink()
                self._grow(file)
            self._check(file)
            sync_file(file.partial)
            file.partial.replace(file.blob)
            # Under this lock still: another program would copy the blob.
            self._place(file)

    def _place(self, file: _File) -> None:
        place(file.blob, self._places[file.blob], self._repository / "snapshots")

    def _locked(self, file: _File, stopped: Callable[[], bool] = lambda: False) -> AbstractContextManager[bool]:
        """The lock of huggingface_hub: neither another process of ours nor one of its own works on the same file."""
        lock = self._cache.root / ".locks" / self._repository.name / f"{file.etag}.lock"
        return locked(lock, stopped)

    def _is_whole(self, file: _File) -> bool:
        """Whether a file is there; one of the wrong size is removed."""
        if any(_has_wrong_size(path, file.size) for path in (file.pointer, file.blob)):
            # Under the lock: another program may be copying it.
            with self._locked(file):
                for path in (file.pointer, file.blob):
                    if _has_wrong_size(path, file.size):
                        path.unlink()
        return self._is_anywhere(file)

    def _is_anywhere(self, file: _File) -> bool:
        """Whether a file of that content is there: as a blob, or where the blob was moved to."""
        return file.blob.is_file() or any(path.is_file() for path in self._places[file.blob])

    def _grow(self, file: _File) -> None:
        # By default ten megabytes are held in memory before any of it is written.
        constants.DOWNLOAD_CHUNK_SIZE = _WRITE_BYTES
        with file.partial.open("ab") as stream:
            have = stream.tell()
            if have > file.size:
                stream.truncate(0)
                have = 0
            http_get(
                file.url,
                stream,
                resume_size=have,
                headers=self._headers,
                expected_size=file.size,
                displayed_filename=file.name,
                tqdm_class=partial(StoppableBar, self._stopping),  # type: ignore[arg-type]
            )

    def _check(self, file: _File) -> None:
        size = file.partial.stat().st_size
        if size != file.size:
            raise Damaged(file.name, f"has {size} bytes and should have {file.size}")
        # Large files are named by their SHA-256; small ones by Git's digest, and their size has to do.
        if _SHA256.fullmatch(file.etag) and _digest(file.partial) != file.etag:
            file.partial.unlink()
            raise Damaged(file.name, "is not what the hub says it is")


def _has_wrong_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size != size


def _bytes_arrived(file: _File) -> int:
    for path in (file.partial, file.blob, file.pointer):
        try:
            return min(path.stat().st_size, file.size)
        except FileNotFoundError:
            continue
    return 0


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_DIGEST_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
