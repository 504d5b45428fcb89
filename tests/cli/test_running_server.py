"""Asking a running server: what lies between the command and it."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mflux_api.cli.running_server import address, call
from mflux_api.config import ServerSettings, Settings
from mflux_api.errors import ConfigError


class _Answering(BaseHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name that the base class gave it
        """Say nothing."""

    def do_POST(self) -> None:
        status, _, body = self.server.answer.partition(b" ")  # type: ignore[attr-defined]
        if status == b"SSH-2.0":
            self.wfile.write(b"SSH-2.0-x\r\n\r\n")
            return
        self.send_response(int(status))
        if body == b"half":
            self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Where a server answers everything."""
    with HTTPServer(("127.0.0.1", 0), _Answering) as server:
        server.answer = getattr(request, "param", b'200 {"status": "ready"}')  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "http://[::1"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:{}", "http://localhost:{}/", "127.0.0.1:{}", "127.0.0.1:{}/api/v1/"])
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
        ("ALL_PROXY", "socks5://127.0.0.1:9", "ALL_PROXY names a SOCKS proxy, which is not supported: unset it, or"),
        ("ALL_PROXY", "127.0.0.1:9", "check the proxy of ALL_PROXY, or name the server in NO_PROXY"),
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


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://a b", "http://", "host:99999", "host:abc", "ftp://host", "file:///etc", "a.b?c=1"]
)
def test_text_that_is_not_an_address_of_a_server_is_an_error_of_the_option(url: str) -> None:
    with pytest.raises(ConfigError, match="--url is not the address of a server: write http://host:port"):
        call(Settings(), url, "POST", "models/demo/load")


def test_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        call(Settings(), "http://user:word@host", "POST", "models/demo/load")
    assert "word" not in str(caught.value)


@pytest.mark.usefixtures("_no_proxies")
@pytest.mark.parametrize(
    ("port", "says"),
    [
        (b"SSH-2.0 ", "is not an mflux-api server; name it with --url"),
        (b"200 half", "left before its answer was whole; start one, or name it with --url"),
        (b"200 <html>", "is not an mflux-api server; name it with --url"),
        (b"200 [1]", "is not an mflux-api server; name it with --url"),
        (b"200 {}", "is not an mflux-api server; name it with --url"),
        (b"404 <html>", "is not an mflux-api server (it says 404); name it with --url"),
        (b"502 <html>", "reaches no server (502); start one, or name it with --url"),
    ],
    indirect=["port"],
)
def test_another_program_that_answers_is_not_called_a_server_that_does_not(port: int, says: str) -> None:
    with pytest.raises(ConnectionError, match=re.escape(says)):
        call(Settings(), f"127.0.0.1:{port}", "POST", "models/demo/load")


@pytest.mark.usefixtures("_no_proxies")
def test_reason_is_in_words() -> None:
    with pytest.raises(ConnectionError, match=r"no server answers at http://127\.0\.0\.1:1 \(connection refused\)"):
        call(Settings(), "127.0.0.1:1", "POST", "models/demo/load")


def test_configured_address_of_ipv6_is_spelled_as_addresses_are() -> None:
    assert address(Settings(server=ServerSettings(host="fd00::1", port=5))) == "http://[fd00::1]:5"
    assert address(Settings(server=ServerSettings(host="::", port=5))) == "http://[::1]:5"
    assert address(Settings(server=ServerSettings(host="", port=5))) == "http://127.0.0.1:5"
