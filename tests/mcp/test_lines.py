"""The protocol's lines, read from a pipe, and progress in the protocol's form."""

import os
import subprocess
from collections.abc import Iterator

import attrs
import pytest
import trio

from mflux_api.jobs.job import Stage, Status
from mflux_api.jobs.progress import Progress
from mflux_api.mcp.meter import Meter, describe
from mflux_api.mcp.stdio import InputLines, Output, standard_streams

AT = Progress(id="0123456789ab", status=Status.GENERATING, stage=Stage.QUEUED, progress=0.0, steps=4, images=2)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's ends; the test closes the second."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)


async def test_lines_are_whole_whatever_their_pieces(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output = Output(writing)
    found = list[str]()

    async def read() -> None:
        found.extend([line async for line in InputLines(reading)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for piece in ("one\ntw", "o\n", "x" * 200_000, "\nhalf"):
            await output.write(piece)
        os.close(writing)
    assert found == ["one", "two", "x" * 200_000]


def test_whatever_prints_does_not_reach_the_client(capfd: pytest.CaptureFixture[str]) -> None:
    with standard_streams() as streams:
        os.write(1, b"a library\n")
        subprocess.run(["sh", "-c", "echo a child; cat"], check=True)
        os.write(streams.writing, b"the protocol\n")
    os.write(1, b"afterwards\n")
    assert capfd.readouterr() == ("the protocol\nafterwards\n", "a library\na child\n")


async def test_line_that_is_too_long_ends_the_session(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"1234567")
    with pytest.raises(ConnectionError, match="a message of the client is longer than"):
        await InputLines(reading, most=6).__anext__()
    os.close(writing)


async def test_reader_that_is_cancelled_waits_for_no_client(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    with trio.CancelScope() as scope:
        scope.cancel()
        await InputLines(reading).__anext__()
    assert scope.cancelled_caught
    os.close(writing)


async def test_progress_grows_with_every_report() -> None:
    reports = list[tuple[float, float, str]]()

    async def report(progress: float, total: float, message: str) -> None:
        reports.append((progress, total, message))

    meter = Meter(report)
    loading = attrs.evolve(AT, stage=Stage.LOADING, bytes_done=10, bytes_total=1000)
    for progress in (
        AT,
        AT,
        loading,
        attrs.evolve(loading, bytes_done=11),
        attrs.evolve(loading, bytes_done=990),
        attrs.evolve(AT, stage=Stage.DENOISING, progress=0.1, step=1),
        attrs.evolve(AT, stage=Stage.SAVING, progress=1.0, image=2),
    ):
        await meter.show(progress)
    assert reports == [
        (0.001, 10.0, "waiting in the queue"),
        (0.002, 10.0, "loading the model: 1%"),
        (0.003, 10.0, "loading the model: 99%"),
        (1.0, 10.0, "step 1 of 4, image 1 of 2"),
        (10.0, 10.0, "saving the image, image 2 of 2"),
    ]


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_has_words(stage: Stage) -> None:
    assert describe(attrs.evolve(AT, stage=stage, images=1)).isprintable()
