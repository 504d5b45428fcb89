"""Downloads of the small checkpoint that the hub on loopback has."""

from hashlib import sha256
from pathlib import Path

import attrs
import psutil
import trio

from mflux_api.catalog import Catalog
from mflux_api.hub.cache import HubCache, Marker
from mflux_api.hub.client import DownloadOptions, download_repository
from mflux_api.hub.protocol import DownloadDone, DownloadFailure, DownloadProgress, DownloadRequest
from tests.support.hub_server import Hub

REPO = "owner/tiny-klein"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
_NOT_NEEDED = {"README.md", "single_file.safetensors"}


def needed(hub: Hub) -> dict[str, bytes]:
    """The files of the checkpoint that belong to the model."""
    return {name: data for name, data in hub.repositories[REPO].items() if name not in _NOT_NEEDED}


def download_children() -> list[psutil.Process]:
    """Download children of this process."""
    return [child for child in psutil.Process().children() if "mflux_api.hub.child" in command_line(child)]


def command_line(process: psutil.Process) -> str:
    """Return a process's command line; of one that is ending, none."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def download_request(folder: Path, **changes: object) -> DownloadRequest:
    """Return a request for the files of the hub's checkpoint."""
    model = Catalog().get("flux2-klein-4b")
    assert model is not None
    wanted = DownloadRequest(repo=REPO, revision=None, cache_dir=str(folder), licence="Apache-2.0", files=model.files)
    return attrs.evolve(wanted, **changes)  # type: ignore[arg-type]


@attrs.define
class Downloads:
    """Downloads into a folder of its own, in this process."""

    folder: Path
    endpoint: str

    @property
    def cache(self) -> HubCache:
        return HubCache(self.folder)

    def download(self, **changes: object) -> Marker | DownloadFailure:
        """Download, and explain what goes wrong as the child does."""
        from mflux_api.hub.download import Download
        from mflux_api.hub.failures import explain

        wanted = download_request(self.folder, **changes)
        try:
            return Download(wanted, self.endpoint).run()
        except Exception as error:  # noqa: BLE001 - what the child does
            return explain(error, wanted, self.endpoint)

    def succeed(self) -> Marker:
        marker = self.download()
        assert isinstance(marker, Marker)
        assert self.cache.snapshot(REPO, None) is not None
        return marker

    def fail(self, code: str = "DOWNLOAD_FAILED", **changes: object) -> DownloadFailure:
        """Download in vain: the message has no path of this machine, and nothing counts as complete."""
        failed = self.download(**changes)
        assert isinstance(failed, DownloadFailure)
        assert failed.code == code
        assert str(self.folder) not in failed.message
        wanted = download_request(self.folder, **changes)
        assert self.cache.snapshot(wanted.repo, wanted.revision) is None
        return failed

    def leave_partial(self, hub: Hub, data: bytes) -> None:
        """Make it look as if a download of the transformer had been killed."""
        etag = sha256(hub.repositories[REPO][TRANSFORMER]).hexdigest()
        self.cache.root.mkdir(exist_ok=True)
        self.cache.claim(REPO)
        blobs = self.cache.repository(REPO) / "blobs"
        blobs.mkdir(exist_ok=True)
        (blobs / f"{etag}.mflux-api.incomplete").write_bytes(data)


async def download_in_child(wanted: DownloadRequest, seen: list[DownloadProgress] | None = None) -> DownloadDone:
    """Download through a child process, with a deadline."""
    with trio.fail_after(60):
        return await download_repository(wanted, DownloadOptions(), (seen if seen is not None else []).append)
