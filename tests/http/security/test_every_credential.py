"""Every route with every credential: what each opens, in one table, so that a new route is in it by itself."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.config import SecuritySettings
from mflux_api.http.openapi import OPERATIONS
from mflux_api.http.operations import Operation
from tests.support.harness import ended, settings
from tests.support.scripted_api import Api, answer_to, scripted_api

pytestmark = pytest.mark.slow

SECRET = "the key that may manage all of it"
SESSION = "/api/v1/session"
JOB = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}
OF_THE_JOB = {"/api/v1/jobs/{job_id}", "/api/v1/jobs/{job_id}/stream", "/api/v1/jobs/{job_id}/images/{index}"}
LET_IN, NO_KEY, FOREIGN = None, 401, 403
PROBES = {("get", "/api/v1/health"), ("get", "/livez"), ("get", "/readyz"), ("head", "/")}
PAGE = {("get", "/"), ("get", "/page/{name}"), ("get", "/favicon.ico")}
OPEN = PROBES | PAGE | {("post", SESSION), ("delete", SESSION), ("post", "/login")}
"""The routes that need no key: whether the service is there, the page's own files, and how to come in and out."""


def safe(operation: Operation) -> bool:
    return operation.method in ("get", "head")


def test_routes_that_need_no_key_are_these() -> None:
    assert {(each.method, each.path) for each in OPERATIONS if each.scope is None} == OPEN


async def refusal(api: Api, operation: Operation, job_id: str, headers: dict[str, str], query: str) -> int | None:
    """The status where the guard refuses, ``None`` where the route itself answers: no route takes this body."""
    path = operation.path.format(job_id=job_id, model_id="no-model", name="no-lora", index=0)
    answer = await answer_to(api, operation.method, path + query, headers)
    return answer.status_code if answer.status_code in (401, 403) else LET_IN


async def test_every_route_is_opened_by_what_it_says_and_by_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    append(path, new_entry("all", SECRET, [Scope.MANAGE], None))
    changed = attrs.evolve(settings(tmp_path), security=SecuritySettings(keys_file=path))
    async with scripted_api(tmp_path, changed=changed) as api:
        header = {"Authorization": f"Bearer {SECRET}"}
        job: str = (await api.http.post("/api/v1/generate", json=JOB, headers=header)).json()["job_id"]
        other: str = (await api.http.post("/api/v1/generate", json=JOB, headers=header)).json()["job_id"]
        await ended(api.service, job)
        await ended(api.service, other)
        asked = {"prompt": "a lake", "model": "demo", "size": "64x64", "response_format": "url"}
        made = await api.http.post("/v1/images/generations", json=asked, headers=header)
        signed = urlsplit(made.json()["data"][0]["url"])
        ticket = (await api.http.post(f"/api/v1/jobs/{job}/ticket", headers=header)).json()["ticket"]
        basic = {"Authorization": "Basic " + base64.b64encode(f"u:{SECRET}".encode()).decode()}
        own, evil = {"Origin": f"http://127.0.0.1:{api.port}"}, {"Origin": "http://evil.example"}
        sibling = {"Sec-Fetch-Site": "same-site"}
        for operation in OPERATIONS:
            if (operation.method, operation.path) in OPEN:
                continue
            # A new one each time: one of the routes ends it.
            opened = await api.http.post(SESSION, json={"key": SECRET})
            api.http.cookies.clear()
            cookie = {"Cookie": opened.headers["set-cookie"].partition(";")[0]}
            by_ticket = LET_IN if operation.path in OF_THE_JOB and safe(operation) else NO_KEY
            for name, headers, query, expected in (
                ("nothing", {}, "", NO_KEY),
                ("a wrong cookie", {"Cookie": cookie["Cookie"] + "x", **own}, "", NO_KEY),
                ("a cookie from its own page", {**cookie, **own}, "", LET_IN),
                ("a cookie that no page says it sends", cookie, "", LET_IN),
                ("a cookie from a foreign page", {**cookie, **evil}, "", FOREIGN),
                ("a cookie from a page of another port", {**cookie, **sibling}, "", FOREIGN),
                ("Basic from its own page", {**basic, **own}, "", LET_IN),
                ("Basic from a foreign page", {**basic, **evil}, "", FOREIGN),
                ("a key from a foreign page", {**header, **evil}, "", LET_IN),
                ("a ticket", {}, f"?ticket={ticket}", by_ticket),
                ("a ticket that was changed", {}, f"?ticket={ticket[:-1]}{'A' if ticket[-1] != 'A' else 'B'}", NO_KEY),
                ("a ticket as a signature", {}, f"?signature={ticket}", NO_KEY),
                ("a ticket as a cookie", {"Cookie": f"{cookie['Cookie'].partition('=')[0]}={ticket}"}, "", NO_KEY),
                ("a cookie as a ticket", {}, f"?ticket={cookie['Cookie'].partition('=')[2]}", NO_KEY),
            ):
                got = await refusal(api, operation, job, headers, query)
                assert got == expected, (operation.method, operation.path, name)
            by_signature = LET_IN if operation.path.endswith("/images/{index}") else NO_KEY
            job_of_path = signed.path.split("/")[4]
            assert await refusal(api, operation, job_of_path, {}, f"?{signed.query}") == by_signature, operation.path
            assert await refusal(api, operation, other, {}, f"?ticket={ticket}") == NO_KEY, operation.path
