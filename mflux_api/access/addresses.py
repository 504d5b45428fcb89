"""Who is one client where only addresses tell: what limits, turns and shares count by."""

import ipaddress


def client_of(address: str) -> str:
    """Return what counts as one client of an address: of IPv6 the network of 64 bits, all of which one client has.

    What is not an address, such as a key's owner, and what this has returned before, stays as it is.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
