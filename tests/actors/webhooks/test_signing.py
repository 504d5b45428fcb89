"""Signatures and their secret; the vector is that of the specification's own libraries."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from mflux_api.actors.webhooks.signing import Signer, read_signer
from mflux_api.config import WebhookSettings
from mflux_api.errors import ConfigError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def signer(**settings: object) -> Signer | None:
    return read_signer(WebhookSettings(enabled=True, **settings))  # type: ignore[arg-type]


def test_signature_is_that_of_standard_webhooks() -> None:
    made = signer(secret=SECRET)
    assert made is not None
    assert made.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}') == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_message_is_signed_with_each_secret_while_receivers_go_over_to_a_new_one() -> None:
    other = "whsec_" + base64.b64encode(bytes(32)).decode()
    signed = []
    for secret in (SECRET, other, f"{SECRET}\n{other}"):
        made = signer(secret=secret)
        assert made is not None
        signed.append(made.headers("msg_1", 1, b"x")["webhook-signature"])
    assert signed[2] == f"{signed[0]} {signed[1]}"
    assert signed[0] != signed[1]
    with pytest.raises(ConfigError, match=r"has 5 secrets, expected 1 to 4"):
        signer(secret=" ".join([SECRET] * 5))


def test_secret_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    assert signer(secret_file=path) == signer(secret=SECRET)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"640.*chmod 600"):
        signer(secret_file=path)


def test_nothing_is_read_where_webhooks_are_off(tmp_path: Path) -> None:
    assert read_signer(WebhookSettings(secret_file=tmp_path / "missing")) is None


@pytest.mark.parametrize(
    "secret",
    [
        "hunter2",
        SECRET.removeprefix("whsec_"),
        "whsec_",
        "whsec_not base64!",
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
    ],
)
def test_secret_that_cannot_be_one_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ConfigError, match=r"webhooks\.secret: .*24 to 64 random bytes") as refused:
        signer(secret=secret)
    assert "hunter2" not in str(refused.value)


def test_webhooks_without_a_secret_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"webhooks\.secret or webhooks\.secret_file"):
        signer()
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match=r"webhooks\.secret_file") as refused:
            signer(secret_file=path)
        assert str(tmp_path.parent) not in str(refused.value)


def test_secret_is_in_no_text() -> None:
    settings = WebhookSettings(enabled=True, secret=SECRET)
    assert SECRET not in repr(settings)
    assert "MfKQ" not in repr(read_signer(settings))
