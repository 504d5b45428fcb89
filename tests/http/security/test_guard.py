"""Who may ask for what, over HTTP: pages of other origins, keys and their scopes, what is open."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.config import SecuritySettings, ServerSettings
from mflux_api.http.app import create_app
from mflux_api.http.openapi import OPERATIONS
from mflux_api.http.operations import Operation
from mflux_api.http.security.wrong_keys import WrongKeys
from tests.support.harness import gateway, scripted_service, settings
from tests.support.http_server import connect
from tests.support.scripted_api import Api, answer_to, scripted_api
from tests.support.scripted_engine import Script

pytestmark = pytest.mark.slow

EVIL = {"Origin": "http://evil.example"}
KEYS = {scope: f"the key that may {scope} here" for scope in Scope}
UNKNOWN_JOB = "0123456789ab"


@asynccontextmanager
async def api_with(folder: Path, *, origins: tuple[str, ...] = ("*",), **security: Any) -> AsyncIterator[Api]:
    changed = attrs.evolve(
        settings(folder),
        security=SecuritySettings(**security),
        server=attrs.evolve(ServerSettings(), cors_origins=origins),
    )
    async with scripted_api(folder, changed=changed) as api:
        yield api


def keys_file(folder: Path) -> Path:
    path = folder / "keys.toml"
    for scope, secret in KEYS.items():
        append(path, new_entry(scope, secret, [scope], None))
    return path


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def basic(secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"user:{secret}".encode()).decode()}


async def ask(api: Api, operation: Operation, headers: Mapping[str, str]) -> tuple[int, str | None]:
    """The status and the code of a request whose body no route takes."""
    path = operation.path.format(job_id=UNKNOWN_JOB, model_id="no-model", name="no-lora", index=0)
    answer = await answer_to(api, operation.method, path, headers)
    if answer.status_code < 400 or not answer.content:
        return answer.status_code, None
    body = answer.json()
    if operation.path.startswith("/v1/"):
        code = body["error"]["code"].upper()
        return answer.status_code, "UNAUTHORIZED" if code == "INVALID_API_KEY" else code
    return answer.status_code, body["code"]


MANAGEMENT = [each for each in OPERATIONS if each.scope is Scope.MANAGE or each.path == "/api/v1/jobs/cancel"]
OF_OWN_PAGES = {"/api/v1/session", "/login"}
"""Open to those who have no key yet, and to no page of another origin."""
CANCELS_MANY = "/api/v1/jobs/cancel"
"""Management for pages, though a key cancels its own jobs without the scope."""
FOR_PAGES = [
    each for each in OPERATIONS if each.scope is not Scope.MANAGE and each.path not in OF_OWN_PAGES | {CANCELS_MANY}
]


async def test_management_is_refused_to_every_foreign_page(tmp_path: Path) -> None:
    assert {each.path for each in MANAGEMENT} >= {"/api/v1/loras", "/api/v1/models/{model_id}", "/api/v1/jobs/prune"}
    pages = (EVIL, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"})
    async with api_with(tmp_path) as api:
        for operation in MANAGEMENT:
            for page in pages:
                assert await ask(api, operation, {**page, "Content-Type": "text/plain"}) == (403, "ORIGIN_NOT_ALLOWED")
            for own in ({}, {"Origin": f"http://127.0.0.1:{api.port}"}, {"Sec-Fetch-Site": "same-origin"}):
                assert (await ask(api, operation, own))[0] in (200, 400, 404)


async def test_generating_and_reading_stay_open_to_every_page(tmp_path: Path) -> None:
    async with api_with(tmp_path) as api:
        for operation in FOR_PAGES:
            _, code = await ask(api, operation, {**EVIL, "Sec-Fetch-Site": "cross-site"})
            assert code not in ("ORIGIN_NOT_ALLOWED", "UNAUTHORIZED"), operation
        job = await api.finished()
        assert (await api.http.delete(f"/api/v1/jobs/{job.id}", headers=EVIL)).status_code == 200


async def test_page_that_is_listed_by_name_may_manage(tmp_path: Path) -> None:
    async with api_with(tmp_path, origins=("*", "http://tool.example")) as api:
        answer = await api.http.post("/api/v1/models/demo/unload", headers={"Origin": "http://tool.example"})
        assert answer.status_code == 200
        refused = await api.http.post("/api/v1/models/demo/unload", headers=EVIL)
        assert "server.cors_origins" in refused.json()["error"]
        assert refused.json()["details"] == {"origin": "http://evil.example"}


async def test_key_in_a_header_of_its_own_lets_a_foreign_page_manage_and_basic_does_nothing_for_it(
    tmp_path: Path,
) -> None:
    secret = "a key of nineteen letters"
    async with api_with(tmp_path, api_keys=(secret,), origins=("*", "http://tool.example")) as api:
        for headers in (bearer(secret), {"X-API-Key": secret}):
            assert (await api.http.post("/api/v1/models/demo/unload", headers={**EVIL, **headers})).status_code == 200
        for page in (EVIL, {"Origin": "null"}, {"Origin": "http://tool.example"}):
            for operation in OPERATIONS:
                code = None if operation.method == "head" else "ORIGIN_NOT_ALLOWED"
                assert await ask(api, operation, {**page, **basic(secret)}) == (403, code)
                # The answer does not tell a right key from a wrong one.
                assert await ask(api, operation, {**page, **basic("wrong")}) == (403, code)
        own = {"Origin": f"http://127.0.0.1:{api.port}"}
        assert (await api.http.post("/api/v1/models/demo/unload", headers={**own, **basic(secret)})).status_code == 200
        # A link on another page leads here; the browser sends the key again, and the page sees nothing.
        link = {"Sec-Fetch-Site": "cross-site", **basic(secret)}
        assert (await api.http.get("/api/v1/jobs", headers=link)).status_code == 200
        assert (await api.http.post("/api/v1/generate", headers=link)).status_code == 403


@pytest.mark.parametrize("listed", ["https://Tool.example", "https://tool.example/", "https://tool.example:443"])
async def test_listed_page_may_read_what_it_may_start(tmp_path: Path, listed: str) -> None:
    page = {"Origin": "https://tool.example"}
    async with api_with(tmp_path, origins=(listed,)) as api:
        for answer in (
            await api.http.post("/api/v1/models/demo/unload", headers=page),
            await api.http.get("/api/v1/jobs", headers=page),
        ):
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == page["Origin"]


@pytest.mark.parametrize("page", [EVIL, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
async def test_page_that_is_not_listed_starts_nothing_where_origins_are(tmp_path: Path, page: dict[str, str]) -> None:
    secret = "a key of nineteen letters"
    async with api_with(tmp_path, api_keys=(secret,), origins=("http://tool.example",)) as api:
        for operation in OPERATIONS:
            if operation.method not in ("get", "head"):
                refused = operation.scope is not Scope.MANAGE
                status, code = await ask(api, operation, {**page, **bearer(secret)})
                assert (status == 403, code == "ORIGIN_NOT_ALLOWED") == (refused, refused), operation
    async with api_with(tmp_path / "open", origins=("http://tool.example",)) as api:
        for operation in OPERATIONS:
            if operation.method not in ("get", "head"):
                assert await ask(api, operation, page) == (403, "ORIGIN_NOT_ALLOWED"), operation
        for path in ("/api/v1/jobs", "/api/v1/health"):
            answer = await api.http.get(path, headers=page)
            # The browser keeps it from the page.
            assert "access-control-allow-origin" not in answer.headers


async def test_page_after_dns_rebinding_reads_nothing(tmp_path: Path) -> None:
    secret = "a key of nineteen letters"
    host = {"Host": "rebound.example:7861"}
    async with api_with(tmp_path) as api:
        for operation in OPERATIONS:
            code = None if operation.method == "head" else "HOST_NOT_ALLOWED"
            assert await ask(api, operation, {**host, **bearer(secret)}) == (403, code)
        answer = await api.http.options("/api/v1/jobs", headers=host)
        assert answer.json()["details"] == {"host": "rebound.example", "setting": "security.allowed_hosts"}
        assert (await api.http.get("/api/v1/health", headers={"X-Forwarded-Host": "a.example"})).status_code == 200
    async with api_with(tmp_path, api_keys=(secret,)) as api:
        for headers, status in ((bearer(secret), 200), ({"X-API-Key": secret}, 200), (basic(secret), 403), ({}, 403)):
            assert (await api.http.get("/api/v1/jobs", headers={**host, **headers})).status_code == status
        assert (await api.http.get("/api/v1/health", headers={**host, **bearer("another")})).status_code == 403
    async with api_with(tmp_path, allowed_hosts=("rebound.example",)) as api:
        assert (await api.http.get("/api/v1/health", headers=host)).status_code == 200


async def test_every_scope_opens_what_it_implies_and_nothing_else(tmp_path: Path) -> None:
    opens: dict[Scope, set[Scope | None]] = {
        Scope.READ: {Scope.READ, None},
        Scope.GENERATE: {Scope.READ, Scope.GENERATE, None},
        Scope.PRIORITIZE: {None},
        Scope.MANAGE: {*Scope, None},
    }
    async with api_with(tmp_path, keys_file=keys_file(tmp_path)) as api:
        for scope, secret in KEYS.items():
            for operation in OPERATIONS:
                answer = await ask(api, operation, bearer(secret))
                assert (answer == (403, "FORBIDDEN")) is (operation.scope not in opens[scope]), (scope, operation)
        refused = await api.http.post("/api/v1/generate", headers=bearer(KEYS[Scope.READ]))
        assert refused.json()["details"] == {"scope": "generate"}
        assert KEYS[Scope.READ] not in refused.text


async def test_nothing_but_what_is_declared_open_answers_without_a_key(tmp_path: Path) -> None:
    async with api_with(tmp_path, api_keys=("a key of nineteen letters",)) as api:
        for operation in OPERATIONS:
            if operation.method == "post" and operation.path in OF_OWN_PAGES:
                continue
            # The page has no file of that name.
            expected = 401 if operation.scope is not None else 404 if operation.path == "/page/{name}" else 200
            assert (await ask(api, operation, {}))[0] == expected, operation
        # Neither routes, nor methods, nor limits can be told apart before the key.
        for method, path in (("GET", "/no"), ("PUT", "/api/v1/jobs"), ("POST", "/api/v1/health"), ("TRACE", "/")):
            assert (await api.http.request(method, path)).json()["code"] == "UNAUTHORIZED"
        assert (await api.http.options("/api/v1/jobs")).status_code == 200
        head = f"POST /api/v1/generate HTTP/1.1\r\nHost: test\r\nContent-Length: {2**40}\r\n\r\n"
        async with connect(api.port) as client:
            await client.stream.send_all(head.encode())
            assert (await client.end_of_file()).startswith(b"HTTP/1.1 401")


async def test_service_with_a_route_that_declares_nothing_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = [each for each in OPERATIONS if each.path != "/api/v1/queue"]
    monkeypatch.setattr("mflux_api.http.openapi.OPERATIONS", declared)
    async with scripted_service(tmp_path, Script()) as service:
        with pytest.raises(LookupError, match="GET /api/v1/queue"):
            create_app(gateway(service))


@pytest.mark.parametrize("empty", ["", "Basic", "Basic Og==", "Bearer"])
async def test_empty_credentials_count_as_none(tmp_path: Path, empty: str) -> None:
    async with api_with(tmp_path, api_keys=("a key of nineteen letters",)) as api:
        answer = await api.http.get("/api/v1/jobs", headers={"Authorization": empty})
        assert "is required" in answer.json()["error"]
        assert answer.headers["www-authenticate"] == 'Basic realm="mflux-api"'
        both = {"Authorization": empty, "X-API-Key": "a key of nineteen letters"}
        assert (await api.http.get("/api/v1/jobs", headers=both)).status_code == 200


async def test_wrong_keys_are_noted_wherever_the_answer_tells_that_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []

    async def note(self: WrongKeys, address: str) -> None:
        noted.append(address)

    monkeypatch.setattr(WrongKeys, "note", note)
    secret = "a key of nineteen letters"
    async with api_with(tmp_path, api_keys=(secret,)) as api:
        for path, headers in (
            ("/api/v1/jobs", bearer("wrong")),
            ("/api/v1/jobs", basic("wrong")),
            ("/api/v1/jobs", {"Authorization": "Basic !"}),
            ("/api/v1/health", {"Host": "rebound.example", **bearer("wrong")}),
        ):
            assert (await api.http.get(path, headers=headers)).status_code in (401, 403)
        assert noted == ["127.0.0.1"] * 4
        for headers in ({}, bearer(secret), {**bearer("wrong"), "X-API-Key": secret}):
            await api.http.get("/api/v1/jobs", headers=headers)
        await api.http.get("/api/v1/health", headers=bearer("any"))
        await api.http.get("/api/v1/health", headers={"Host": "rebound.example", **basic(secret)})
        assert len(noted) == 4
    async with api_with(tmp_path) as api:
        await api.http.get("/api/v1/jobs", headers=bearer("any"))
        await api.http.get("/api/v1/jobs", headers={"Host": "rebound.example", **bearer("any")})
        assert len(noted) == 4


async def test_slowed_request_holds_no_room_for_its_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight: list[int] = []
    async with api_with(tmp_path, api_keys=("a key of nineteen letters",)) as api:

        async def note(self: WrongKeys, address: str) -> None:
            in_flight.append(gateway(api.service).in_flight.used)

        monkeypatch.setattr(WrongKeys, "note", note)
        for path in ("/api/v1/generate", "/api/v1/loras?name=a"):
            answer = await api.http.post(path, content=bytes(2**20), headers=bearer("wrong"))
            assert answer.status_code == 401
    assert in_flight == [0, 0]


async def test_client_of_http_1_0_may_leave_the_host_out(tmp_path: Path) -> None:
    async with api_with(tmp_path) as api, connect(api.port) as client:
        await client.stream.send_all(b"GET /api/v1/health HTTP/1.0\r\n\r\n")
        assert (await client.end_of_file()).startswith(b"HTTP/1.1 200")


async def test_no_answer_but_a_models_status_holds_a_path_of_this_machine(tmp_path: Path) -> None:
    async with api_with(tmp_path) as api:
        job = await api.finished()
        for operation in OPERATIONS:
            if operation.path.endswith(("/stream", "/events")):
                continue
            for job_id, model, index in ((job.id, "demo", 0), (UNKNOWN_JOB, "no-model", 9)):
                path = operation.path.format(job_id=job_id, model_id=model, name="no-lora", index=index)
                for body in (b"{", b"{}", b'{"prompt": "a", "lora_files": ["/etc/passwd"], "init_images": ["/etc"]}'):
                    answer = await api.http.request(operation.method.upper(), path, content=body)
                    assert str(tmp_path).encode() not in answer.content
                    assert b"Traceback" not in answer.content


async def test_page_that_may_ask_may_read_the_answer_however_the_settings_spell_its_origin(tmp_path: Path) -> None:
    async with api_with(tmp_path, origins=("https://Tool.example/", "null")) as api:
        for origin, shown in (("https://tool.example", "https://tool.example"), ("null", "null")):
            answer = await api.http.get("/api/v1/models", headers={"Origin": origin})
            assert answer.headers.get("Access-Control-Allow-Origin") == shown
            assert answer.headers["Vary"] == "Origin"
