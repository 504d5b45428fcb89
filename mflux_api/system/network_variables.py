"""Environment variables that decide how a connection is made: proxies and their exceptions, certificates, the hub.

Libraries fail over a value that they cannot use before they connect, and name neither the variable nor what to do.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from ipaddress import ip_address
from urllib.parse import urlsplit

import attrs

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
_EXCEPTIONS = "NO_PROXY"
_SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
"""What huggingface_hub reads as numbers when it is imported, and cannot be imported over."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ENTRY = re.compile(r"\*|[\w.*<>%-]+(?::\d+)?|[\w./%-]+", re.ASCII)
"""An exception that HTTP libraries understand: a name or address, a network, a host with its port."""


@attrs.frozen
class Problem:
    """A variable whose value cannot be used."""

    variable: str
    wrong: str
    """Completes the sentence that begins with the variable."""
    advice: str

    def __str__(self) -> str:
        return f"{self.variable} {self.wrong}: {self.advice}"


def find_problem(environ: Mapping[str, str]) -> Problem | None:
    """Return the first variable that would keep every connection from being made, ``None`` if there is none.

    The values are not told: they may hold a password.
    """
    for variable, value in _proxies(environ):
        problem = _proxy_problem(variable, value)
        if problem is not None:
            return problem
    certificates = environ.get("SSL_CERT_FILE")
    if certificates and not os.path.isfile(certificates):
        return Problem("SSL_CERT_FILE", "names a file that is not there", "unset it, or name a file of certificates")
    for variable in _SECONDS:
        if not _is_whole(environ.get(variable)):
            return Problem(variable, "is not a whole number of seconds", "unset it, or write one")
    endpoint = environ.get("HF_ENDPOINT")
    if endpoint and not _is_address(endpoint):
        return Problem("HF_ENDPOINT", "is not the address of a model hub", "unset it, or write https://host")
    return None


def drop_unreadable(environ: MutableMapping[str, str]) -> None:
    """Remove what huggingface_hub cannot be imported over, where nothing is downloaded."""
    for variable in _SECONDS:
        if not _is_whole(environ.get(variable)):
            del environ[variable]


def _is_whole(value: str | None) -> bool:
    try:
        return value is None or int(value) >= 0
    except ValueError:
        return False


def _proxy_problem(variable: str, value: str) -> Problem | None:
    scheme, separator, _ = value.partition("://")
    if separator and scheme.lower().startswith("socks"):
        # With that package httpx can; it is not one that this one needs.
        if scheme.lower() in ("socks5", "socks5h") and find_spec("socksio") is not None:
            return None
        return Problem(
            variable,
            "names a SOCKS proxy, which is not supported",
            "unset it, or name an HTTP proxy (http://host:port)",
        )
    if not _is_address(value if separator else f"http://{value}"):
        return Problem(variable, "is not the address of a proxy", "unset it, or write http://host:port")
    return None


def _is_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        # Reading it looks at it.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _proxies(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the proxies that are set, each under the name that is read: the small letters come first.

    There are none where every host is an exception.
    """
    exceptions = _exceptions(environ)
    if "*" in (entry.strip() for entry in exceptions.split(",")):
        return []
    names = [next((name for name in (each.lower(), each) if environ.get(name)), None) for each in _PROXIES]
    return [(name, environ[name]) for name in names if name is not None]


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """Return the variable whose proxy a connection goes through; ``None`` where it goes through none."""
    set_by = {name.upper(): name for name, _ in _proxies(environ)}
    own = set_by.get(f"{urlsplit(url).scheme.upper()}_PROXY")
    return None if is_loopback(url) or _is_exception(url, environ) else own or set_by.get("ALL_PROXY")


def _is_exception(url: str, environ: Mapping[str, str]) -> bool:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return False
    for entry in map(_exception, _exceptions(environ).split(",")):
        name, _, own_port = entry.partition(":") if entry.count(":") == 1 else (entry, "", "")
        name = name.lstrip(".").lower()
        if name and own_port in ("", str(port)) and (host == name or host.endswith(f".{name}")):
            return True
    return False


def _exceptions(environ: Mapping[str, str]) -> str:
    return environ.get(_EXCEPTIONS.lower()) or environ.get(_EXCEPTIONS) or ""


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this very machine, where no proxy can help."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:
        return False


def prepare(url: str, environ: MutableMapping[str, str]) -> None:
    """Change a process's own variables, so that connections to a host are made as they are meant.

    To this machine none goes through a proxy. Exceptions are spelled as HTTP libraries read them, and those that no
    library can read are left out: one of them would keep every connection from being made.

    Args:
        url: what is connected to.
        environ: the variables.
    """
    if is_loopback(url):
        for name in _PROXIES:
            for spelling in (name, name.lower()):
                environ.pop(spelling, None)
    exceptions = _exceptions(environ)
    if exceptions:
        kept = [entry for each in exceptions.split(",") if (entry := _exception(each))]
        environ[_EXCEPTIONS] = environ[_EXCEPTIONS.lower()] = ",".join(dict.fromkeys((*kept, *_LOOPBACK)))


def _exception(entry: str) -> str:
    """Return one exception as libraries read it; empty where none can."""
    entry = entry.strip()
    address, _, _ = entry.removeprefix("[").partition("]")
    if entry.startswith("["):
        entry = address
    network, _, width = entry.partition("/")
    if ":" in network and network.count(":") > 1:
        # A network of IPv6 addresses is not understood.
        return "" if width or not _is_ip(network.partition("%")[0]) else network
    try:
        entry = entry if entry.isascii() else entry.encode("idna").decode()
    except UnicodeError:
        return ""
    # As browsers and Windows write what libraries call '.example.com'.
    entry = entry[1:] if entry.startswith("*.") else entry
    return entry if _ENTRY.fullmatch(entry) else ""


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
