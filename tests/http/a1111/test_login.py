"""``/login``: what Gradio's clients send before all else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.config import SecuritySettings
from mflux_api.http.a1111.login import MOST_FORM_BYTES
from mflux_api.http.security.wrong_keys import WrongKeys
from tests.support.harness import settings
from tests.support.scripted_api import scripted_api

pytestmark = pytest.mark.slow

SECRET = "the key+of a bot & more"
LOGIN = "/login"
SAMPLERS = "/sdapi/v1/samplers"
FIELDS = ({"username": "bot", "password": SECRET}, {"username": SECRET, "password": ""})
RIGHT: tuple[dict[str, Any], ...] = (
    *({"data": each} for each in FIELDS),
    *({"json": each} for each in FIELDS),
    {"files": {"password": (None, SECRET)}},
    {"headers": {"Authorization": f"Bearer {SECRET}"}},
)
NONE: tuple[dict[str, Any], ...] = (
    {},
    {"headers": {"Authorization": "Basic Og=="}},
    {"data": {"username": "", "password": ""}},
)
WRONG: tuple[dict[str, Any], ...] = (
    {"data": {"username": "bot", "password": "guessed"}},
    {"headers": {"Authorization": "Bearer guessed"}},
)


async def test_login_without_keys_succeeds_whatever_is_sent(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        for sent in (*NONE, *WRONG):
            answer = await api.http.post(LOGIN, **sent)
            assert (answer.status_code, answer.json()) == (200, {"success": True})
            assert "set-cookie" not in answer.headers
        for data in (b"password=%ff", b"&".join([b"a=1"] * 17), b"password=" + b"a" * MOST_FORM_BYTES):
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            refused = await api.http.post(LOGIN, content=data, headers=form)
            assert (refused.status_code, refused.json()["details"]["field"]) == (400, "body")
        page = await api.http.post(LOGIN, headers={"Origin": "http://evil.example"})
        assert page.status_code == 403


async def test_login_with_a_key_opens_a_session_and_one_without_opens_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = list[str]()

    async def note(_: WrongKeys, address: str) -> None:
        wrong.append(address)

    monkeypatch.setattr(WrongKeys, "note", note)
    path = tmp_path / "keys.toml"
    append(path, new_entry("bot", SECRET, [Scope.GENERATE], None))
    changed = attrs.evolve(settings(tmp_path), security=SecuritySettings(keys_file=path))
    async with scripted_api(tmp_path, changed=changed) as api:
        for sent in RIGHT:
            wrong.clear()
            answer = await api.http.post(LOGIN, **sent)
            assert (answer.status_code, answer.json()) == (200, {"success": True})
            cookie = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
            api.http.cookies.clear()
            assert (await api.http.get(SAMPLERS, headers=cookie)).status_code == 200
            assert not wrong
        for sent, counted in (*((each, 0) for each in NONE), *((each, 1) for each in WRONG)):
            wrong.clear()
            refused = await api.http.post(LOGIN, **sent)
            assert (refused.status_code, refused.json()["code"], len(wrong)) == (401, "UNAUTHORIZED", counted)
            assert "set-cookie" not in refused.headers
            assert SECRET not in refused.text
