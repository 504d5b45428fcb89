"""What counts as one client where only addresses tell."""

import pytest

from mflux_api.access.access import Access
from mflux_api.access.addresses import client_of
from mflux_api.config import SecuritySettings


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("<local>", "<local>"),
        ("key ana", "key ana"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_network_of_one_ipv6_client_is_one_client(address: str, expected: str) -> None:
    assert client_of(address) == expected
    assert client_of(expected) == expected


def test_ipv6_client_does_not_multiply_its_shares_by_its_addresses() -> None:
    """Streams, uploads and the decoder's line count by the owner as it is."""
    access = Access(SecuritySettings())
    first, second = access.caller(None, "2001:db8::1"), access.caller(None, "2001:db8::2")
    assert first.owner == second.owner != access.caller(None, "2001:db8:0:1::1").owner
