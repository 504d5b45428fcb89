"""What supervisors and load balancers ask, without a key: whether a server is there, and whether it takes work."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import attrs
import h11
import pytest
import trio

from mflux_api.cli.running_server import call
from mflux_api.config import SecuritySettings, ServerSettings, Settings
from tests.support.harness import eventually, settings
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Crash, Fail, Hold, Script

pytestmark = pytest.mark.slow


async def probe(api: Api, path: str) -> tuple[int, str]:
    answer = await api.http.get(path)
    body = answer.json()
    return answer.status_code, body.get("code") or body["status"]


async def test_server_that_drains_is_alive_and_not_ready(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        assert [await probe(api, path) for path in ("/livez", "/readyz")] == [(200, "ok"), (200, "ok")]
        head = await api.http.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert (await api.http.get("/")).json()["service"] == "mflux-api"
        await api.service.drain()
        assert [await probe(api, path) for path in ("/livez", "/readyz")] == [(200, "ok"), (503, "SHUTTING_DOWN")]
        assert "retry-after" in (await api.http.get("/readyz")).headers


async def test_server_whose_only_engine_does_not_start_is_alive_and_not_ready(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, Script(at={"start": Crash(times=100)})) as api:

        async def degraded() -> bool:
            health: str = (await api.http.get("/api/v1/health")).json()["status"]
            return health == "degraded"

        await eventually(degraded)
        assert [await probe(api, path) for path in ("/livez", "/readyz")] == [(200, "ok"), (503, "ENGINE_UNAVAILABLE")]


@pytest.mark.parametrize("keys", [(), ("a-key-that-is-long-enough",)])
async def test_allowed_hosts_keep_neither_probes_nor_commands_out(keys: tuple[str, ...], tmp_path: Path) -> None:
    security = SecuritySettings(allowed_hosts=("images.example.com",), api_keys=keys)
    changed = attrs.evolve(settings(tmp_path), security=security)
    async with scripted_api(tmp_path, changed=changed) as api:
        for host in ("127.0.0.1", "[::1]:7861", "localhost", "images.example.com", "mflux-api"):
            for path in ("/api/v1/health", "/livez", "/readyz"):
                assert (await api.http.get(path, headers={"Host": host})).status_code == 200, (host, path)
        assert (await api.http.get("/livez", headers={"Host": "page.example"})).status_code == 403
        asked = attrs.evolve(changed, server=ServerSettings(host="0.0.0.0", port=api.port))
        said = await trio.to_thread.run_sync(partial(call, asked, None, "GET", "queue", holds="total"))
        assert said["total"] == 0
        by_name = partial(call, asked, f"http://localhost:{api.port}", "GET", "queue", holds="total")
        assert (await trio.to_thread.run_sync(by_name))["total"] == 0


def preloading(folder: Path, default: str) -> Settings:
    plain = settings(folder)
    return attrs.evolve(
        plain, models=attrs.evolve(plain.models, default=default), engine=attrs.evolve(plain.engine, preload=True)
    )


async def test_server_that_loads_its_default_model_ahead_is_ready_when_it_has_it(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"load": hold}), changed=preloading(tmp_path, "demo")) as api:
        await hold.reached.wait()
        assert [await probe(api, path) for path in ("/livez", "/readyz")] == [(200, "ok"), (503, "ENGINE_UNAVAILABLE")]
        assert (await api.http.get("/readyz")).json()["details"] == {"reason": "it is being loaded"}
        hold.release.set()
        await eventually(partial(is_ready, api))
        # It was there: that it leaves for another is the daily round.
        assert (await api.http.post("/api/v1/models/demo/unload")).status_code == 200
        assert await is_ready(api)


async def test_server_on_a_gpu_is_ready_when_its_default_model_is_warm(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(device="cuda", at={"denoising": hold})
    async with scripted_api(tmp_path, script, changed=preloading(tmp_path, "demo")) as api:
        await hold.reached.wait()

        async def warms_up() -> bool:
            answer = await api.http.get("/readyz")
            assert (answer.status_code, answer.json()["code"]) == (503, "ENGINE_UNAVAILABLE")
            reason: str = answer.json()["details"]["reason"]
            return reason == "it is being warmed up"

        await eventually(warms_up)
        assert (await api.http.get("/api/v1/health")).json()["status"] == "healthy"
        hold.release.set()
        await eventually(partial(is_ready, api))
        assert (await api.http.get("/api/v1/jobs")).json()["jobs"] == []


async def test_default_model_that_cannot_be_loaded_ahead_is_named_with_the_reason(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, changed=preloading(tmp_path, "flux2-klein-4b")) as api:

        async def told() -> bool:
            answer = await api.http.get("/readyz")
            assert answer.status_code == 503
            return "is not on disk" in answer.json()["details"]["reason"]

        await eventually(told)
        assert "flux2-klein-4b" in (await api.http.get("/readyz")).json()["error"]


async def test_default_model_that_a_job_brought_into_memory_makes_the_server_ready(tmp_path: Path) -> None:
    script = Script(at={"load": Fail()})
    async with scripted_api(tmp_path, script, changed=preloading(tmp_path, "demo")) as api:

        async def failed() -> bool:
            return "it is being loaded" not in (await api.http.get("/readyz")).json()["details"]["reason"]

        await eventually(failed)
        await api.finished()
        assert await is_ready(api)


async def test_why_no_engine_starts_is_in_health_in_the_list_of_engines_and_in_every_503(tmp_path: Path) -> None:
    why = "exited with status 1: ImportError: libcuda.so.1: no such file"
    async with scripted_api(tmp_path, Script(at={"start": Crash(times=100, reason=why)})) as api:

        async def problem() -> bool:
            health = (await api.http.get("/api/v1/health")).json()
            return (health["status"], health.get("problem")) == ("degraded", why)

        await eventually(problem)
        (engine,) = (await api.http.get("/api/v1/system")).json()["engines"]
        assert (engine["status"], engine["problem"]) == ("degraded", why)
        generate = {"prompt": "a house", "model": "demo"}
        for answer in (await api.http.get("/readyz"), await api.http.post("/api/v1/generate", json=generate)):
            assert (answer.status_code, answer.json()["details"]) == (503, {"reason": why})
            assert why in answer.json()["error"]


async def is_ready(api: Api) -> bool:
    return (await probe(api, "/readyz"))[0] == 200


PLAIN = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n"


async def ask(port: int, request: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Send bytes, end, and return all answers."""
    connection = h11.Connection(h11.CLIENT)
    answers = list[tuple[int, dict[str, str], bytes]]()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        with trio.fail_after(10):
            data = b"".join([piece async for piece in stream])
    while data:
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method="GET", target="/", headers=[("host", "localhost")]))
        connection.send(h11.EndOfMessage())
        connection.receive_data(data)
        head = connection.next_event()
        assert isinstance(head, h11.Response)
        body = b""
        while isinstance(event := connection.next_event(), h11.Data):
            body += event.data
        headers = {name.decode(): value.decode() for name, value in head.headers}
        answers.append((head.status_code, headers, body))
        data = connection.trailing_data[0]
    return answers


@pytest.mark.parametrize("path", [b"/api/v1/health", b"/livez", b"/readyz"])
@pytest.mark.parametrize("origins", [("*",), ("https://a.example",)])
async def test_plain_question_is_answered_as_the_app_answers_it(
    path: bytes, origins: tuple[str, ...], tmp_path: Path
) -> None:
    changed = attrs.evolve(settings(tmp_path), server=ServerSettings(cors_origins=origins))
    async with scripted_api(tmp_path, changed=changed) as api:
        if path == b"/readyz":
            await eventually(partial(is_ready, api))
        port = api.http.base_url.port
        assert port is not None
        plain = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n"
        # Only the app looks at a query.
        by_app = b"GET " + path + b"?x HTTP/1.1\r\nHost: localhost\r\n"
        close = b"Connection: close\r\n\r\n"
        answers = await ask(port, plain + b"\r\n" + by_app + b"\r\n" + plain + b"\r\n" + by_app + close)
        answers += await ask(port, plain + close)
        assert len(answers) == 5
        ids = {headers.pop("x-request-id") for _, headers, _ in answers}
        assert len(ids) == 5
        for _, headers, _ in answers:
            headers.pop("date", None)
        assert [headers.pop("connection", None) for _, headers, _ in answers] == [None, None, None, "close", "close"]
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][0] == 200


async def test_question_for_health_that_is_not_plain_is_judged_by_the_app(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        port = api.http.base_url.port
        assert port is not None
        [(status, _, _)] = await ask(
            port, b"GET /api/v1/health HTTP/1.1\r\nHost: page.example\r\nConnection: close\r\n\r\n"
        )
        assert status == 403
        [(_, headers, _)] = await ask(port, PLAIN + b"X-Request-ID: mine\r\nConnection: close\r\n\r\n")
        assert headers["x-request-id"] == "mine"
