"""Asking a running server: what lies between the command and it."""

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


def test_proxy_that_cannot_be_used_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"ALL_PROXY names a SOCKS proxy.*unset it, or name"):
        call(Settings(), "http://server.invalid", "POST", "models/demo/load")


def test_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALL_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="check the proxy of http_proxy, or name the server in NO_PROXY"):
        call(Settings(), "http://server.invalid", "POST", "models/demo/load")
