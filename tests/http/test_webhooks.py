"""Webhooks over HTTP: refused where they are off, and delivered to a real receiver where they are on."""

from __future__ import annotations

import base64
import hmac
import itertools
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.config import SecuritySettings, Settings, WebhookSettings
from mflux_api.errors import ConfigError
from mflux_api.gateway import submission
from mflux_api.jobs.webhook import Webhook
from mflux_api.service import open_service
from tests.support.harness import REQUEST, ended, eventually, settings
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Crash, Hold, Script
from tests.support.webhook_receiver import Post, receiver

pytestmark = pytest.mark.slow

KEY = bytes(range(32))
ON = WebhookSettings(
    enabled=True, secret="whsec_" + base64.b64encode(KEY).decode(), allow_private_addresses=True, timeout_seconds=5.0
)
JOB = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1, "num_images": 2}
ANA, BOSS = ({"X-API-Key": f"the key that belongs to {name}"} for name in ("ana", "boss"))


def on(folder: Path, *, keys: bool = False, **changes: Any) -> Settings:
    changed = attrs.evolve(settings(folder), webhooks=attrs.evolve(ON, **changes))
    if not keys:
        return changed
    path = folder / "keys.toml"
    append(path, new_entry("ana", ANA["X-API-Key"], [Scope.GENERATE], None))
    append(path, new_entry("boss", BOSS["X-API-Key"], [Scope.MANAGE], None))
    return attrs.evolve(changed, security=SecuritySettings(keys_file=path))


def verified(post: Post) -> dict[str, Any]:
    """The body of a message whose signature is right, checked as the documentation says."""
    signed = f"{post.headers['webhook-id']}.{post.headers['webhook-timestamp']}.".encode() + post.body
    expected = "v1," + base64.b64encode(hmac.digest(KEY, signed, "sha256")).decode()
    assert post.headers["webhook-signature"] == expected
    found: dict[str, Any] = json.loads(post.body)
    return found


async def submit(api: Api, webhook: object, headers: dict[str, str] | None = None) -> str:
    answer = await api.http.post("/api/v1/generate", json=JOB | {"webhook": webhook}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["warnings"] == []
    return str(answer.json()["job_id"])


async def state(api: Api, job_id: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    answer = await api.http.get(f"/api/v1/jobs/{job_id}?images=url", headers=headers)
    found: dict[str, Any] = answer.json()["webhook"]
    return found


async def settled(api: Api, job_id: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    async def is_settled() -> bool:
        return (await state(api, job_id, headers))["state"] not in ("waiting", "pending")

    await eventually(is_settled)
    return await state(api, job_id, headers)


async def test_webhook_is_refused_where_the_server_sends_none(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        for path, more in itertools.product(("/api/v1/generate", "/sdapi/v1/txt2img"), ({}, {"sampler_name": "Euler"})):
            fields = JOB | more | {"webhook": {"url": "https://a.example/"}}
            answer = await api.http.post(path, json=fields)
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
            assert answer.json()["details"]["field"] == "webhook"
            assert "webhooks.enabled" in answer.json()["error"]
        parts = {"prompt": (None, "a"), "webhook": (None, '{"url": "https://a.example/"}')}
        form = await api.http.post("/api/v1/generate", files=parts)
        assert (form.status_code, form.json()["error"]) == (400, answer.json()["error"])
        assert (await api.http.get("/api/v1/jobs")).json()["jobs"] == []


async def test_finished_job_is_sent_as_its_route_shows_it_and_signed(tmp_path: Path) -> None:
    async with receiver() as found, scripted_api(tmp_path, changed=on(tmp_path)) as api:
        url = f"http://127.0.0.1:{found.port}/hook?token=t"
        job_id = await submit(api, {"url": url})
        assert await settled(api, job_id) == {
            "url": url,
            "events": ["completed", "failed", "cancelled"],
            "state": "delivered",
            "attempts": 1,
            "last_error": None,
            "next_attempt_at": None,
        }
        (post,) = found.posts
        assert post.line == "POST /hook?token=t HTTP/1.1"
        assert post.headers["Content-Type"] == "application/json"
        assert post.headers["webhook-id"] == f"msg_{job_id}"
        sent, shown = verified(post), (await api.http.get(f"/api/v1/jobs/{job_id}?images=url")).json()
        assert sent.pop("webhook")["url"] is None
        shown.pop("webhook")
        assert sent == shown
        assert len(sent["result"]["images"]) == 2


async def test_images_of_a_keys_job_can_be_read_by_the_receiver_without_the_key(tmp_path: Path) -> None:
    changed = on(tmp_path, keys=True, public_url="https://images.example/flux/")
    async with receiver() as found, scripted_api(tmp_path, changed=changed) as api:
        job_id = await submit(api, {"url": f"http://127.0.0.1:{found.port}/"}, ANA)
        await settled(api, job_id, ANA)
        for url in verified(found.posts[0])["result"]["images"]:
            base, _, path = url.partition("/flux/")
            assert base == "https://images.example"
            answer = await api.http.get(f"/{path}")
            assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
            unsigned = await api.http.get(f"/{path.partition('?')[0]}")
            assert unsigned.status_code == 401


async def test_url_is_shown_to_the_owner_alone(tmp_path: Path) -> None:
    async with receiver() as found, scripted_api(tmp_path, changed=on(tmp_path, keys=True)) as api:
        url = f"http://127.0.0.1:{found.port}/secret-of-the-receiver"
        job_id = await submit(api, {"url": url}, ANA)
        assert (await settled(api, job_id, ANA))["url"] == url
        for headers, path in ((BOSS, f"/{job_id}?images=url"), (BOSS, ""), (ANA, ""), (ANA, f"/{job_id}/stream")):
            answer = await api.http.get(f"/api/v1/jobs{path}", headers=headers)
            assert answer.status_code == 200
            assert '"webhook":{"url":null,' in answer.text
            assert "secret-of-the-receiver" not in answer.text


async def test_every_end_that_is_asked_for_is_sent(tmp_path: Path) -> None:
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    async with receiver() as found, scripted_api(tmp_path, script, changed=on(tmp_path)) as api:
        url = f"http://127.0.0.1:{found.port}/"
        running = await submit(api, {"url": url})
        cancelled, skipped = await submit(api, {"url": url}), await submit(api, {"url": url, "events": ["failed"]})
        await hold.reached.wait()
        for job_id in (cancelled, skipped):
            assert (await state(api, job_id))["state"] == "waiting"
            await api.http.delete(f"/api/v1/jobs/{job_id}")
        assert (await settled(api, cancelled))["state"] == "delivered"
        assert (await settled(api, skipped))["state"] == "skipped"
        assert [verified(post)["status"] for post in found.posts] == ["cancelled"]
        await api.http.delete(f"/api/v1/jobs/{running}")


async def test_failed_job_is_sent_with_its_error(tmp_path: Path) -> None:
    script = Script(at={"step 0/1": Crash(times=9)})
    async with receiver() as found, scripted_api(tmp_path, script, changed=on(tmp_path)) as api:
        job_id = await submit(api, {"url": f"http://127.0.0.1:{found.port}/", "events": ["failed"]})
        assert (await settled(api, job_id))["state"] == "delivered"
        sent = verified(found.posts[0])
        assert (sent["status"], sent["code"]) == ("failed", "ENGINE_CRASHED")


async def test_call_that_waits_has_its_end_sent_too(tmp_path: Path) -> None:
    async with receiver() as found, scripted_api(tmp_path, changed=on(tmp_path)) as api:
        fields = JOB | {"sampler_name": "Euler", "webhook": {"url": f"http://127.0.0.1:{found.port}/"}}
        answer = await api.http.post("/sdapi/v1/txt2img", json=fields)
        assert answer.status_code == 200
        await eventually(lambda: len(found.posts) == 1)
        assert verified(found.posts[0])["status"] == "completed"


async def test_program_that_embeds_the_service_has_its_ends_sent(tmp_path: Path) -> None:
    async with receiver() as found, open_service(on(tmp_path), start_engine=Script().start) as service:
        webhook = Webhook(url=f"http://127.0.0.1:{found.port}/")
        job = await service.submit(attrs.evolve(REQUEST, webhook=webhook))
        await ended(service, job.id)
        # The delivery was begun before the drain, which waits for it.
        with trio.fail_after(5):
            await service.drain()
        assert [verified(post)["id"] for post in found.posts] == [job.id]


async def test_private_receivers_are_refused_by_default(tmp_path: Path) -> None:
    changed = on(tmp_path, allow_private_addresses=False)
    async with receiver() as found, scripted_api(tmp_path, changed=changed) as api:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"):
            fields = JOB | {"webhook": {"url": f"http://{host}:{found.port}/"}}
            answer = await api.http.post("/api/v1/generate", json=fields)
            assert (answer.status_code, answer.json()["details"]["field"]) == (400, "webhook")
        assert found.connections == 0


NOT_WEBHOOKS: tuple[object, ...] = (
    "https://a.example/",
    [],
    {},
    {"url": 5},
    {"url": ""},
    {"url": "https://a.example/" + "a" * 2048},
    {"url": "https://a.example/", "events": []},
    {"url": "https://a.example/", "events": ["started"]},
    {"url": "https://a.example/", "events": ["failed"] * 4},
)


async def test_what_is_not_a_webhook_is_refused_and_not_repeated(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, changed=on(tmp_path)) as api:
        for webhook in NOT_WEBHOOKS:
            answer = await api.http.post("/api/v1/generate", json=JOB | {"webhook": webhook})
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER"), answer.text
            assert answer.json()["details"]["field"] == "webhook"
            assert "a.example" not in answer.text


@pytest.mark.parametrize("bound", ["of the caller", "of all"])
async def test_deliveries_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    if bound == "of all":
        monkeypatch.setattr(submission, "MAX_PENDING", 1)
    changed = on(tmp_path, max_pending_per_caller=1 if bound == "of the caller" else 100)
    down = b"HTTP/1.1 503 x\r\nRetry-After: 600\r\n\r\n"
    async with receiver(down) as found, scripted_api(tmp_path, changed=changed) as api:
        webhook = {"url": f"http://127.0.0.1:{found.port}/"}
        job_id = await submit(api, webhook)
        await ended(api.service, job_id)
        answer = await api.http.post("/api/v1/generate", json=JOB | {"webhook": webhook})
        assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_DELIVERIES")
        assert answer.json()["details"] == {"pending": 1, "limit": 1}
        assert (await api.http.post("/api/v1/generate", json=JOB)).status_code == 200
        await eventually(lambda: len(found.posts) == 1)

        async def is_told() -> bool:
            return bool((await state(api, job_id))["last_error"] == "the receiver answered 503")

        await eventually(is_told)
        waits = await state(api, job_id)
        assert (waits["state"], waits["attempts"]) == ("pending", 1)
        assert waits["next_attempt_at"] is not None


async def test_service_without_a_usable_secret_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"webhooks\.secret"):
        async with open_service(on(tmp_path, secret=None), start_engine=Script().start):
            pass
