"""Asking a running server: what lies between the command and it."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mflux_api.cli.running_server import call
from mflux_api.config import Settings


class _Answering(BaseHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name that the base class gave it
        """Say nothing."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ready"}')


@pytest.fixture
def port() -> Iterator[int]:
    """Where a server answers everything."""
    with HTTPServer(("127.0.0.1", 0), _Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "http://[::1"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:{}", "http://localhost:{}/", "127.0.0.1:{}"])
def test_server_on_this_machine_is_asked_through_no_proxy(
    port: int, url: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    assert call(Settings(), url.format(port), "POST", "models/demo/load") == {"status": "ready"}


@pytest.fixture
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_proxy", "http_proxy", "https_proxy", "no_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)


@pytest.mark.usefixtures("_no_proxies")
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("http_proxy", "socks5://127.0.0.1:9", "http_proxy names a SOCKS proxy, which is not supported: unset it, or"),
        ("HTTP_PROXY", "http://[::1", "HTTP_PROXY is not the address of a proxy: unset it, or write http://host:port"),
        ("http_proxy", "http://127.0.0.1:9", "check the proxy of http_proxy, or name the server in NO_PROXY"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", "does not use the proxy of ALL_PROXY: name an HTTP proxy in http_proxy"),
        ("https_proxy", "socks5://127.0.0.1:9", "start one, or name it with --url"),
    ],
)
def test_proxy_in_the_way_is_named_with_what_to_do(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match=re.escape(says)):
        call(Settings(), "http://server.invalid", "POST", "models/demo/load")


@pytest.mark.usefixtures("_no_proxies")
def test_proxy_that_is_not_asked_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", ".invalid")
    with pytest.raises(ConnectionError, match=r"no server answers at http://server\.invalid"):
        call(Settings(), "http://server.invalid", "POST", "models/demo/load")
