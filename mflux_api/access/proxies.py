"""Proxies in front of the service: whose headers about the client are believed, and what they say."""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from mflux_api.errors import ConfigError

MOST_HOPS = 32
"""Addresses of one ``X-Forwarded-For`` that are looked at: a client may send any number in front of the true ones."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TrustedProxies:
    """The addresses and networks of ``server.trusted_proxies``."""

    def __init__(self, trusted: Iterable[str]) -> None:
        """Read the settings.

        Raises:
            ConfigError: one is not an address or a network.
        """
        self._networks = tuple(map(_network, trusted))

    def trusts(self, address: str) -> bool:
        """Whether a connection from an address is a proxy's whose headers count."""
        if not self._networks:
            return False
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        plain = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        return any((plain or parsed) in network for network in self._networks)

    def client_of(self, peer: str, forwarded_for: Sequence[str], forwarded: Sequence[str] = ()) -> str:
        """Return the address of a request's client.

        Args:
            peer: where the connection comes from.
            forwarded_for: the values of ``X-Forwarded-For``. Each proxy adds whom it heard on the right, so that what
                a client has put there itself is on the left of the first address that is not a trusted proxy's.
            forwarded: the values of ``Forwarded`` (RFC 7239), which count where there is no ``X-Forwarded-For``.
        """
        hops = _split(forwarded_for) if forwarded_for else [each.get("for", "") for each in _hops(forwarded)]
        return self._walk(peer, hops)[0]

    def told_of(self, peer: str, forwarded: Sequence[str]) -> Mapping[str, str]:
        """Return what ``Forwarded`` tells of a request as its client sent it: ``host``, ``proto``.

        It is the outermost trusted proxy that tells it, and nothing that stands on the left of that.
        """
        hops = _hops(forwarded)
        _, taken = self._walk(peer, [each.get("for", "") for each in hops])
        return hops[-taken] if taken else {}

    def _walk(self, peer: str, hops: Sequence[str]) -> tuple[str, int]:
        """Return the first address from the right that is not a trusted proxy's, and how many hops it takes."""
        client, taken = peer, 0
        if not self.trusts(peer):
            return client, taken
        for hop in reversed(hops):
            address = _address(hop)
            if address is None:
                break
            client, taken = address, taken + 1
            if not self.trusts(address):
                break
        return client, taken


def _split(values: Sequence[str]) -> list[str]:
    return ",".join(values).split(",")[-MOST_HOPS:]


def _hops(forwarded: Sequence[str]) -> list[dict[str, str]]:
    """Return the parameters of each hop of ``Forwarded``, their names in small letters.

    No address and no host has a comma or a semicolon, so that quotes do not hide any: what a client leaves open on the
    left swallows nothing that a proxy adds.
    """
    return [
        {
            name.strip().lower(): value.strip().strip('"')
            for name, equals, value in (pair.partition("=") for pair in hop.split(";")[:_MOST_PARAMETERS])
            if equals
        }
        for hop in _split(forwarded)
    ]


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ConfigError(
            f"server.trusted_proxies: '{text[:64]}' is not an address or a network; expected such as '127.0.0.1' or "
            "'10.0.0.0/8'"
        ) from None
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_BITS), strict=False)


_MAPPED_BITS = 96
_MOST_PARAMETERS = 8
"""Of one hop of ``Forwarded``; RFC 7239 has four."""


def _address(hop: str) -> str | None:
    """Return the address of one hop, which some proxies write with a port; ``None`` where there is none."""
    text = hop.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
