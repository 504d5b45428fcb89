"""The downloader alone, over downloads that a test holds: which jobs wait or go, and what is deleted meanwhile."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mflux_api.actors import downloader
from mflux_api.actors import messages as m
from mflux_api.actors.downloader import Downloader
from mflux_api.actors.mailbox import Address, Mailbox
from mflux_api.catalog import Catalog, Model
from mflux_api.errors import ModelInUse
from mflux_api.hub.protocol import DownloadDone
from tests.support.crew import running

MODEL = Model(alias="tiny", repo="owner/tiny", base="flux2-klein-4b", description="scripted")
BRANCH = attrs.evolve(MODEL, alias="tiny-branch", revision="branch")
"""Another revision of the same repository, which is deleted as a whole."""
QUANTIZED = attrs.evolve(MODEL, alias="tiny-4-bit", quantization="runtime", bits=4)


class Disk:
    """Stands for the checkpoints; a look at it may take a while."""

    def __init__(self) -> None:
        self.cache_dir = Path("/cache")
        self.present = False
        self.deleted: list[str] = []
        self.looking = trio.Event()
        self.look = trio.Event()
        self.look.set()

    async def in_thread(self, function: Any, *arguments: Any, **_: Any) -> Any:
        self.looking.set()
        await self.look.wait()
        return function(*arguments)

    def folder(self, model: Model) -> Path | None:
        return self.cache_dir if self.present else None

    def empty_trash(self) -> None:
        pass

    def check_deletable(self, model: Model) -> None:
        pass

    def sharing_files(self, model: Model, catalog: Catalog) -> tuple[Model, ...]:
        return (model,)

    def delete(self, model: Model) -> None:
        self.deleted.append(model.alias)


class DownloaderUnderTest:
    """A downloader whose downloads last until the test ends them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.disk = Disk()
        self.downloads: list[str] = []
        """What became of each: running, stopped or done."""
        self.finish = trio.Event()
        self.mailbox: Mailbox[m.DownloaderMessage] = Mailbox(m.DOWNLOADER)
        self.address = Address(self.mailbox, sender=m.SCHEDULER, asks=m.ASK_GRAPH)
        self.loaders: list[Mailbox[m.LoaderMessage]] = [
            Mailbox(f"{m.MODEL_LOADER} {engine}", role=m.MODEL_LOADER) for engine in "01"
        ]
        to_loaders = [Address(box, sender=m.DOWNLOADER, asks=m.ASK_GRAPH) for box in self.loaders]
        checkpoints: Any = self.disk
        catalog = Catalog([MODEL, BRANCH, QUANTIZED])
        self.actor = Downloader(self.mailbox, to_loaders, catalog, checkpoints, automatic=True)
        patch.setattr(downloader, "download_repository", self._download)
        patch.setattr(trio.to_thread, "run_sync", self.disk.in_thread)

    async def _download(self, *_: object) -> DownloadDone:
        place = len(self.downloads)
        self.downloads.append("running")
        try:
            await self.finish.wait()
        except trio.Cancelled:
            self.downloads[place] = "stopped"
            raise
        self.downloads[place] = "done"
        return DownloadDone(commit="0" * 40, bytes_total=1)

    async def ensure(self, scope: trio.CancelScope | None = None, model: str = "tiny") -> None:
        """Wait for the model as a job's task does."""
        updates, _ = trio.open_memory_channel[m.Transfer](100)
        with scope or trio.CancelScope() as scope:
            try:
                await self.address.ask(m.EnsureOnDisk(model=model, updates=updates))
            finally:
                if scope.cancel_called:
                    self.address.tell_latest(m.DownloadAbandoned(), key=m.DownloadAbandoned)


@asynccontextmanager
async def a_downloader(patch: pytest.MonkeyPatch) -> AsyncIterator[tuple[DownloaderUnderTest, trio.Nursery]]:
    under_test = DownloaderUnderTest(patch)
    with trio.fail_after(10):
        async with running(under_test.actor.run), trio.open_nursery() as nursery:
            yield under_test, nursery
            nursery.cancel_scope.cancel()


async def test_download_of_a_job_that_went_while_the_disk_was_looked_at_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_downloader(monkeypatch) as (under_test, nursery):
        under_test.disk.looking, under_test.disk.look = trio.Event(), trio.Event()
        scope = trio.CancelScope()
        nursery.start_soon(under_test.ensure, scope)
        await under_test.disk.looking.wait()
        scope.cancel()
        await wait_all_tasks_blocked()
        under_test.disk.look.set()
        await wait_all_tasks_blocked()
        assert "running" not in under_test.downloads
        assert (await under_test.address.ask(m.GetDownload(model="tiny"))).transfer is None


async def test_download_goes_on_for_as_long_as_one_job_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_downloader(monkeypatch) as (under_test, nursery):
        scopes = [trio.CancelScope(), trio.CancelScope()]
        for scope in scopes:
            nursery.start_soon(under_test.ensure, scope)
        await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        assert under_test.downloads == ["running"]
        scopes[1].cancel()
        await wait_all_tasks_blocked()
        assert under_test.downloads == ["stopped"]
        # The next one begins anew.
        under_test.finish.set()
        await under_test.ensure()
        assert under_test.downloads == ["stopped", "done"]


async def test_model_is_deleted_beside_an_engine_that_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_downloader(monkeypatch) as (under_test, nursery):
        failed, healthy = under_test.loaders
        failed.suspend()

        async def delete() -> None:
            await Address(under_test.mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH).ask(m.DeleteModel(model="tiny"))

        nursery.start_soon(delete)
        evict = await healthy.receive()
        assert isinstance(evict, m.Evict)
        assert under_test.disk.deleted == [], "not before it is out of every memory"
        evict.reply.ok(None)
        await wait_all_tasks_blocked()
        assert under_test.disk.deleted == ["tiny"]


async def test_model_that_an_engine_uses_is_not_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_downloader(monkeypatch) as (under_test, nursery):
        first, second = under_test.loaders
        refused: list[ModelInUse] = []

        async def delete() -> None:
            try:
                await Address(under_test.mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH).ask(m.DeleteModel(model="tiny"))
            except ModelInUse as error:
                refused.append(error)

        nursery.start_soon(delete)
        for loader, in_use in ((first, False), (second, True)):
            evict = await loader.receive()
            assert isinstance(evict, m.Evict)
            if in_use:
                evict.reply.fail(ModelInUse("scripted"))
            else:
                evict.reply.ok(None)
        await wait_all_tasks_blocked()
        assert len(refused) == 1
        assert under_test.disk.deleted == []


async def test_download_goes_on_when_a_quantized_form_of_the_model_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_downloader(monkeypatch) as (under_test, nursery):
        gateway = Address(under_test.mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH)
        nursery.start_soon(under_test.ensure)
        await wait_all_tasks_blocked()
        nursery.start_soon(gateway.ask, m.DeleteModel(model="tiny-4-bit"))
        for loader in under_test.loaders:
            evict = await loader.receive()
            assert isinstance(evict, m.Evict)
            evict.reply.ok(None)
        await wait_all_tasks_blocked()
        assert under_test.disk.deleted == ["tiny-4-bit"]
        assert (await gateway.ask(m.GetDownload(model="tiny"))).transfer is not None
        under_test.finish.set()
        await wait_all_tasks_blocked()
        assert under_test.downloads == ["done"]
        assert (await gateway.ask(m.GetDownload(model="tiny"))).transfer is None


async def test_model_is_not_deleted_while_a_job_waits_for_another_revision_of_its_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_downloader(monkeypatch) as (under_test, nursery):
        gateway = Address(under_test.mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH)
        nursery.start_soon(under_test.ensure, None, "tiny-branch")
        await wait_all_tasks_blocked()
        with pytest.raises(ModelInUse, match="tiny-branch"):
            await gateway.ask(m.DeleteModel(model="tiny"))
        assert (under_test.downloads, under_test.disk.deleted) == (["running"], [])


async def test_download_of_another_revision_that_no_job_needs_is_stopped_before_the_files_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_downloader(monkeypatch) as (under_test, nursery):
        gateway = Address(under_test.mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH)
        await gateway.ask(m.StartDownload(model="tiny-branch"))
        await wait_all_tasks_blocked()
        nursery.start_soon(gateway.ask, m.DeleteModel(model="tiny"))
        for loader in under_test.loaders:
            evict = await loader.receive()
            assert isinstance(evict, m.Evict)
            assert under_test.downloads == ["stopped"]
            evict.reply.ok(None)
        await wait_all_tasks_blocked()
        assert under_test.disk.deleted == ["tiny"]
