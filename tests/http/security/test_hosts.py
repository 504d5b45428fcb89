"""Which Host headers are answered: a page after DNS rebinding has a public name, and only that tells it."""

from pathlib import Path

import pytest

from mflux_api.http.security.hosts import HostRules, name_in, own_names

PRIVATE = [
    "127.0.0.1",
    "127.0.0.1:7861",
    "192.168.1.20:80",
    "[::1]",
    "[::1]:7861",
    "[fe80::1%25eth0]:7861",
    "[::ffff:10.0.0.1]",
    "localhost",
    "LocalHost:7861",
    "localhost.",
    "gpu",
    "gpu_box-2:7861",
    "evillan",
    "2130706433",
    "mac.local",
    "Mac.Local.:7861",
    "a.localhost",
    "gpu.internal",
    "gpu.home.arpa",
    "gpu.lan",
]
PUBLIC = [
    "evil.example",
    "evil.example:7861",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil-local.example",
    ".local",
    "xn--e1aybc.example",
    "[::1].evil.example",
    "[evil.example]",
    "[v1.a]",
    "::1",
    "127.1",
    "0x7f.0.0.1",
    "127.0.0.1..",
    "a%2eexample",
    "evil.example%.local",
    "",
    ":7861",
    "[]",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_addresses_and_names_that_no_stranger_can_have_are_answered(host: str) -> None:
    assert HostRules(()).allow(host)


@pytest.mark.parametrize("host", PUBLIC)
def test_public_names_are_not_answered(host: str) -> None:
    assert not HostRules(()).allow(host)


@pytest.mark.parametrize(
    ("listed", "host", "allowed"),
    [
        ("gpu.example.com", "GPU.example.com.:443", True),
        ("GPU.Example.com:7861", "gpu.example.com", True),
        ("gpu.example.com.", "gpu.example.com", True),
        ("gpu.example.com", "other.example.com", False),
        ("gpu.example.com", "a.gpu.example.com", False),
        (".example.com", "a.b.example.com", True),
        ("*.example.com", "a.example.com", True),
        (".example.com", "example.com", True),
        (".example.com", "evilexample.com", False),
        (".example.com", ".example.com", False),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("https://gpu.example.com/", "gpu.example.com", True),
        ("https://gpu.example.com:8443", "gpu.example.com:8443", True),
        ("https://", "evil.example", False),
        ("/", "evil.example", False),
        (" ", "evil.example", False),
        ("**", "evil.example", False),
        ("https://*", "evil.example", True),
        ("gpu*.example.com", "gpu*.example.com", False),
        ("*", "evil.example", True),
        ("*", "", True),
    ],
)
def test_listed_names_are_answered(listed: str, host: str, allowed: bool) -> None:
    assert HostRules((listed,)).allow(host) is allowed


def test_machines_own_name_is_answered() -> None:
    name = own_names()[0]
    assert HostRules((), own=own_names()).allow(f"{name.upper()}:7861")
    assert HostRules((), own=("gpu.example.com", "")).allow("gpu.example.com")


def test_other_names_of_the_machine_are_in_its_table_of_hosts(tmp_path: Path) -> None:
    table, own = tmp_path / "hosts", own_names()[0]
    table.write_text(f"# {own} a.example\n127.0.0.1 localhost\n10.0.0.2 gpu.example {own} # b\n0.0.0.0 evil.example\n")
    assert own_names(table) == (own, "gpu.example")
    assert own_names(tmp_path / "none") == (own,)


def test_name_has_no_port_no_brackets_and_no_final_dot() -> None:
    assert [name_in(host) for host in ("A.b.:80", "[::1]:80", "[::1", "a:b:c")] == ["a.b", "::1", "", ""]
