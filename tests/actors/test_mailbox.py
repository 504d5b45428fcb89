"""Named for what an actor or its asker would see if `mailbox.py` did not keep its word."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from mflux_api.actors.mailbox import ActorGone, ActorStopped, ActorSuspended, Address, Ask, Mailbox, MailboxFull
from mflux_api.supervisor import Backoff, ChildSpec, Started, Supervisor
from tests.support.crew import checkpoints, run_mocked, running


@attrs.frozen(kw_only=True)
class Question(Ask[str]):
    text: str


class _Broke(Exception):
    pass


def _address(mailbox: Mailbox[Question], sender: str = "asker") -> Address[Question]:
    return Address(mailbox, sender=sender, asks={"asker": frozenset({mailbox.name})})


class _Outcomes:
    """Tasks that ask or tell, and what came of each."""

    def __init__(self, address: Address[Question]) -> None:
        self._address = address
        self.of: dict[str, str | type[BaseException]] = {}

    async def ask(self, text: str) -> None:
        try:
            answer = await self._address.ask(Question(text=text))
            self.of[text] = answer
        except (ActorGone, _Broke) as error:
            self.of[text] = type(error)

    async def tell(self, text: str) -> None:
        try:
            await self._address.tell(Question(text=text))
            self.of[text] = "told"
        except ActorGone as error:
            self.of[text] = type(error)


# --- answers ---


async def test_an_answer_or_an_error_reaches_the_asker(nursery: trio.Nursery) -> None:
    mailbox: Mailbox[Question] = Mailbox("actor")
    outcomes = _Outcomes(_address(mailbox))
    nursery.start_soon(outcomes.ask, "one")
    assert (await mailbox.receive()).reply.ok("answer")
    nursery.start_soon(outcomes.ask, "two")
    assert (await mailbox.receive()).reply.fail(_Broke())
    await wait_all_tasks_blocked()
    assert outcomes.of == {"one": "answer", "two": _Broke}


async def test_a_message_is_answered_once() -> None:
    question = Question(text="?")
    question.reply.ok("answer")
    assert question.reply.answered
    with pytest.raises(RuntimeError, match="answered once"):
        question.reply.fail(_Broke())


async def test_the_actor_sees_that_its_asker_has_gone() -> None:
    mailbox: Mailbox[Question] = Mailbox("actor")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_address(mailbox).ask, Question(text="?"))
            question = await mailbox.receive()
            await wait_all_tasks_blocked()
            assert question.reply.wanted
            scope.cancel()
    assert not question.reply.wanted
    assert not question.reply.ok("too late")


@pytest.mark.parametrize("answers_first", [True, False])
async def test_an_answer_is_either_taken_by_the_asker_or_refused_by_it(answers_first: bool) -> None:
    """A lease that is granted in the very moment in which its asker is cancelled must not be lost."""
    for turns in range(100):
        mailbox: Mailbox[Question] = Mailbox("actor")
        got: list[str] = []

        async def ask(mailbox: Mailbox[Question] = mailbox, got: list[str] = got) -> None:
            got.append(await _address(mailbox).ask(Question(text="?")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            question = await mailbox.receive()
            await checkpoints(turns % 5)
            if answers_first:
                taken = question.reply.ok("lease")
                nursery.cancel_scope.cancel()
            else:
                nursery.cancel_scope.cancel()
                taken = question.reply.ok("lease")
        assert got == (["lease"] if taken else [])


async def test_only_edges_of_the_graph_may_be_asked() -> None:
    mailbox: Mailbox[Question] = Mailbox("actor")
    stranger = _address(mailbox, sender="stranger")
    with pytest.raises(RuntimeError, match="stranger may not ask actor"):
        await stranger.ask(Question(text="?"))
    assert mailbox.queued() == 0
    await stranger.tell(Question(text="telling is free"))
    assert mailbox.queued() == 1


# --- death, restart, closing ---


async def test_a_restart_loses_the_message_in_hand_and_keeps_the_queued_ones(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    mailbox: Mailbox[Question] = Mailbox("actor")
    outcomes = _Outcomes(_address(mailbox))
    doom = trio.Event()

    async def run(status: Started) -> None:
        status.started()
        while True:
            question = await mailbox.receive()
            if question.text == "deadly":
                await doom.wait()
                raise _Broke
            question.reply.ok(f"{question.text} at {trio.current_time():g}")

    child = ChildSpec(name="actor", run=run, on_exit=mailbox.fail_in_flight)
    async with running(Supervisor("s", [child], backoff=Backoff(first=2.0)).run):
        for text in ("deadly", "b", "c"):
            nursery.start_soon(outcomes.ask, text)
            await wait_all_tasks_blocked()
        doom.set()
        await wait_all_tasks_blocked()
        # The asker learns it now, not when the actor is back.
        assert outcomes.of == {"deadly": ActorGone}
        await trio.sleep(3)
    assert outcomes.of == {"deadly": ActorGone, "b": "b at 2", "c": "c at 2"}


async def test_everything_taken_and_not_answered_is_in_hand(nursery: trio.Nursery) -> None:
    """The loader takes many Acquires and keeps them waiting."""
    mailbox: Mailbox[Question] = Mailbox("actor")
    outcomes = _Outcomes(_address(mailbox))
    for text in "abc":
        nursery.start_soon(outcomes.ask, text)
    taken = [await mailbox.receive() for _ in range(3)]
    taken[1].reply.ok("answer")
    mailbox.fail_in_flight()
    await wait_all_tasks_blocked()
    expected: dict[str, str | type[BaseException]] = dict.fromkeys("abc", ActorGone)
    assert outcomes.of == expected | {taken[1].text: "answer"}
    mailbox.fail_in_flight()


async def test_closing_tells_those_in_hand_those_queued_and_those_who_come_later(nursery: trio.Nursery) -> None:
    mailbox: Mailbox[Question] = Mailbox("actor")
    outcomes = _Outcomes(_address(mailbox))
    for text in "ab":
        nursery.start_soon(outcomes.ask, text)
    await mailbox.receive()
    await wait_all_tasks_blocked()
    mailbox.close()
    await outcomes.ask("late ask")
    await outcomes.tell("late tell")
    await wait_all_tasks_blocked()
    assert outcomes.of == dict.fromkeys(("a", "b", "late ask", "late tell"), ActorStopped)
    with pytest.raises(ActorStopped):
        _address(mailbox).tell_nowait(Question(text="late"))
    mailbox.close()


async def test_senders_who_wait_for_room_when_the_mailbox_is_closed_learn_it(nursery: trio.Nursery) -> None:
    for turns in range(8):
        mailbox: Mailbox[Question] = Mailbox("actor", work_capacity=1)
        outcomes = _Outcomes(_address(mailbox))
        await outcomes.tell("in time")
        for text in "abc":
            nursery.start_soon(outcomes.tell, text)
        for text in "de":
            nursery.start_soon(outcomes.ask, text)
        await checkpoints(turns)
        mailbox.close()
        await wait_all_tasks_blocked()
        assert outcomes.of == {"in time": "told"} | dict.fromkeys("abcde", ActorStopped)


async def test_a_message_on_its_way_in_when_the_mailbox_is_closed_is_not_reported_as_told(
    nursery: trio.Nursery,
) -> None:
    for _ in range(50):
        mailbox: Mailbox[Question] = Mailbox("actor")
        outcomes = _Outcomes(_address(mailbox))
        nursery.start_soon(outcomes.tell, "a")
        await checkpoints(1)
        mailbox.close()
        await wait_all_tasks_blocked()
        assert outcomes.of == {"a": ActorStopped}


# --- lanes ---


async def test_the_control_lane_is_served_first_and_has_room_of_its_own() -> None:
    mailbox: Mailbox[Question] = Mailbox("actor", work_capacity=2, control_capacity=1)
    address = _address(mailbox)
    for text in "ab":
        address.tell_nowait(Question(text=text))
    with pytest.raises(MailboxFull):
        address.tell_nowait(Question(text="no room"))
    address.tell_nowait(Question(text="now"), control=True)
    with pytest.raises(MailboxFull):
        address.tell_nowait(Question(text="no room"), control=True)
    assert [(await mailbox.receive()).text for _ in range(mailbox.queued())] == ["now", "a", "b"]


async def test_news_comes_first_and_the_newest_of_each_kind_replaces_the_older() -> None:
    mailbox: Mailbox[Question] = Mailbox("actor", work_capacity=1, control_capacity=1)
    address = _address(mailbox)
    address.tell_nowait(Question(text="work"))
    address.tell_nowait(Question(text="control"), control=True)
    for text, key in (("old a", "a"), ("b", "b"), ("newer a", "a"), ("newest a", "a")):
        address.tell_latest(Question(text=text), key=key)
    assert mailbox.queued() == 4
    assert [(await mailbox.receive()).text for _ in range(4)] == ["newest a", "b", "control", "work"]
    # What was read is not replaced: the next of its kind is news again.
    address.tell_latest(Question(text="later a"), key="a")
    assert (await mailbox.receive()).text == "later a"
    assert mailbox.queued() == 0


async def test_what_may_be_lost_is_dropped_where_there_is_no_room_or_no_actor() -> None:
    mailbox: Mailbox[Question] = Mailbox("actor", work_capacity=1)
    address = _address(mailbox)
    for text in ("a", "b"):
        address.tell_lossy(Question(text=text))
    assert (await mailbox.receive()).text == "a"
    mailbox.suspend()
    address.tell_lossy(Question(text="c"))
    mailbox.resume()
    mailbox.close()
    address.tell_lossy(Question(text="d"))
    address.tell_latest(Question(text="e"), key="e")
    assert mailbox.queued() == 0


# --- an actor that is away for a while ---


async def test_askers_of_a_suspended_actor_learn_it_at_once_and_news_waits(nursery: trio.Nursery) -> None:
    mailbox: Mailbox[Question] = Mailbox("actor", work_capacity=1)
    address, outcomes = _address(mailbox), _Outcomes(_address(mailbox))
    for text in ("in hand", "queued"):
        nursery.start_soon(outcomes.ask, text)
        await wait_all_tasks_blocked()
        if text == "in hand":
            await mailbox.receive()
    for text in ("waits for room", "waits for room, too"):
        nursery.start_soon(outcomes.ask, text)
    await wait_all_tasks_blocked()
    address.tell_latest(Question(text="old news"), key="news")
    mailbox.suspend()
    address.tell_latest(Question(text="news"), key="news")
    await outcomes.ask("late ask")
    await outcomes.tell("late tell")
    with pytest.raises(ActorSuspended):
        address.tell_nowait(Question(text="late"), control=True)
    await wait_all_tasks_blocked()
    # What it had taken was lost with it; everything else is told why.
    suspended = ("queued", "waits for room", "waits for room, too", "late ask", "late tell")
    expected: dict[str, str | type[BaseException]] = dict.fromkeys(suspended, ActorSuspended)
    assert outcomes.of == expected | {"in hand": ActorGone}
    mailbox.resume()
    nursery.start_soon(outcomes.ask, "again")
    await wait_all_tasks_blocked()
    assert [(await mailbox.receive()).text for _ in range(mailbox.queued())] == ["news", "again"]


async def test_suspending_at_any_moment_of_a_senders_way_in_loses_no_answer(nursery: trio.Nursery) -> None:
    for turns in range(12):
        mailbox: Mailbox[Question] = Mailbox("actor", work_capacity=1)
        outcomes = _Outcomes(_address(mailbox))
        for text in "abcd":
            nursery.start_soon(outcomes.ask, text)
        await checkpoints(turns)
        mailbox.suspend()
        await wait_all_tasks_blocked()
        assert outcomes.of == dict.fromkeys("abcd", ActorSuspended)
        assert mailbox.queued() == 0
        mailbox.resume()
        nursery.start_soon(outcomes.ask, "e")
        question = await mailbox.receive()
        question.reply.ok(question.text)
        await wait_all_tasks_blocked()
        assert outcomes.of["e"] == "e"


_LANES = st.sampled_from(["work", "control", "a", "b"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(_LANES, st.sampled_from(["receive", "suspend", "resume"])), max_size=60))
def test_lanes_and_news_agree_with_a_model(steps: list[str]) -> None:
    async def main() -> None:
        mailbox: Mailbox[int] = Mailbox("actor", work_capacity=3, control_capacity=3)
        lanes: dict[str, list[int]] = {"control": [], "work": []}
        news: dict[str, int] = {}
        suspended = False
        for number, step in enumerate(steps):
            match step:
                case "control" | "work":
                    full = len(lanes[step]) == 3
                    refusal = ActorSuspended if suspended else MailboxFull if full else None
                    if refusal is None:
                        mailbox.put_nowait(number, control=step == "control")
                        lanes[step].append(number)
                    else:
                        with pytest.raises(refusal):
                            mailbox.put_nowait(number, control=step == "control")
                case "a" | "b":
                    mailbox.put_latest(number, key=step)
                    news[step] = number
                case "receive" if mailbox.queued():
                    expected = news.pop(next(iter(news))) if news else (lanes["control"] or lanes["work"]).pop(0)
                    assert await mailbox.receive() == expected
                case "suspend":
                    mailbox.suspend()
                    suspended = True
                    lanes = {"control": [], "work": []}
                case "resume":
                    mailbox.resume()
                    suspended = False
            assert mailbox.queued() == len(news) + len(lanes["control"]) + len(lanes["work"])

    run_mocked(main)


_OPERATIONS = ["put", "put_now", "cancelled put", "receive", "cancelled receive", "restart", "turns", "settle"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_OPERATIONS), st.booleans(), st.integers(0, 3)), max_size=40))
def test_nothing_is_lost_doubled_or_out_of_order(operations: list[tuple[str, bool, int]]) -> None:
    run_mocked(lambda: _interleave(operations))


async def _interleave(operations: list[tuple[str, bool, int]]) -> None:
    mailbox: Mailbox[tuple[bool, int]] = Mailbox("actor", work_capacity=2, control_capacity=2)
    numbers = itertools.count()
    sent: set[tuple[bool, int]] = set()
    received: list[tuple[bool, int]] = []

    async def put(control: bool, scope: trio.CancelScope) -> None:
        # Numbered when it really is the sender's turn: that is the order within a lane.
        message = (control, next(numbers))
        with scope:
            await mailbox.put(message, control=control)
            sent.add(message)

    async def read(scope: trio.CancelScope, wanted: float) -> None:
        with scope:
            while wanted > 0:
                message = await mailbox.receive()
                received.append(message)
                wanted -= 1
                if not message[0]:
                    assert not [other for other in sent if other[0] and other not in received]

    async with trio.open_nursery() as nursery:
        reader, reader_ended = trio.CancelScope(), trio.Event()

        async def actor(scope: trio.CancelScope, ended: trio.Event, wanted: float) -> None:
            await read(scope, wanted)
            mailbox.fail_in_flight()
            ended.set()

        nursery.start_soon(actor, reader, reader_ended, 0)
        for operation, control, turns in operations:
            match operation:
                case "put":
                    nursery.start_soon(put, control, trio.CancelScope())
                case "put_now":
                    message = (control, next(numbers))
                    try:
                        mailbox.put_nowait(message, control=control)
                        sent.add(message)
                    except MailboxFull:
                        pass
                case "cancelled put":
                    scope = trio.CancelScope()
                    nursery.start_soon(put, control, scope)
                    await checkpoints(turns)
                    scope.cancel()
                case "turns":
                    await checkpoints(turns)
                case "settle":
                    await wait_all_tasks_blocked()
                    assert mailbox.queued() == len(sent) - len(received)
                case _:
                    reader.cancel()
                    await reader_ended.wait()
                    reader, reader_ended = trio.CancelScope(), trio.Event()
                    nursery.start_soon(actor, reader, reader_ended, turns if operation == "receive" else 100)
                    if operation == "cancelled receive":
                        await checkpoints(turns)
                        reader.cancel()
        reader.cancel()
        await reader_ended.wait()
        await read(trio.move_on_after(1), 1000)
    assert len(received) == len(set(received))
    assert set(received) == sent
    assert mailbox.queued() == 0
    lanes: list[Callable[[tuple[bool, int]], bool]] = [lambda message: message[0], lambda message: not message[0]]
    for lane in lanes:
        in_lane = [message for message in received if lane(message)]
        assert in_lane == sorted(in_lane)
