"""The download child: downloads one repository from the model hub, reports its progress, and ends.

Started as ``python -P -m mflux_api.hub.child`` by :mod:`mflux_api.hub.client`. Cancelling is killing
it: what has arrived stays, and the marker of completeness is written last.
"""

import os
import sys
import threading
from typing import TYPE_CHECKING

from mflux_api.hub.protocol import DOWNLOAD_TYPES, DownloadDone, DownloadFailure, DownloadProgress, DownloadRequest
from mflux_api.ipc.child_pipe import ChildPipe, take_standard_streams
from mflux_api.system import network_variables

if TYPE_CHECKING:
    from mflux_api.hub.download import Download

_REPORT_SECONDS = 0.5
_HUB = "https://huggingface.co"


class _Reporter(threading.Thread):
    """Reports the progress, and ends the process when the parent goes away."""

    def __init__(self, pipe: ChildPipe) -> None:
        super().__init__(name="progress", daemon=True)
        self._pipe = pipe
        self._ending = threading.Lock()
        self.download: Download | None = None

    def run(self) -> None:
        while True:
            self.report()
            if self._pipe.wait_readable(_REPORT_SECONDS):
                # The parent sends nothing more; at the end of the pipe the process exits.
                self._pipe.read(1)

    def report(self) -> None:
        with self._ending:
            download = self.download
            self._pipe.write(
                DownloadProgress(bytes_done=0, bytes_total=None)
                if download is None
                else DownloadProgress(bytes_done=download.done(), bytes_total=download.total)
            )

    def end(self, event: DownloadDone | DownloadFailure) -> None:
        """Send the last frame."""
        if isinstance(event, DownloadDone):
            self.report()
        # No progress may follow it.
        self._ending.acquire()
        self._pipe.write(event)


def _download(order: DownloadRequest, reporter: _Reporter) -> DownloadDone | DownloadFailure:
    problem = network_variables.find_problem(os.environ)
    if problem is not None:
        message = f"{order.repo} cannot be downloaded: {problem}, and restart"
        return DownloadFailure(code="DOWNLOAD_FAILED", message=message)
    from mflux_api.hub.download import Download
    from mflux_api.hub.failures import explain

    try:
        reporter.download = Download(order)
        marker = reporter.download.run()
    except Exception as error:  # noqa: BLE001 - whatever a library raises must reach the parent as a frame
        print(f"{order.repo}: {error!r}", file=sys.stderr)  # noqa: T201 - the parent's debug log
        return explain(error, order)
    return DownloadDone(commit=marker.commit, bytes_total=sum(marker.files.values()))


def main() -> None:
    """Take the order, then import huggingface_hub, then download."""
    home, token = os.environ.get("HOME"), os.path.expanduser("~/.cache/huggingface/token")
    pipe = take_standard_streams(DOWNLOAD_TYPES)
    if os.environ.get("HOME") != home and "HF_HOME" not in os.environ and os.path.isfile(token):
        # A home that can only be read may have it.
        os.environ.setdefault("HF_TOKEN_PATH", token)
    # Its transfers cannot be resumed by the byte; plain HTTP can.
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    network_variables.prepare(os.environ.get("HF_ENDPOINT") or _HUB, os.environ)
    order, _ = pipe.read_frame()
    reporter = _Reporter(pipe)
    reporter.start()
    reporter.end(_download(order, reporter))
    # Threads that still wait for a slow hub are of no use any more.
    os._exit(0)


if __name__ == "__main__":
    main()
