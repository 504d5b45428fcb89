"""Which addresses strangers may have the server connect to: public ones, in whatever form they are written.

A name in a request is chosen by a stranger, and so is what it resolves to: loopback, the office network and the
metadata service of a cloud must not be reached that way. Lists of Python's ``ipaddress`` differ between versions, so
the rules are written out here, after IANA's special-purpose registries (IPv4, IPv6) as of 2026.
"""

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NOT_PUBLIC_4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network; Linux takes 0.0.0.0 for loopback
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT, and the metadata service of Alibaba
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's wire server, in the middle of public addresses
        "169.254.0.0/16",  # link-local, and most metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_GLOBAL_UNICAST_6: Final = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocols: Teredo, ORCHID, benchmarking
        "2001:db8::/32",
        "3fff::/20",
        "3ffe::/16",  # the 6bone of old
    )
)
_SIX_TO_FOUR: Final = ipaddress.IPv6Network("2002::/16")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
_MASK_32: Final = 0xFFFF_FFFF


def is_public(address: Address) -> bool:
    """Return whether an address, and every IPv4 address inside it, is one of the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    number = int(address)
    if address in _MAPPED or address in _NAT64:
        return is_public(ipaddress.IPv4Address(number & _MASK_32))
    if address not in _GLOBAL_UNICAST_6 or any(address in network for network in _NOT_PUBLIC_6):
        return False
    if address in _SIX_TO_FOUR:
        return is_public(ipaddress.IPv4Address((number >> 80) & _MASK_32))
    if (number >> 32) & _MASK_32 in _ISATAP:
        return is_public(ipaddress.IPv4Address(number & _MASK_32))
    return True


def parse(text: str) -> Address | None:
    """Return an address in its usual form; ``None`` for a name, and for ``127.1``, ``0x7f000001`` and their like."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def ends_in_a_number(host: str) -> bool:
    """Return whether a resolver takes a host for an IPv4 address, however it is spelled (WHATWG's rule)."""
    last = host.rstrip(".").rpartition(".")[2].lower()
    return last.isdigit() or (last.startswith("0x") and all(digit in "0123456789abcdef" for digit in last[2:]))
