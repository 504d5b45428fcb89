"""Who the client is behind proxies: only the headers of trusted ones are believed, from the right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.access.proxies import TrustedProxies
from mflux_api.errors import ConfigError

LOOPBACK = TrustedProxies(("127.0.0.1", "10.0.0.0/8", "fd00::/64"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("127.0.0.1", ["6.6.6.6, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["6.6.6.6, 203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        ("127.0.0.1", ["6.6.6.6", "203.0.113.7", "10.1.2.3"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("127.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("127.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("fd00::1", ["203.0.113.7"], "203.0.113.7"),
        ("fd01::1", ["203.0.113.7"], "fd01::1"),
        ("127.0.0.1", ["10.1.2.3, 10.1.2.4"], "10.1.2.3"),
        ("127.0.0.1", ["203.0.113.7, unknown"], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7, unknown, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("", ["203.0.113.7"], ""),
    ],
)
def test_client_is_the_first_from_the_right_that_is_no_trusted_proxy(
    peer: str, forwarded: list[str], client: str
) -> None:
    assert LOOPBACK.client_of(peer, forwarded) == client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["for=203.0.113.7;proto=https;host=images.example.com"], "203.0.113.7"),
        (['For="[2001:db8::7]:4711"'], "2001:db8::7"),
        (['for="203.0.113.7:4711", for=10.1.2.3'], "203.0.113.7"),
        (["for=6.6.6.6", "for=203.0.113.7"], "203.0.113.7"),
        # A quote that a client leaves open swallows nothing.
        (['for="6.6.6.6, for=203.0.113.7'], "203.0.113.7"),
        (["for=203.0.113.7, for=_hidden"], "127.0.0.1"),
        (["for=203.0.113.7, proto=https"], "127.0.0.1"),
        ([""], "127.0.0.1"),
    ],
)
def test_forwarded_tells_the_client_where_there_is_no_older_header(forwarded: list[str], client: str) -> None:
    assert LOOPBACK.client_of("127.0.0.1", [], forwarded) == client
    assert LOOPBACK.client_of("127.0.0.1", ["198.51.100.1"], forwarded) == "198.51.100.1"
    assert LOOPBACK.client_of("203.0.113.9", [], forwarded) == "203.0.113.9"


def test_what_forwarded_tells_of_a_request_is_the_outermost_trusted_proxys() -> None:
    forwarded = ["for=6.6.6.6;host=evil.example, for=203.0.113.7;host=a.example;proto=https, for=10.1.2.3;host=b"]
    assert LOOPBACK.told_of("127.0.0.1", forwarded) == {"for": "203.0.113.7", "host": "a.example", "proto": "https"}
    assert LOOPBACK.told_of("203.0.113.9", forwarded) == {}
    assert LOOPBACK.told_of("127.0.0.1", ["host=a.example"]) == {}


def test_without_trusted_proxies_no_header_counts() -> None:
    assert TrustedProxies(()).client_of("127.0.0.1", ["203.0.113.7"]) == "127.0.0.1"


@given(st.lists(st.text(max_size=40), max_size=4))
def test_what_strangers_put_in_front_changes_nothing(forged: list[str]) -> None:
    assert LOOPBACK.client_of("127.0.0.1", [*forged, "203.0.113.7"]) == "203.0.113.7"
    assert LOOPBACK.client_of("127.0.0.1", [], [*forged, "for=203.0.113.7"]) == "203.0.113.7"


@pytest.mark.parametrize("text", ["proxy", "10.0.0.0/33", "", "10.0.0.1, 10.0.0.2"])
def test_a_setting_that_is_no_address_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.trusted_proxies"):
        TrustedProxies((text,))


def test_mapped_networks_are_those_of_ipv4() -> None:
    assert TrustedProxies(("::ffff:10.0.0.0/104",)).trusts("10.9.9.9")
