"""Sessions, tickets and signed paths: what a browser has in place of a key, and how little it opens."""

from __future__ import annotations

import logging
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.config import SecuritySettings, ServerSettings
from mflux_api.http.openapi import OPERATIONS
from mflux_api.storage.ended_sessions import NAME as ENDED
from mflux_api.storage.secret_file import NAME, read_or_make
from tests.support.harness import ended, settings
from tests.support.scripted_api import Api, scripted_api

pytestmark = pytest.mark.slow

SECRET = "the key of a page of this server"
OTHER = "the key of someone else's program"
SESSION = "/api/v1/session"
JOB = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}


@asynccontextmanager
async def api_with_keys(folder: Path, **server: Any) -> AsyncIterator[Api]:
    path = folder / "keys.toml"
    if not path.exists():
        append(path, new_entry("page", SECRET, [Scope.GENERATE], None))
        append(path, new_entry("other", OTHER, [Scope.MANAGE], None))
    changed = attrs.evolve(settings(folder), security=SecuritySettings(keys_file=path), server=ServerSettings(**server))
    async with scripted_api(folder, changed=changed) as api:
        yield api


def bearer(secret: str = SECRET) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def session_of(api: Api) -> dict[str, str]:
    """The headers of a page that has opened a session."""
    answer = await api.http.post(SESSION, json={"key": SECRET}, headers=own(api))
    assert answer.status_code == 200
    api.http.cookies.clear()
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def own(api: Api) -> dict[str, str]:
    return {"Origin": f"http://127.0.0.1:{api.port}"}


async def new_job(api: Api, secret: str = SECRET) -> str:
    job_id: str = (await api.http.post("/api/v1/generate", json=JOB, headers=bearer(secret))).json()["job_id"]
    await ended(api.service, job_id)
    return job_id


async def test_session_is_a_cookie_that_no_script_and_no_other_site_can_use(tmp_path: Path) -> None:
    async with api_with_keys(tmp_path) as api:
        answer = await api.http.post(SESSION, json={"key": SECRET})
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        assert SECRET not in cookie
        assert answer.json()["name"] == "page"
        assert answer.json()["scopes"] == ["generate", "read"]
        assert answer.json()["expires_at"].endswith("Z")
    async with api_with_keys(tmp_path, trusted_proxies=("127.0.0.1",)) as api:
        told = {"X-Forwarded-Proto": "https"}
        assert "; Secure" in (await api.http.post(SESSION, json={"key": SECRET}, headers=told)).headers["set-cookie"]


async def test_session_counts_for_pages_of_this_server_alone(tmp_path: Path) -> None:
    async with api_with_keys(tmp_path) as api:
        page = await session_of(api)
        for headers, reading, generating in (
            (own(api), 200, 200),
            ({"Sec-Fetch-Site": "same-origin"}, 200, 200),
            # A program with a jar of cookies, and an address that is typed in.
            ({}, 200, 200),
            ({"Sec-Fetch-Site": "none"}, 200, 200),
            # Cookies do not look at ports: a service beside this one is another origin, and its pages have the cookie.
            ({"Origin": "http://127.0.0.1:1"}, 403, 403),
            ({"Origin": "http://evil.example"}, 403, 403),
            ({"Origin": "null"}, 403, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403, 403),
        ):
            read = await api.http.get("/api/v1/jobs", headers=page | headers)
            assert read.status_code == reading, headers
            made = await api.http.post("/api/v1/generate", json=JOB, headers=page | headers)
            assert made.status_code == generating, headers
        # The answer does not tell a right cookie from a wrong one.
        wrong = {"Cookie": page["Cookie"].partition("=")[0] + "=wrong", "Origin": "http://evil.example"}
        assert (await api.http.get("/api/v1/jobs", headers=wrong)).json()["code"] == "ORIGIN_NOT_ALLOWED"
        # A key in a header is the page's own, whatever else the browser adds.
        with_key = page | bearer() | {"Origin": "http://evil.example"}
        assert (await api.http.post("/api/v1/generate", json=JOB, headers=with_key)).status_code == 200
        for headers, ends in ((page, True), (bearer(), False), (page | bearer(), False)):
            told = (await api.http.get(SESSION, headers=headers)).json()
            assert (told["name"], told["expires_at"] is not None) == ("page", ends)
        # It has what its key has.
        forbidden = await api.http.post("/sdapi/v1/refresh-loras", headers=page | own(api))
        assert forbidden.status_code == 403


async def test_session_ends_with_its_key_and_outlives_a_restart(tmp_path: Path) -> None:
    async with api_with_keys(tmp_path) as api:
        page = await session_of(api)
    path = tmp_path / "output" / NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with api_with_keys(tmp_path) as api:
        assert (await api.http.get("/api/v1/jobs", headers=page)).status_code == 200
        (tmp_path / "keys.toml").unlink()
        append(tmp_path / "keys.toml", new_entry("other", OTHER, [Scope.MANAGE], None))
        await api.service.reload_keys()
        assert (await api.http.get("/api/v1/jobs", headers=page)).status_code == 401


async def test_session_that_was_ended_counts_no_more(tmp_path: Path) -> None:
    async with api_with_keys(tmp_path) as api:
        page, another = await session_of(api), await session_of(api)
        answer = await api.http.delete(SESSION, headers=page | own(api))
        name = page["Cookie"].partition("=")[0]
        assert answer.headers["set-cookie"].startswith(f"{name}=;")
        # Also where it was copied to before; another session of the same key goes on.
        assert (await api.http.get("/api/v1/jobs", headers=page)).status_code == 401
        assert (await api.http.get("/api/v1/jobs", headers=another)).status_code == 200
    assert stat.S_IMODE((tmp_path / "output" / ENDED).stat().st_mode) == 0o600
    async with api_with_keys(tmp_path) as api:
        assert (await api.http.get("/api/v1/jobs", headers=page)).status_code == 401
        assert (await api.http.get("/api/v1/jobs", headers=another)).status_code == 200
        for method in ("POST", "DELETE"):
            foreign = await api.http.request(method, SESSION, headers={"Origin": "http://evil.example"})
            assert (foreign.status_code, foreign.json()["code"]) == (403, "ORIGIN_NOT_ALLOWED")


@pytest.mark.parametrize("body", [{"key": "no such key"}, {"key": ""}, {}, None])
async def test_wrong_key_opens_no_session(tmp_path: Path, body: Mapping[str, str] | None) -> None:
    async with api_with_keys(tmp_path) as api:
        answer = await api.http.post(SESSION, json=body) if body is not None else await api.http.post(SESSION)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        with_header = await api.http.post(SESSION, headers=bearer())
        assert with_header.status_code == 200


async def test_wrong_keys_of_sessions_are_slowed_like_all_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with api_with_keys(tmp_path) as api:
        await api.http.post(SESSION, json={"key": "no such key"})
    assert "wrong" in caplog.text
    assert "no such key" not in caplog.text


async def test_service_without_keys_needs_no_session_and_says_so(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        answer = await api.http.post(SESSION, json={"key": "any"})
        assert answer.status_code == 200
        assert "set-cookie" not in answer.headers
        assert answer.json() == {
            "name": None,
            "scopes": ["generate", "manage", "prioritize", "read"],
            "expires_at": None,
        }
        job = await api.finished()
        ticket = (await api.http.post(f"/api/v1/jobs/{job.id}/ticket")).json()
        assert ticket["ticket"] is None
        assert (await api.http.get(ticket["images"][0])).status_code == 200


async def test_ticket_opens_its_job_and_nothing_else(tmp_path: Path) -> None:
    async with api_with_keys(tmp_path) as api:
        job, other = await new_job(api), await new_job(api)
        ticket = (await api.http.post(f"/api/v1/jobs/{job}/ticket", headers=bearer())).json()
        query = f"?ticket={ticket['ticket']}"
        assert ticket["stream"] == f"/api/v1/jobs/{job}/stream{query}"
        for path in (ticket["stream"], *ticket["images"], f"/api/v1/jobs/{job}{query}"):
            assert (await api.http.get(path)).status_code == 200, path
        assert (await api.http.get(f"/api/v1/jobs/{job}/images/0{query}&format=webp")).status_code == 200
        # What let it in is not told as a parameter that did nothing; what did nothing is.
        assert (await api.http.get(f"/api/v1/jobs/{job}{query}")).json()["warnings"] == []
        assert len((await api.http.get(f"/api/v1/jobs/{job}{query}&tickt=1")).json()["warnings"]) == 1
        for operation in OPERATIONS:
            path = operation.path.format(job_id=other, model_id="demo", name="x", index=0)
            if operation.scope is not None:
                answer = await api.http.request(operation.method, path + query)
                assert answer.status_code == 401, operation.path
        assert (await api.http.delete(f"/api/v1/jobs/{job}{query}")).status_code == 401
        assert (await api.http.post(f"/api/v1/jobs/{job}/ticket{query}")).status_code == 401


async def test_signed_path_opens_it_as_it_is_and_nothing_else(tmp_path: Path) -> None:
    asked = {"prompt": "a lake", "model": "demo", "size": "64x64", "response_format": "url", "output_format": "webp"}
    async with api_with_keys(tmp_path) as api:
        answer = await api.http.post("/v1/images/generations", json=asked, headers=bearer())
        path, _, query = answer.json()["data"][0]["url"].removeprefix(f"http://127.0.0.1:{api.port}").partition("?")
        other = await new_job(api)
        signature = dict(pair.split("=") for pair in query.split("&"))["signature"]
        for method in ("GET", "HEAD"):
            read = await api.http.request(method, f"{path}?{query}")
            assert (read.status_code, read.headers["content-type"]) == (200, "image/webp")
        turned = "&".join(reversed(query.split("&")))
        assert (await api.http.get(f"{path}?{turned}")).status_code == 200
        for changed in (
            f"{path}?signature={signature}",
            f"{path}?{query.replace('webp', 'png')}",
            f"{path}?{query}&size=64",
            f"{path}?format=png&{query}",
            f"{path}?{query[:-1]}",
            f"{path}?{query.replace('signature', 'ticket')}",
            f"{path.removesuffix('0')}1?{query}",
            f"/api/v1/jobs/{other}/images/0?{query}",
            f"{path.partition('/images')[0]}?{query}",
        ):
            refused = await api.http.get(changed)
            assert refused.status_code == 401, changed
            assert signature not in refused.text
        assert (await api.http.delete(f"{path.partition('/images')[0]}?{query}")).status_code == 401
    async with api_with_keys(tmp_path) as api:
        # It outlives a restart; here its job does not.
        assert (await api.http.get(f"{path}?{query}")).json()["code"] == "JOB_NOT_FOUND"
        (tmp_path / "keys.toml").unlink()
        append(tmp_path / "keys.toml", new_entry("other", OTHER, [Scope.MANAGE], None))
        await api.service.reload_keys()
        assert (await api.http.get(f"{path}?{query}")).status_code == 401


async def test_ticket_of_anothers_job_is_not_to_be_had(tmp_path: Path) -> None:
    async with api_with_keys(tmp_path) as api:
        job = await new_job(api, OTHER)
        answer = await api.http.post(f"/api/v1/jobs/{job}/ticket", headers=bearer())
        assert (answer.status_code, answer.json()["code"]) == (404, "JOB_NOT_FOUND")


async def test_what_is_wrong_with_a_link_is_said_without_it(tmp_path: Path) -> None:
    async with api_with_keys(tmp_path) as api:
        job = await new_job(api)
        answer = await api.http.get(f"/api/v1/jobs/{job}?ticket=1.2.aVerySecretToken")
        assert answer.status_code == 401
        assert "expired" in answer.json()["error"]
        assert "Secret" not in answer.text


def test_secret_is_made_once_and_a_folder_that_keeps_none_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = read_or_make(tmp_path, b"a" * 32)
    assert read_or_make(tmp_path, b"b" * 32) == first == b"a" * 32
    (tmp_path / NAME).write_bytes(b"cut")
    assert read_or_make(tmp_path, b"c" * 32) == b"c" * 32 == read_or_make(tmp_path, b"d" * 32)
    (tmp_path / "file").touch()
    assert read_or_make(tmp_path / "file", b"e" * 32) == b"e" * 32
    assert "signed paths end with this process" in caplog.text
