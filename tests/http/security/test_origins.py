"""Which page sends a request: this server's own, or a foreign one."""

import pytest

from mflux_api.http.security.origins import OriginRules, PageHeaders


def foreign(host: str, origin: str | None, fetch_site: str | None = None) -> bool:
    return PageHeaders(host=host, origin=origin, fetch_site=fetch_site).foreign


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("gpu:7861", "http://gpu:7861"),
        ("gpu", "http://gpu:80"),
        ("gpu", "https://gpu"),
        ("gpu:443", "https://gpu"),
        ("GPU.", "http://gpu"),
        ("[::1]:7861", "http://[::1]:7861"),
    ],
)
def test_own_page_has_the_host_and_port_of_the_request(host: str, origin: str) -> None:
    assert not foreign(host, origin)
    assert not foreign(host, origin, "same-origin")


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://gpu:7861",
        "http://gpu",
        "http://gpu.evil.example:7860",
        "http://gpu:7860@evil.example",
        "http://gpu:7860/",
        "http://evil.example/gpu:7860",
        "file://gpu:7860",
        "gpu:7860",
        "null",
        "",
        "http://",
        "http://gpu:99999",
        "http://[gpu",
    ],
)
def test_every_other_origin_is_foreign(origin: str) -> None:
    assert foreign("gpu:7860", origin)


@pytest.mark.parametrize(
    ("fetch_site", "expected"),
    [(None, False), ("none", False), ("same-origin", False), ("same-site", True), ("Cross-Site", True)],
)
def test_page_that_sends_no_origin_is_told_by_its_site(fetch_site: str | None, expected: bool) -> None:
    assert foreign("gpu", None, fetch_site) is expected


def test_own_host_over_another_scheme_is_foreign_where_the_browser_says_so() -> None:
    assert foreign("gpu", "https://gpu", "cross-site")


def test_origins_are_listed_by_name() -> None:
    rules = OriginRules(("*", "https://Tool.example/", "null"))
    assert rules.every
    assert rules.names("https://tool.example")
    assert not any(map(rules.names, ("http://tool.example", "null", "*", "https://a.tool.example", None)))


@pytest.mark.parametrize(
    ("listed", "sent"),
    [
        ("https://Tool.Example", "https://tool.example"),
        ("https://tool.example/", "https://tool.example"),
        ("https://tool.example:443", "https://tool.example"),
        ("http://tool.example:80/", "http://tool.example"),
        ("http://[FD00::1]:3000", "http://[fd00::1]:3000"),
        ("chrome-extension://abcdef/", "chrome-extension://abcdef"),
    ],
)
def test_listed_origin_is_known_as_browsers_send_it(listed: str, sent: str) -> None:
    rules = OriginRules((listed,))
    assert (rules.names(sent), rules.allows(sent), rules.mistakes, rules.any_page) == (True, True, (), False)


@pytest.mark.parametrize("listed", ["tool.example", "https://tool.example/app", "https://*.tool.example", "", "*.a"])
def test_listed_text_that_is_not_an_origin_lets_no_page_in(listed: str) -> None:
    rules = OriginRules((listed,))
    assert len(rules.mistakes) == 1
    assert not any(rules.allows(origin) or rules.names(origin) for origin in (listed, "https://tool.example", "null"))


def test_null_lets_any_page_generate_and_names_none() -> None:
    rules = OriginRules(("null",))
    assert (rules.allows("null"), rules.names("null"), rules.any_page) == (True, False, True)
    assert not rules.allows(None)
    assert not rules.allows("https://tool.example")
