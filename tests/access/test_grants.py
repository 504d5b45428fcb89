"""Tokens stand for one key, for one purpose, for a while."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.access.grants import Grants, new_secret
from mflux_api.access.keys import Key, KeyRing, digest_of

ALICE = Key(name="alice", digest=digest_of(b"the key of alice"))
BOB = Key(name="bob", digest=digest_of(b"the key of bob"))
RING = KeyRing((BOB, ALICE))


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_token_stands_for_its_key_until_its_end_and_for_no_other_purpose() -> None:
    clock = Clock()
    grants = Grants(b"s" * 32, clock)
    token, expires = grants.issue("job 1", ALICE, 60)
    assert expires == clock.now + 60
    assert grants.holder("job 1", token, RING) == ALICE
    assert grants.holder("job 2", token, RING) is None
    assert grants.holder("session", token, RING) is None
    clock.now += 60
    assert grants.holder("job 1", token, RING) is None


def test_token_ends_with_its_key_and_with_the_secret() -> None:
    grants = Grants(b"s" * 32, Clock())
    token, _ = grants.issue("session", ALICE, 60)
    assert grants.holder("session", token, KeyRing((BOB,))) is None
    assert grants.holder("session", token, KeyRing()) is None
    replaced = attrs.evolve(ALICE, digest=digest_of(b"another key of alice"))
    assert grants.holder("session", token, KeyRing((replaced,))) is None
    assert Grants(b"t" * 32, Clock()).holder("session", token, RING) is None
    assert Grants(b"s" * 32, Clock()).holder("session", token, RING) == ALICE


@given(st.integers(min_value=0, max_value=80), st.text(max_size=1))
def test_token_with_another_letter_is_none(place: int, letter: str) -> None:
    grants = Grants(b"s" * 32, Clock())
    token, _ = grants.issue("session", ALICE, 60)
    changed = token[:place] + letter + token[place + 1 :]
    assert grants.holder("session", changed, RING) == (ALICE if changed == token else None)


@pytest.mark.parametrize(
    "text", ["", ".", "..", "1.2", "a.b.c", "9" * 200, "\uff19.a.b", "-1.a.b", "1.2.3.4", "1" * 13 + ".a.b"]
)
def test_any_other_text_is_none(text: str) -> None:
    assert Grants(new_secret()).holder("session", text, RING) is None


def test_name_is_the_secrets() -> None:
    assert Grants(b"s" * 32).name == Grants(b"s" * 32).name != Grants(b"t" * 32).name
