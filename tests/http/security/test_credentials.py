"""What headers offer as a key."""

import base64

import pytest

from mflux_api.http.security.credentials import MAX_OFFERS, Offers, read_offers


def basic(text: bytes) -> str:
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    "value", ["", " ", "Basic", "Basic ", basic(b""), basic(b":"), "Bearer", "Bearer  ", "Digest a=b"]
)
def test_header_without_a_secret_offers_nothing(value: str) -> None:
    assert not read_offers(["", " "], [value])


@pytest.mark.parametrize("value", ["Basic !", "Basic \xe9\xff", "Basic YQ", "Basic a\x00b"])
def test_basic_header_that_cannot_be_read_offers_no_key_but_something(value: str) -> None:
    assert read_offers([], [value]) == Offers(malformed=True)


def test_program_and_browser_are_told_apart() -> None:
    offers = read_offers(["first"], ["bearer  second ", basic(b"user:third"), basic(b"fourth")])
    assert offers == Offers(by_program=(b"first", b"second"), by_browser=(b"user", b"third", b"user:third", b"fourth"))


def test_bytes_come_as_they_were_sent() -> None:
    sent = "ключ".encode()
    assert read_offers([sent.decode("latin-1")], [basic(sent + b"\0:")]).by_program == (sent,)
    assert (sent + b"\0") in read_offers([], [basic(sent + b"\0:")]).by_browser


def test_no_more_than_some_secrets_are_looked_at() -> None:
    assert len(read_offers([str(number) for number in range(100)], []).by_program) == MAX_OFFERS


def test_secrets_are_in_no_repr() -> None:
    assert "secret" not in repr(read_offers(["secret"], [basic(b"secret")]))
