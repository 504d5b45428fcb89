"""Having a job's model on disk before the job runs, as the job's task sees it."""

import math

import trio

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, ActorStopped, Address
from mflux_api.actors.scheduler.job_runner import Publish
from mflux_api.catalog import Catalog
from mflux_api.errors import ShuttingDown
from mflux_api.jobs.job import Job
from mflux_api.jobs.progress import ProgressTracker
from mflux_api.system.nurseries import unwrapped_nursery

RETRY_SECONDS = 0.1
"""Before a downloader that was restarted is asked again."""
TELL_SECONDS = 1.0
"""Between two events of one job: every one is kept, and a download may take hours."""


class ModelOnDisk:
    """Has models downloaded; shared by the scheduler's job tasks."""

    def __init__(self, downloader: Address[m.DownloaderMessage], catalog: Catalog) -> None:
        self._downloader = downloader
        self._catalog = catalog

    def concerns(self, job: Job) -> bool:
        """Whether the job's model is one that is downloaded."""
        model = self._catalog.get(job.model)
        return model is not None and model.remote

    async def wait(self, job: Job, tracker: ProgressTracker, publish: Publish) -> None:
        """Wait until the job's model is on disk, publishing how far it is.

        Raises:
            ServiceError: it cannot be downloaded.
        """
        while True:
            try:
                await self._wait_once(job, tracker, publish)
            except ActorStopped:
                raise ShuttingDown("The service has ended") from None
            except ActorGone:
                # The downloader was restarted; what has arrived is kept.
                await trio.sleep(RETRY_SECONDS)
            else:
                if tracker.latest.bytes_done is not None:
                    publish(tracker.back_to_queue())
                return

    async def _wait_once(self, job: Job, tracker: ProgressTracker, publish: Publish) -> None:
        updates, transfers = trio.open_memory_channel[m.Transfer](math.inf)

        async def follow() -> None:
            told = -math.inf
            async for transfer in transfers:
                last = transfer.bytes_done == transfer.bytes_total
                if trio.current_time() - told < TELL_SECONDS and not last:
                    continue
                told = trio.current_time()
                publish(tracker.downloading(transfer.bytes_done, transfer.bytes_total, transfer.eta_seconds))

        done = False
        with updates, transfers:
            async with unwrapped_nursery() as nursery:
                nursery.start_soon(follow)
                try:
                    await self._downloader.ask(m.EnsureOnDisk(model=job.model, updates=updates))
                    done = True
                finally:
                    if not done:
                        self._downloader.tell_latest(m.DownloadAbandoned(), key=m.DownloadAbandoned)
                nursery.cancel_scope.cancel()
