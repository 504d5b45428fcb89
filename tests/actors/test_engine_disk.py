"""The disk of an engine that does not answer: its actors go on."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mflux_api.actors.engine_disk import ANSWER_SECONDS, MAX_THREADS, EngineDisk, local_disk
from mflux_api.catalog import BUILT_IN
from mflux_api.errors import InternalError
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.storage.loras import LoraFiles


@pytest.fixture
def dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineDisk]:
    """A disk whose threads hang until the test is over."""
    over = threading.Event()

    def hang(*_: object) -> None:
        over.wait(60)

    monkeypatch.setattr(Checkpoints, "folder", hang)
    monkeypatch.setattr(Checkpoints, "footprint", hang)
    monkeypatch.setattr(LoraFiles, "resolve", hang)
    yield local_disk(Checkpoints(tmp_path), LoraFiles((tmp_path,)))
    over.set()


async def test_disk_that_does_not_answer_is_an_error_after_a_while(dead: EngineDisk, autojump_clock: MockClock) -> None:
    model = BUILT_IN[0]
    began = trio.current_time()
    for _ in range(MAX_THREADS):
        for ask in (lambda: dead.locate(model), lambda: dead.measure(model, 2), lambda: dead.locate_loras(("a",))):
            with pytest.raises(InternalError, match=r"did not answer within 60 s"):
                await ask()
    assert trio.current_time() - began == pytest.approx(3 * MAX_THREADS * ANSWER_SECONDS)
