"""Named for what would go wrong between actors if `messages.py` were not what it says."""

from __future__ import annotations

import inspect
from graphlib import TopologicalSorter
from typing import Any, get_args

import attrs
import pytest

from mflux_api.actors import messages as m
from mflux_api.actors.mailbox import ActorGone, Address, Ask, Mailbox

UNIONS: dict[str, tuple[type[Any], ...]] = {
    m.JOB_STORE: get_args(m.StoreMessage),
    m.EVENT_HUB: get_args(m.HubMessage),
    m.DOWNLOADER: get_args(m.DownloaderMessage),
    m.DECODER: (m.Decode,),
    m.MODEL_LOADER: get_args(m.LoaderMessage),
    m.GENERATOR: get_args(m.GeneratorMessage),
    m.SCHEDULER: get_args(m.SchedulerMessage),
    m.STATS: get_args(m.StatsMessage),
    m.WEBHOOKS: get_args(m.WebhooksMessage),
}
ACTORS = {*UNIONS, m.GATEWAY, m.HTTP_FRONT}
ASKS = [
    cls
    for _, cls in inspect.getmembers(m, inspect.isclass)
    if cls.__module__.startswith(m.__name__) and issubclass(cls, Ask)
]


def test_no_actors_can_wait_in_a_circle() -> None:
    order = list(TopologicalSorter(m.ASK_GRAPH).static_order())
    assert order.index(m.JOB_STORE) < order.index(m.SCHEDULER) < order.index(m.GATEWAY)


def test_the_graph_names_actors_and_only_those_who_can_be_asked() -> None:
    assert set(m.ASK_GRAPH) <= ACTORS
    for asked in m.ASK_GRAPH.values():
        for name in asked:
            assert any(issubclass(cls, Ask) for cls in UNIONS[name])


@pytest.mark.parametrize("ask", ASKS, ids=lambda cls: cls.__name__)
def test_a_question_has_exactly_one_receiver(ask: type[Any]) -> None:
    assert sum(ask in members for members in UNIONS.values()) == 1


@pytest.mark.parametrize("member", get_args(m.AnyMessage), ids=lambda cls: cls.__name__)
def test_a_message_cannot_be_changed_by_its_reader(member: type[Any]) -> None:
    assert "__attrs_attrs__" in vars(member)
    message = object.__new__(member)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        message.anything = 1


def test_every_union_is_part_of_the_whole() -> None:
    assert {cls for members in UNIONS.values() for cls in members} == set(get_args(m.AnyMessage))
    assert len(ASKS) >= 20


@pytest.mark.parametrize("sender", sorted(ACTORS))
@pytest.mark.parametrize("receiver", sorted(UNIONS))
async def test_a_question_along_an_edge_that_is_not_in_the_graph_is_an_error(sender: str, receiver: str) -> None:
    mailbox: Mailbox[Any] = Mailbox(receiver)
    mailbox.close()
    address: Address[Any] = Address(mailbox, sender=sender, asks=m.ASK_GRAPH)
    allowed = receiver in m.ASK_GRAPH.get(sender, frozenset())
    with pytest.raises(ActorGone if allowed else RuntimeError):
        await address.ask(Ask[None]())
