"""The boundary of a run and of a load in the engine child: whatever goes wrong inside costs that work alone."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from mflux_api.engine import protocol as p
from mflux_api.engine.run_images import WrongImages
from mflux_api.engine.worker import Worker
from mflux_api.ipc import frames
from mflux_api.ipc.child_pipe import ChildPipe
from mflux_api.storage.checkpoints import EMBEDDED
from tests.support.engine_contract import RUN

if TYPE_CHECKING:
    from mflux_api.engine.device import Device

pytestmark = pytest.mark.slow

UNSAYABLE = p.RunDone(run_id=RUN.run_id, encode_seconds=object(), denoise_seconds=0, decode_seconds=0)  # type: ignore[arg-type]
LOAD = p.LoadModel(model="demo", path=str(EMBEDDED))


@attrs.define
class Boundary:
    """A worker whose work a test replaces, and what it wrote."""

    worker: Worker
    outgoing: int

    def sent(self) -> list[p.Frame]:
        data = os.read(self.outgoing, 1 << 16)
        found = []
        while data:
            end = frames.PREFIX_LENGTH + frames.header_length(data[: frames.PREFIX_LENGTH])
            found.append(frames.decode_header(data[frames.PREFIX_LENGTH : end], p.ENGINE_TYPES).frame)
            data = data[end:]
        return found


@pytest.fixture
def boundary(device: "Device") -> Iterator[Boundary]:
    (incoming, parent), (outgoing, child) = os.pipe(), os.pipe()
    control = SimpleNamespace(cancelled=set(), previewed=set(), load_cancelled=False, memory=(0, 0), beat=lambda: None)
    yield Boundary(Worker(ChildPipe(incoming, child, p.ENGINE_TYPES), control, device), outgoing)  # type: ignore[arg-type]
    for descriptor in (incoming, parent, child, outgoing):
        os.close(descriptor)


class Panic(BaseException):
    """As PyO3's, which is not an Exception either."""


def doing(result: Any) -> Any:
    def do(*_: object) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result

    return do


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (frames.ProtocolError("an ImageDone frame is too large"), "GENERATION_FAILED"),
        (Panic("a library"), "GENERATION_FAILED"),
        (SystemExit(3), "GENERATION_FAILED"),
        (RecursionError(), "GENERATION_FAILED"),
        (OverflowError("int too large"), "GENERATION_FAILED"),
        (MemoryError(), "OOM_ERROR"),
        (RuntimeError("std::bad_alloc"), "OOM_ERROR"),
    ],
)
def test_run_that_ends_in_whatever_way_is_answered(boundary: Boundary, what: Any, code: str) -> None:
    boundary.worker._generate = doing(what)  # type: ignore[method-assign]
    boundary.worker._run(RUN, ())
    (failed,) = boundary.sent()
    assert isinstance(failed, p.RunFailed)
    assert (failed.run_id, failed.code) == (RUN.run_id, code)


def test_end_that_cannot_be_said_is_another(boundary: Boundary) -> None:
    boundary.worker._ends_of = doing([UNSAYABLE])  # type: ignore[method-assign]
    boundary.worker._run(RUN, ())
    (failed,) = boundary.sent()
    assert isinstance(failed, p.RunFailed)
    assert failed.code == "GENERATION_FAILED"


def test_run_whose_images_are_not_what_it_says_is_told_in_a_sentence(boundary: Boundary) -> None:
    boundary.worker._generate = doing(WrongImages("The run came with 1 images instead of 4"))  # type: ignore[method-assign]
    boundary.worker._run(RUN, ())
    (failed,) = boundary.sent()
    assert isinstance(failed, p.RunFailed)
    assert failed.message == "The run came with 1 images instead of 4"


@pytest.mark.parametrize(
    ("what", "code"),
    [(Panic("a library"), "GENERATION_FAILED"), (SystemExit(3), "GENERATION_FAILED"), (MemoryError(), "OOM_ERROR")],
)
def test_load_that_ends_in_whatever_way_is_answered(boundary: Boundary, what: BaseException, code: str) -> None:
    boundary.worker._open = doing(what)  # type: ignore[method-assign]
    boundary.worker._load(LOAD)
    (failed,) = boundary.sent()
    assert isinstance(failed, p.LoadFailed)
    assert (failed.model, failed.code) == ("demo", code)
    assert boundary.worker._resident == {}
