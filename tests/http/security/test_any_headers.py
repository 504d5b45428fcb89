"""No text in a header makes the checks of a request fail: it is refused or let through."""

from hypothesis import example, given
from hypothesis import strategies as st

from mflux_api.http.security.credentials import read_offers
from mflux_api.http.security.hosts import HostRules, name_in
from mflux_api.http.security.origins import OriginRules, PageHeaders

HEADER = st.text(st.characters(max_codepoint=255), max_size=60)
PIECES = "http:// https:// [ ] ::1 : 80 %25 . .. a localhost 127.0.0.1 @ / ? # \\ xn-- é .local example.com null"
PARTS = st.lists(st.sampled_from([*PIECES.split(" "), " "]), max_size=8).map("".join)


@given(HEADER | PARTS)
@example("[::1%25" + "9" * 1000 + "]")
@example("xn--" + "a" * 1000)
def test_any_host_is_answered_or_not(host: str) -> None:
    rules = HostRules((".example.com", host))
    assert rules.allow("gpu.example.com:80")
    assert isinstance(HostRules(()).allow(host), bool)
    assert name_in(host) == name_in(host).lower()


@given(HEADER | PARTS, PARTS, HEADER)
def test_any_origin_is_foreign_or_not(origin: str, host: str, site: str) -> None:
    assert isinstance(PageHeaders(host=host, origin=origin, fetch_site=site).foreign, bool)
    assert (
        PageHeaders(host=host, origin="http://evil.example", fetch_site=None).foreign or "evil.example" in host.lower()
    )
    assert not OriginRules(("*",)).names(origin)


@given(st.lists(HEADER, max_size=3), st.lists(HEADER | HEADER.map("Basic {}".format), max_size=3))
@example([], ["Basic " + "A" * 10_000, "Basic =", "Basic \xff", "Basic \0", "basic\tYTpi"])
def test_any_credentials_are_read(keys: list[str], authorizations: list[str]) -> None:
    offers = read_offers(keys, authorizations)
    assert b"" not in (*offers.by_program, *offers.by_browser)
