"""A disk that does not answer keeps those who ask for what is on it, and no others."""

import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from mflux_api.catalog import Model
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.system.threads import read_in_thread
from tests.support.harness import ended, eventually, gateway, request, scripted_service
from tests.support.scripted_engine import Script

ANSWER_SECONDS = 5.0


async def test_dead_disk_with_models_keeps_no_image_and_no_other_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), threading.Event()

    def folder(self: Checkpoints, model: Model) -> Path | None:
        asked.set()
        answers.wait(2 * ANSWER_SECONDS)
        return None

    async with scripted_service(tmp_path, Script()) as service:
        of = gateway(service)
        job = await ended(service, (await service.submit(request())).id)
        remote = next(model for model in of.catalog if model.remote)
        monkeypatch.setattr(Checkpoints, "folder", folder)
        try:
            async with trio.open_nursery() as nursery:
                # More than there are threads by default.
                for _ in range(50):
                    nursery.start_soon(of.load_model, remote)
                    nursery.start_soon(of.download, remote)
                await eventually(asked.is_set)
                await trio.testing.wait_all_tasks_blocked(0.05)
                with trio.fail_after(ANSWER_SECONDS):
                    assert await of.image_bytes(job.images[0])
                    assert await read_in_thread(len, "abc") == 3
                nursery.cancel_scope.cancel()
        finally:
            answers.set()
