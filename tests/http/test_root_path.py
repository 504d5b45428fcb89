"""Behind a proxy that serves this server below a prefix every path of an answer has it, and every request arrives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio
from quart import Quart

from mflux_api.config import SecuritySettings, ServerSettings, Settings, load_settings
from mflux_api.errors import ConfigError
from mflux_api.http.root_path import RootPath
from tests.support.feed_follower import Follower
from tests.support.harness import settings
from tests.support.http_server import connect
from tests.support.scripted_api import Api, parsed, scripted_api

KEY = "a-key-that-is-long-enough"
JOB = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}
PREFIX = "/tools/images"


def behind(folder: Path, **server: Any) -> Settings:
    return attrs.evolve(settings(folder), server=ServerSettings(**server), security=SecuritySettings(api_keys=(KEY,)))


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


async def paths_of(api: Api, told: dict[str, str]) -> dict[str, list[str]]:
    """Every path of this server in every kind of answer that has one."""
    api.http.headers.update({"X-API-Key": KEY, **told})
    found: dict[str, list[str]] = {}

    def keep(name: str, answer: httpx.Response) -> httpx.Response:
        assert answer.status_code in (200, 202), answer.text
        values = [*strings(answer.json()), answer.headers.get("Location", "")]
        found[name] = [value for value in values if "/api/v1/jobs/" in value]
        return answer

    waited = keep("generate", await api.http.post("/api/v1/generate?wait=60&images=url", json=JOB))
    job = waited.json()["id"]
    keep("job", await api.http.get(f"/api/v1/jobs/{job}?images=url"))
    keep("ticket", await api.http.post(f"/api/v1/jobs/{job}/ticket"))
    openai = {"prompt": "a lake", "model": "demo", "size": "64x64", "response_format": "url"}
    keep("openai", await api.http.post("/v1/images/generations", json=openai))
    prefers = {"Prefer": "respond-async"}
    keep("a1111", await api.http.post("/sdapi/v1/txt2img", json=JOB, headers=prefers))
    headers = tuple({"X-API-Key": KEY, **told}.items())
    async with connect(api.port) as client:
        _, data = await client.get(f"/api/v1/jobs/{job}/stream?images=url", *headers)
    (end,) = [event for event in parsed(data) if event.name == "complete"]
    found["stream"] = json.loads(end.data)["result"]["images"]
    async with trio.open_nursery() as nursery:
        follower = Follower(api, {"X-API-Key": KEY, **told})
        await nursery.start(follower.read, 1)
        assert (await api.http.post("/api/v1/generate", json=JOB)).status_code == 200
    found["events"] = json.loads(follower.events[-1].data)["result"]["images"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"trusted_proxies": ("127.0.0.1",)}, {"X-Forwarded-Prefix": PREFIX}),
        ({"root_path": PREFIX}, {}),
        ({"root_path": "/other", "trusted_proxies": ("127.0.0.1",)}, {"X-Forwarded-Prefix": f"{PREFIX}/"}),
    ],
)
async def test_every_path_of_an_answer_has_the_prefix_and_leads_back(
    server: dict[str, Any], told: dict[str, str], tmp_path: Path
) -> None:
    async with scripted_api(tmp_path, changed=behind(tmp_path, **server)) as api:
        found = await paths_of(api, told)
        assert set(found) == {"generate", "job", "ticket", "openai", "a1111", "stream", "events"}
        assert [name for name, paths in found.items() if not paths] == []
        origin = str(api.http.base_url).rstrip("/")
        for path in [path for paths in found.values() for path in paths]:
            assert path.removeprefix(origin).startswith(f"{PREFIX}/api/v1/jobs/"), path
            # As a proxy passes it on that takes the prefix off.
            below = path.removeprefix(origin).removeprefix(PREFIX)
            if not below.partition("?")[0].endswith("/stream"):
                assert (await api.http.get(below)).status_code == 200


@pytest.mark.slow
async def test_prefix_of_a_proxy_that_is_not_trusted_is_not_believed(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, changed=behind(tmp_path)) as api:
        found = await paths_of(api, {"X-Forwarded-Prefix": "/evil"})
        assert [path for paths in found.values() for path in paths if "evil" in path] == []


@pytest.mark.slow
async def test_request_arrives_with_the_prefix_and_without_it(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, changed=behind(tmp_path, root_path=PREFIX)) as api:
        api.http.headers["X-API-Key"] = KEY
        for path in ("/api/v1/queue", f"{PREFIX}/api/v1/queue", f"{PREFIX}/livez", f"{PREFIX}/v1/models"):
            assert (await api.http.get(path)).status_code == 200, path
        assert (await api.http.get(f"{PREFIX}{PREFIX}/api/v1/queue")).status_code == 404
        # The size of a body is that of its route, and its errors are those of its dialect.
        large = {"prompt": "a lake", "init_images": ["A" * 400_000]}
        assert (await api.http.post(f"{PREFIX}/api/v1/generate", json=large)).status_code == 400
        assert "error" in (await api.http.get(f"{PREFIX}/v1/models/none")).json()
        api.http.headers.pop("X-API-Key")
        assert (await api.http.get(f"{PREFIX}/api/v1/queue")).status_code == 401


@pytest.mark.slow
async def test_description_of_the_api_names_the_prefix(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, changed=behind(tmp_path, root_path=PREFIX)) as api:
        described = (await api.http.get("/openapi.json", headers={"X-API-Key": KEY})).json()
    assert described["servers"] == [{"url": PREFIX}]
    assert "/api/v1/generate" in described["paths"]


@pytest.mark.slow
async def test_signed_url_is_read_with_the_prefix_and_without_it(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, changed=behind(tmp_path, root_path=PREFIX)) as api:
        asked = {"prompt": "a lake", "model": "demo", "size": "64x64", "response_format": "url"}
        answer = await api.http.post("/v1/images/generations", json=asked, headers={"X-API-Key": KEY})
        url = answer.json()["data"][0]["url"]
        assert f"{PREFIX}/api/v1/jobs/" in url
        for each in (url, url.replace(PREFIX, "", 1)):
            assert (await api.http.get(each)).status_code == 200
        assert (await api.http.get(url[:-1])).status_code == 401


@pytest.mark.slow
async def test_cookie_belongs_to_the_prefix(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, changed=behind(tmp_path, root_path=PREFIX)) as api:
        answer = await api.http.post("/api/v1/session", headers={"X-API-Key": KEY})
        assert f"Path={PREFIX};" in answer.headers["set-cookie"] + ";"


def routes() -> RootPath:
    app = Quart(__name__)
    app.add_url_rule("/api/v1/queue", "queue", lambda: "")
    app.add_url_rule("/v1/models", "models", lambda: "", methods=["POST"])
    return RootPath("/api", app.url_map)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/api/api/v1/queue", "/api/v1/queue"),
        # A route as it is, though it begins with the prefix.
        ("/api/v1/queue", "/api/v1/queue"),
        ("/api/v1/models", "/v1/models"),
        ("/apiary", "/apiary"),
        ("/api", "/api"),
        ("/", "/"),
    ],
)
def test_prefix_is_taken_off_what_is_not_a_route_with_it(path: str, route: str) -> None:
    assert routes().strip(path) == route


@pytest.mark.parametrize("wrong", ["images", "/", "/images/", "/im ages", "/../x?y", "/x\n", "https://host/x"])
def test_root_path_that_is_not_a_path_is_an_error_that_names_it(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[server]\nroot_path = {json.dumps(wrong)}\n", "utf-8")
    with pytest.raises(ConfigError, match=re.escape("root_path")):
        load_settings(path, environ={})
