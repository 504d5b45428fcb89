"""The decoder: whatever a stranger's bytes do to a child, it costs their own request alone."""

import base64
import gc
import signal
import struct
import sys
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import attrs
import psutil
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mflux_api.actors import decoder as decoder_module
from mflux_api.actors import messages as m
from mflux_api.actors.decoder import Decoder, WaitingLine
from mflux_api.actors.decoding import Decoding
from mflux_api.actors.mailbox import ActorGone, Address, Mailbox
from mflux_api.errors import InvalidParameter, ServerBusy, ServiceRestarting
from mflux_api.images.child import client
from mflux_api.images.child.client import DecoderOptions
from mflux_api.images.child.protocol import TOO_MUCH_MEMORY, CheckImages, Working
from mflux_api.ipc.frames import MAX_BLOB
from mflux_api.supervisor import Started
from tests.support.actor_crashes import crash
from tests.support.decoder_child import SMALL
from tests.support.harness import gateway, scripted_service
from tests.support.sample_images import scene, to_base64
from tests.support.scripted_api import scripted_api
from tests.support.scripted_engine import Script

pytestmark = pytest.mark.slow

DEADLINE_SECONDS = 30.0


@attrs.define
class Asker:
    """A running decoder and what a test asks it."""

    to: Address[m.DecoderMessage]
    decoding: Decoding

    async def check(self, *texts: str, caller: str = "") -> int:
        """Return the id of the child that answered."""
        checked = await self.decoding.check_images(texts, caller=caller)
        return checked.sizes[0][1]


@asynccontextmanager
async def running(options: DecoderOptions = SMALL) -> AsyncIterator[Asker]:
    """Run a decoder for as long as the block lasts; then no child is left."""
    before = set(psutil.Process().children())
    mailbox: Mailbox[m.DecoderMessage] = Mailbox(m.DECODER)
    to = Address(mailbox, sender=m.GATEWAY, asks=m.ASK_GRAPH)
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Decoder(mailbox, options).run, Started())
            yield Asker(to, Decoding(to.ask))
            nursery.cancel_scope.cancel()
    assert set(psutil.Process().children()) <= before


DEEDS = {
    "spin": "takes too long",
    "hang": "takes too long",
    "grow": "takes too much memory",
    "crash": "cannot be decoded",
    "raise": "cannot be decoded",
}


async def test_order_that_takes_a_child_down_is_refused_alone_and_the_next_one_done() -> None:
    refused = dict[str, InvalidParameter]()
    async with running() as asker:

        async def ask(deed: str) -> None:
            with pytest.raises(InvalidParameter) as caught:
                await asker.check("sound", deed)
            refused[deed] = caught.value

        async with trio.open_nursery() as nursery:
            for deed in DEEDS:
                nursery.start_soon(ask, deed)
                nursery.start_soon(asker.check, "sound")
    for deed, problem in DEEDS.items():
        assert f"image 2 {problem}" in refused[deed].message
        assert "save it again as a plain PNG" in refused[deed].message
        assert refused[deed].details["index"] == 1


async def test_child_is_started_by_the_first_order_and_serves_the_next_one() -> None:
    before = set(psutil.Process().children())
    async with running() as asker:
        await wait_all_tasks_blocked()
        assert set(psutil.Process().children()) == before
        assert await asker.check("one") == await asker.check("two")


async def test_child_that_was_killed_at_rest_costs_no_order() -> None:
    async with running() as asker:
        pid = await asker.check("one")
        psutil.Process(pid).kill()
        assert await asker.check("two") != pid


@pytest.mark.parametrize(("limit", "most"), [("MAX_ORDERS", 2), ("KEPT_BYTES", 0)])
async def test_child_that_has_done_much_or_keeps_much_is_replaced_between_two_orders(
    limit: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, limit, most)
    async with running() as asker:
        pids = [await asker.check("sound") for _ in range(4)]
    assert len(set(pids)) == 4 // max(1, most)


async def test_what_a_child_took_for_orders_before_is_not_counted_to_one_that_is_still_sent() -> None:
    async with running(attrs.evolve(SMALL, wall_seconds=20)) as asker:
        for _ in range(3):
            pid = await asker.check("work")
        child = psutil.Process(pid)
        assert sum(child.cpu_times()[:2]) > SMALL.cpu_seconds
        async with trio.open_nursery() as nursery:
            child.suspend()
            nursery.start_soon(asker.check, "sound")
            # As long as a large image takes to be sent.
            await trio.sleep(3 * client._WATCH_SECONDS)
            child.resume()


async def test_order_that_a_stopped_child_never_looked_at_is_done_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "RETRY_SECONDS", 0.0)
    async with running() as asker:
        pid = await asker.check("one")
        psutil.Process(pid).suspend()
        assert await asker.check("two") != pid


async def test_child_that_does_not_start_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "RETRY_SECONDS", 0.0)
    async with running(DecoderOptions(command=("/bin/false",))) as asker:
        with pytest.raises(ServerBusy, match="cannot be started"):
            await asker.check("one")


async def test_order_whose_asker_is_gone_is_ended_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LEAVE_SECONDS", 0.0)
    async with running(attrs.evolve(SMALL, wall_seconds=600)) as asker:
        with trio.move_on_after(0.2):
            await asker.check("hang")
        with trio.move_on_after(0.2):
            await asker.check("hang")
        await asker.check("sound")


async def test_decoder_ends_at_once_with_orders_at_work() -> None:
    async with running(attrs.evolve(SMALL, cpu_seconds=600, wall_seconds=600)) as asker:
        await asker.check("sound")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker.check, "spin")
            await wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()


async def test_keys_and_tokens_are_not_in_a_childs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("MFLUX_API_KEYS", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")
    for name in secrets:
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    async with running() as asker:
        with pytest.raises(InvalidParameter) as caught:
            await asker.check("variables")
    names = caught.value.message.split("; ")
    assert not set(secrets) & set(names)
    assert {"PATH", "TOKENIZERS_PARALLELISM"} <= set(names)


async def test_text_that_no_frame_can_hold_is_one_clear_error() -> None:
    async with running() as asker:
        for text, problem in (("ä", "image 1 is not base64"), ("a" * (MAX_BLOB + 1), "image 1 is too large to decode")):
            with pytest.raises(InvalidParameter, match=problem):
                await asker.check(text)


async def test_warnings_of_a_decoder_are_not_read_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    """Ten thousand tags with a warning each kept the service reading its child's standard error."""
    caplog.set_level("DEBUG")
    entries = b"".join(struct.pack("<HHII", 50_000 + each, 3, 10_000, 8) for each in range(400))
    text = base64.b64encode(b"II*\0" + struct.pack("<IH", 8, 400) + entries + bytes(4)).decode("ascii")
    async with running(DecoderOptions()) as asker:
        with pytest.raises(InvalidParameter):
            await asker.decoding.check_images([text], caller="")
    assert "Warning" not in caplog.text


class Text(str):
    """A text that can be watched."""

    __slots__ = ("__weakref__",)


async def test_image_that_was_refused_is_not_kept_until_the_next_collection() -> None:
    """Eight clients with images of some megabytes each made the server keep 300 MB."""
    async with running() as asker:
        for deed in ("raise", "crash"):
            text = Text(deed)
            watched = weakref.ref(text)
            gc.disable()
            try:
                # Not by pytest.raises, which keeps the exception and with it all frames.
                with suppress(InvalidParameter):
                    await asker.check(text)
                del text
                await wait_all_tasks_blocked()
                assert watched() is None, deed
            finally:
                gc.enable()


# --- the line ---


def order(caller: str = "", *, urgent: bool = False) -> m.Decode:
    return m.Decode(order=CheckImages(), caller=caller, urgent=urgent)


async def test_line_is_bounded_and_callers_take_turns_behind_running_jobs() -> None:
    line = WaitingLine(5)
    flood, other, job = [order("a") for _ in range(5)], order("b"), order(urgent=True)
    for each in flood:
        assert line.put(each) is None
    further = order("a")
    assert line.put(further) is further
    with trio.move_on_after(0):
        # As an asker does that leaves.
        await flood[4].reply.receive("decoder")
    assert line.put(other) is None, "one of those in it was not wanted any more"
    assert line.put(job) is None
    assert [await line.take() for _ in range(6)] == [job, flood[0], other, *flood[1:4]]


async def test_caller_who_fills_the_line_keeps_no_other_out() -> None:
    line = WaitingLine(4)
    flood, others = [order("a") for _ in range(4)], [order("b"), order("c"), order("d")]
    for each in flood:
        line.put(each)
    # Its own last ones give way, until it has no more than each other.
    assert [line.put(each) for each in others] == flood[:0:-1]
    fifth = order("e")
    assert line.put(fifth) is fifth
    assert [await line.take() for _ in range(4)] == [flood[0], *others]


async def test_conversion_of_an_image_waits_as_an_order_of_the_one_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers, put = list[str](), WaitingLine.put

    def noting(line: WaitingLine, message: m.Decode) -> m.Decode | None:
        callers.append(message.caller)
        return put(line, message)

    monkeypatch.setattr(WaitingLine, "put", noting)
    async with scripted_api(tmp_path) as api:
        job = await api.finished()
        answer = await api.http.get(f"/api/v1/jobs/{job.id}/images/0", params={"format": "webp"})
    assert answer.headers["Content-Type"] == "image/webp"
    assert callers == ["127.0.0.1"]


async def test_full_line_turns_away_and_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "MAX_WAITING", 1)
    async with running(attrs.evolve(SMALL, wall_seconds=600)) as asker, trio.open_nursery() as nursery:
        for _ in range(decoder_module.CHILDREN):
            nursery.start_soon(asker.check, "hang")
            await wait_all_tasks_blocked()
        nursery.start_soon(asker.check, "hang")
        await wait_all_tasks_blocked()
        with pytest.raises(ServerBusy) as caught:
            await asker.check("sound")
        nursery.cancel_scope.cancel()
    assert caught.value.retry_after is not None


async def test_restart_of_the_decoder_is_told_to_those_who_wait(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        ask = gateway(service).decoding.check_images
        with crash(WaitingLine, "put"), pytest.raises(ServiceRestarting, match="decoder was restarted"):
            await ask([to_base64(scene((48, 32)))])
        assert (await ask([to_base64(scene((48, 32)))])).sizes == ((48, 32),)


async def test_asker_of_a_decoder_that_ended_is_told() -> None:
    mailbox: Mailbox[m.DecoderMessage] = Mailbox(m.DECODER)
    mailbox.close()
    with pytest.raises(ActorGone):
        await Decoding(Address(mailbox, sender=m.SCHEDULER, asks=m.ASK_GRAPH).ask, urgent=True).check_images(
            ["a"], caller=""
        )


# --- the child alone ---


@pytest.mark.parametrize(
    ("rss", "cpu", "wall", "problem"),
    [
        (0, 0.0, 0.0, None),
        (SMALL.memory_bytes + 1, 0.0, 0.0, TOO_MUCH_MEMORY),
        (0, SMALL.cpu_seconds + 0.1, 0.0, client.TOO_LONG),
        (0, 0.0, SMALL.wall_seconds + 0.1, client.TOO_LONG),
    ],
)
def test_parent_watches_what_a_child_takes_also_where_the_system_does_not(
    rss: int, cpu: float, wall: float, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Linux the child's own limits come first; macOS has none for memory."""
    taken, now = SimpleNamespace(user=5.0, system=2.0), time.monotonic()
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=rss), cpu_times=lambda: taken)
    usage = client._Usage(cast("psutil.Process", process), SMALL)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    usage.begin(0)
    taken.user += cpu / 2
    taken.system += cpu / 2
    monkeypatch.setattr(time, "monotonic", lambda: now + wall)
    assert usage.too_much() == problem


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the alarm of its wall time ends it")
async def test_child_at_work_ends_with_its_parent() -> None:
    """A codec may hold the interpreter for ever: no thread of the child could see that the pipe is closed."""
    options = attrs.evolve(SMALL, cpu_seconds=600, wall_seconds=600)
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            child = await client.DecoderChild.start(nursery, options)
            await child.send(CheckImages(), ["spin"])
            assert isinstance((await child.receive_within(DEADLINE_SECONDS))[0], Working)
            # As the end of its parent does.
            await child._stdin.aclose()
            await child._process.wait()
            await child.aclose(force=True)
    assert child._process.returncode == -signal.SIGIO


async def test_system_itself_ends_a_child_that_takes_too_long() -> None:
    """Also where the parent does not look: it may be stopped."""
    options = attrs.evolve(SMALL, cpu_seconds=600, wall_seconds=1)
    with trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            child = await client.DecoderChild.start(nursery, options)
            await child.send(CheckImages(), ["hang"])
            await child._process.wait()
            await child.aclose(force=True)
    assert child._process.returncode == -signal.SIGALRM
