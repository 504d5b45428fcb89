"""Variables that keep a connection from being made are named with what to do, before any library fails over them."""

import pytest

from mflux_api.system.network_variables import drop_unreadable, find_problem, is_loopback, prepare, proxy_for


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("socks5://user:secret@host:1080", "names a SOCKS proxy"),
        ("socks5h://host:1080", "names a SOCKS proxy"),
        ("socks4://host", "names a SOCKS proxy"),
        ("SOCKS://host", "names a SOCKS proxy"),
        ("ftp://host", "is not the address of a proxy"),
        ("http://host:port", "is not the address of a proxy"),
        ("http://", "is not the address of a proxy"),
        ("http://[::1", "is not the address of a proxy"),
        ("http://host:3128", None),
        ("https://user:secret@host", None),
        ("host:3128", None),
        ("http://[::1]:3128", None),
        ("", None),
    ],
)
def test_proxy_that_cannot_be_used_is_named_without_its_value(name: str, value: str, says: str | None) -> None:
    problem = find_problem({name: value})
    if says is None:
        assert problem is None
        return
    assert str(problem).startswith(f"{name} {says}")
    assert "unset it, or" in str(problem)
    assert "secret" not in str(problem)


def test_certificates_and_an_address_of_the_hub_that_are_not_there_are_named() -> None:
    assert str(find_problem({"SSL_CERT_FILE": "/nonexistent.pem"})).startswith("SSL_CERT_FILE names a file that is not")
    assert str(find_problem({"HF_ENDPOINT": "hub.example.com"})).startswith("HF_ENDPOINT is not the address")
    assert find_problem({"HF_ENDPOINT": "http://127.0.0.1:8080/", "SSL_CERT_FILE": ""}) is None


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
@pytest.mark.parametrize("value", ["1.5", "abc", "", "-1", "10s"])
def test_number_that_huggingface_hub_cannot_be_imported_over_is_named_and_kept_from_engines(
    name: str, value: str
) -> None:
    assert str(find_problem({name: value})).startswith(f"{name} is not a whole number of seconds: unset it")
    environ = {name: value, "PATH": "x"}
    drop_unreadable(environ)
    assert environ == {"PATH": "x"}
    assert find_problem({name: "10"}) is None
    drop_unreadable(kept := {name: "10"})
    assert kept == {name: "10"}


ENTRIES = {
    "[::1]": "::1",
    "[::1]:80": "::1",
    "::1": "::1",
    "fe80::1%eth0": "fe80::1%eth0",
    "fe80::/10": "",
    "[::1": "::1",
    "host:80": "host:80",
    "host:name": "",
    "*.example.com": ".example.com",
    ".example.com": ".example.com",
    "10.0.0.0/8": "10.0.0.0/8",
    "*": "*",
    "bücher.de": "xn--bcher-kva.de",
    "a b": "",
    "http://[::1": "",
    " spaced ": "spaced",
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_exception_of_proxies_keeps_a_connection_from_being_made(
    entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    environ = {"no_proxy": f"before,{entry},after", "HTTP_PROXY": "http://127.0.0.1:9"}
    prepare("https://huggingface.co", environ)
    wanted = ["before", *filter(None, [ENTRIES[entry]]), "after", "localhost", "127.0.0.1", "::1"]
    assert environ["NO_PROXY"] == environ["no_proxy"] == ",".join(dict.fromkeys(wanted))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    httpx.Client().close()


def test_loopback_goes_through_no_proxy() -> None:
    for url in (
        "http://127.0.0.1:7861",
        "http://127.3.2.1",
        "http://[::1]:80/x",
        "http://localhost",
        "http://a.localhost.",
    ):
        environ = {"ALL_PROXY": "socks5://host:1", "http_proxy": "http://host:1", "PATH": "/bin"}
        assert is_loopback(url)
        assert proxy_for(url, environ) is None
        prepare(url, environ)
        assert environ == {"PATH": "/bin"}
    assert not is_loopback("https://huggingface.co")
    assert not is_loopback("http://[::1")


def test_proxies_are_not_looked_at_where_every_host_is_an_exception() -> None:
    environ = {"ALL_PROXY": "socks5://host", "no_proxy": "a, *"}
    assert find_problem(environ) is None
    assert proxy_for("https://huggingface.co", environ) is None


def test_variable_of_the_proxy_that_is_used_is_known() -> None:
    environ = {"ALL_PROXY": "http://a", "https_proxy": "http://b"}
    assert proxy_for("https://huggingface.co", environ) == "https_proxy"
    assert proxy_for("http://huggingface.co", environ) == "ALL_PROXY"
    assert proxy_for("https://huggingface.co", {}) is None


@pytest.mark.parametrize(
    "exceptions", ["huggingface.co", ".co", "*.co", "a, huggingface.co:443", "[::1],huggingface.co"]
)
def test_proxy_is_not_named_where_the_host_is_an_exception(exceptions: str) -> None:
    environ = {"ALL_PROXY": "http://a", "NO_PROXY": exceptions}
    assert proxy_for("https://huggingface.co", environ) is None
    assert proxy_for("https://hub.example", environ) == "ALL_PROXY"
