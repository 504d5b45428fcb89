"""What a server says at its start of who can call it: never more, and never less, than is true."""

import logging

import attrs
import pytest

from mflux_api.cli.audience import describe_audience
from mflux_api.config import SecuritySettings, ServerSettings, Settings

OPEN = (logging.WARNING, "who can call: every machine that reaches this one on port 7861 (no API key is set;")
LOCAL = (logging.INFO, "who can call: this machine's programs only")


def lines(
    *,
    host: str = "0.0.0.0",
    origins: tuple[str, ...] = ("*",),
    keys: int = 0,
    api_keys: tuple[str, ...] = (),
    allowed_hosts: tuple[str, ...] = (),
) -> list[tuple[int, str]]:
    server = attrs.evolve(ServerSettings(), host=host, cors_origins=origins)
    settings = Settings(server=server, security=SecuritySettings(api_keys=api_keys, allowed_hosts=allowed_hosts))
    return [(line.level, line.text) for line in describe_audience(settings, port=7861, keys=keys)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.168.1.5", "gpu.example.com"])
def test_open_server_on_the_network_warns_and_says_what_to_set(host: str) -> None:
    network, pages = lines(host=host)
    assert network[0] == OPEN[0]
    assert network[1].startswith(OPEN[1])
    assert all(advice in network[1] for advice in ("security.api_keys", "--host 127.0.0.1"))
    assert "any website that is open in a browser on a machine that reaches it may generate and read (" in pages[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_server_of_this_machine_says_so_and_that_pages_reach_it_all_the_same(host: str) -> None:
    network, pages = lines(host=host)
    assert network == LOCAL
    assert "any website that is open in a browser on this machine may generate and read (" in pages[1]


def test_server_with_keys_does_not_warn() -> None:
    found = lines(keys=3)
    assert [level for level, _ in found] == [logging.INFO] * 2
    assert all("API key" in text for _, text in found)
    assert "3 API key(s)" in found[0][1]


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        ((), "none but this server's own ("),
        (("null",), "any website that is open in a browser on a machine that reaches it may generate and read ("),
        (("http://a.example",), "pages of 1 origin(s) may generate, read and manage, and no others ("),
        (("*", "http://a.example"), "may generate and read, and pages of 1 origin(s) may also manage ("),
    ],
)
def test_listed_pages_are_told_apart_from_all(origins: tuple[str, ...], expected: str) -> None:
    assert expected in lines(origins=origins)[1][1]


def test_listed_origin_that_no_page_has_is_not_counted_and_is_a_warning() -> None:
    _, pages, warning = lines(origins=("tool.example", "https://tool.example/app", "https://*.tool.example"))
    assert "none but this server's own (" in pages[1]
    assert warning[0] == logging.WARNING
    assert "3 entry(ies) that no page has, such as 'https://*.tool.example'" in warning[1]


@pytest.mark.parametrize("every", ["*", " * ", "https://*"])
def test_server_that_answers_to_every_host_name_without_a_key_warns_of_dns_rebinding(every: str) -> None:
    level, text = lines(host="127.0.0.1", allowed_hosts=(every,))[-1]
    assert level == logging.WARNING
    assert all(word in text for word in ("security.allowed_hosts", "DNS rebinding"))
    assert lines(host="127.0.0.1", allowed_hosts=(".example.com",)) == lines(host="127.0.0.1")
    assert "DNS rebinding" not in str(lines(allowed_hosts=("*",), keys=1))


def test_short_key_is_a_warning_that_names_the_setting_and_not_the_key() -> None:
    level, text = lines(api_keys=("fifteen letters", "sixteen  letters"), keys=2)[-1]
    assert level == logging.WARNING
    assert "1 API key(s) of security.api_keys or MFLUX_API_KEYS have less than 16 characters" in text
    assert "letters" not in text
    assert len(lines(api_keys=("sixteen  letters",), keys=1)) == 2
