"""What a stranger's webhook may reach: the table of addresses, and every way to write one."""

from __future__ import annotations

import ipaddress

import pytest

from mflux_api.actors.webhooks.public_addresses import is_public
from mflux_api.actors.webhooks.target import Target, read_target
from mflux_api.errors import InvalidParameter

PUBLIC = """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
    169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
    223.255.255.255 2606:4700:4700::1111 2a00:1450:4001:81b::200e 2001:4860:4860::8888 64:ff9b::808:808
    ::ffff:8.8.8.8 2002:808:808::1 2606:4700::5efe:808:808
"""
NOT_PUBLIC = """
    0.0.0.0 0.255.255.255 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.255
    168.63.129.16 169.254.169.254 169.254.0.1 172.16.0.1 172.31.255.255 192.0.0.170 192.0.0.192 192.0.2.1 192.88.99.1
    192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
    255.255.255.255
    :: ::1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1
    64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::808:808 100::1 2001::1 2001:0:4136:e378::1 2001:10::1 2001:20::1
    2001:db8::1 2002:7f00:1::1 2002:a9fe:a9fe::1 2002:c0a8:1::1 3fff::1 3ffe::1 5f00::1 fc00::1 fd00:ec2::254
    fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 2606:4700::5efe:7f00:1 2606:4700::200:5efe:a00:1
    2606:4700::1%eth0
"""


@pytest.mark.parametrize("text", PUBLIC.split())
def test_public_addresses_may_be_reached(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC.split())
def test_no_other_address_may_be_reached(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]", "10.1.2.3", "0.0.0.0"),
        *("localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1."),
    ],
)
def test_address_that_is_not_public_is_refused_at_once_unless_it_is_allowed(host: str) -> None:
    url = f"http://{host}/hook"
    with pytest.raises(InvalidParameter, match="allow_private_addresses"):
        read_target(url, allow_private=False)
    assert read_target(url, allow_private=True).path == "/hook"


SPELLINGS = """
    2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 127.1 127.0.1 0 0x 0X7F.1 017700000001 1.2.3 1.2.3.4.5 256.1.1.1
    example.1 example.0x1 01.02.03.04
"""


@pytest.mark.parametrize("host", SPELLINGS.split())
@pytest.mark.parametrize("allow_private", [True, False])
def test_unusual_spellings_of_addresses_are_refused(host: str, allow_private: bool) -> None:
    with pytest.raises(InvalidParameter, match="usual form"):
        read_target(f"http://{host}/", allow_private=allow_private)


URLS = [
    "",
    "example.com",
    "//example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "https://",
    "https:///path",
    "https://:443/",
    "https://user@example.com/",
    "https://user:hunter2@example.com/",
    "https://@example.com/",
    "https://example.com:0/",
    "https://example.com:65536/",
    "https://example.com:x/",
    "https://exa mple.com/",
    "https://example.com/\r\nHost: internal",
    "https://example.com/\t",
    "https://exämple.com/",
    "https://example.com/ä",
    "https://example.com\\@internal/",
    "https://[::1",
    "https://[1.2.3.4]/",
    "https://a..b/",
    "https://.example.com/",
    "https://" + "a" * 64 + ".com/",
    "https://" + "a." * 130 + "com/",
    "https://exam%70le.com/",
]


@pytest.mark.parametrize("url", URLS)
def test_what_is_not_a_plain_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        read_target(url, allow_private=True)
    assert refused.value.details["field"] == "webhook"
    assert "hunter2" not in str(refused.value.details) + refused.value.message


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://Example.com", Target(tls=True, host="example.com", port=443, path="/"), "example.com"),
        (
            "http://a-b.example:8080/x?y=1#z",
            Target(tls=False, host="a-b.example", port=8080, path="/x?y=1"),
            "a-b.example:8080",
        ),
        ("http://[2606:4700::1]:80/", Target(tls=False, host="2606:4700::1", port=80, path="/"), "[2606:4700::1]"),
        ("https://1.1.1.1:80/%20", Target(tls=True, host="1.1.1.1", port=80, path="/%20"), "1.1.1.1:80"),
        (
            "https://xn--exmple-cua.com/?q",
            Target(tls=True, host="xn--exmple-cua.com", port=443, path="/?q"),
            "xn--exmple-cua.com",
        ),
        ("http://10.example.com./", Target(tls=False, host="10.example.com", port=80, path="/"), "10.example.com"),
    ],
)
def test_url_becomes_what_is_connected_to_and_asked(url: str, target: Target, authority: str) -> None:
    found = read_target(url, allow_private=False)
    assert found == target
    assert found.authority == authority
