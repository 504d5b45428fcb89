"""Who can reach a server that starts, in words: from the network, and from web pages."""

import logging
from ipaddress import ip_address

import attrs

from mflux_api.access.keys_file import MIN_LENGTH, weak_keys
from mflux_api.config import Settings
from mflux_api.http.security.hosts import HostRules
from mflux_api.http.security.origins import OriginRules


@attrs.frozen
class Line:
    """One line of the log."""

    level: int
    text: str


def describe_audience(settings: Settings, *, port: int, keys: int) -> list[Line]:
    """Return what an operator has to know once, at the start.

    Args:
        settings: where the server listens, and which pages it knows.
        port: where it listens indeed.
        keys: how many keys there are.
    """
    local = is_loopback(settings.server.host)
    origins = OriginRules(settings.server.cors_origins)
    lines = [_network(port, local=local, keys=keys), _pages(origins, local=local, keys=keys)]
    if origins.mistakes:
        what = f"server.cors_origins has {len(origins.mistakes)} entry(ies) that no page has"
        example = origins.mistakes[0][:100]
        lines.append(Line(logging.WARNING, f"{what}, such as '{example}'; write scheme://host or scheme://host:port"))
    if HostRules(settings.security.allowed_hosts).every and not keys:
        what = "security.allowed_hosts has '*' and no API key is set"
        why = "any web page may read and manage everything after DNS rebinding; list the names that you use"
        lines.append(Line(logging.WARNING, f"{what}: {why}"))
    weak = weak_keys(settings.security)
    if weak:
        what = f"{weak} API key(s) of security.api_keys or MFLUX_API_KEYS have less than {MIN_LENGTH} characters"
        why = "they can be guessed, and the next major version will refuse them; use `mflux-api keys new`"
        lines.append(Line(logging.WARNING, f"{what}: {why}"))
    return lines


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name to listen on."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _network(port: int, *, local: bool, keys: int) -> Line:
    if local:
        who = "this machine's programs only" + (f", with one of {keys} API key(s)" if keys else "")
        return Line(logging.INFO, f"who can call: {who}")
    who = f"every machine that reaches this one on port {port}"
    if keys:
        return Line(logging.INFO, f"who can call: {who}, with one of {keys} API key(s)")
    advice = "no API key is set; set security.api_keys or security.keys_file, or start with --host 127.0.0.1"
    return Line(logging.WARNING, f"who can call: {who} ({advice})")


def _pages(origins: OriginRules, *, local: bool, keys: int) -> Line:
    named = len(origins.named)
    where = "on this machine" if local else "on a machine that reaches it"
    with_key = " with an API key" if keys else ""
    if origins.any_page:
        text = f"any website that is open in a browser {where} may generate and read{with_key}"
        text += f", and pages of {named} origin(s) may also manage" if named and not keys else ""
    elif named:
        text = f"pages of {named} origin(s) may generate, read and manage{with_key}, and no others"
    else:
        text = "none but this server's own"
    return Line(logging.INFO, f"which web pages can call: {text} (server.cors_origins)")
