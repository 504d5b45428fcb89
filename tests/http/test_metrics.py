"""``/metrics``: what happened is in it by model, size and route; who may read it; no series of a client's making."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import prometheus_client
import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from mflux_api.config import SecuritySettings
from mflux_api.gateway.measurements import Measurements
from mflux_api.http.metrics import Reading, write
from mflux_api.jobs.job import Status
from tests.support.harness import eventually, request, settings
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Crash, Hold, Script
from tests.support.server import ROOT

pytestmark = pytest.mark.slow

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(api: Api) -> Samples:
    answer = await api.http.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name.removeprefix("mflux_api_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_what_a_job_did_is_in_the_metrics(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished(num_images=2, steps=2)
        assert job.status is Status.COMPLETED

        async def counted() -> bool:
            return ("jobs_total", (("model", "demo"), ("outcome", "completed"))) in await scrape(api)

        await eventually(counted)
        found = await scrape(api)
        model, size = ("model", "demo"), ("size", "512x512")
        assert found["jobs_total", (model, ("outcome", "completed"))] == 1
        assert found["images_total", (model, size)] == 2
        assert found["job_queue_seconds_count", (model,)] == 1
        assert found["job_run_seconds_count", (model, size)] == 1
        assert found["step_seconds_count", (model, size)] > 0
        assert found["image_seconds_count", (model, size)] == 2
        assert found["model_loads_total", (("engine", "0"), model)] == 1
        assert found["model_load_seconds_count", (model,)] == 1
        assert found["model_in_memory", (("engine", "0"), model)] == 1
        assert found["engine_condition", (("condition", "ready"), ("engine", "0"))] == 1
        assert found["unanswered", ()] == 0
        await api.http.post("/api/v1/models/demo/unload")

        async def evicted() -> bool:
            label = (("engine", "0"), model, ("reason", "asked"))
            return (await scrape(api)).get(("model_evictions_total", label)) == 1

        await eventually(evicted)


async def test_what_goes_on_is_in_the_metrics(tmp_path: Path) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"step 0/1": hold})) as api:
        running = (await api.service.submit(request(1))).id
        waiting = (await api.service.submit(request(2))).id
        await hold.reached.wait()
        async with api.service.events(running):
            found = await scrape(api)
            assert found["jobs_unfinished", (("state", "generating"),)] == 1
            assert found["jobs_unfinished", (("state", "queued"),)] == 1
            assert found["followers", ()] == 1
        await api.service.cancel(waiting)
        hold.release.set()


async def test_engine_that_is_replaced_is_counted(tmp_path: Path) -> None:
    async with scripted_api(tmp_path, Script(at={"step 0/1": Crash()})) as api:
        await api.finished(steps=2)
        assert (await scrape(api))["engine_restarts_total", (("engine", "0"),)] == 1


async def test_requests_count_by_their_route_and_never_by_what_clients_send(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        for path in ("/api/v1/jobs/0123456789ab", "/api/v1/jobs/ba9876543210", "/strange/1", "/strange/2", "/livez"):
            await api.http.get(path)
        await api.http.request("STRANGE", "/api/v1/queue")
        found = await scrape(api)
        requests = {labels: value for (name, labels), value in found.items() if name == "http_requests_total"}
        get = ("method", "GET")
        assert requests[get, ("route", "/api/v1/jobs/<job_id>"), ("status", "404")] == 2
        assert requests[get, ("route", "none"), ("status", "404")] == 2
        assert requests[get, ("route", "/livez"), ("status", "200")] == 1
        assert requests[("method", "other"), ("route", "none"), ("status", "405")] == 1
        assert found["http_request_seconds_count", (get, ("route", "/livez"))] == 1
        assert not [text for labels in requests for _, text in labels if "strange" in text.lower() or "0123" in text]


async def test_metrics_need_a_key_with_read_unless_security_opens_them(tmp_path: Path) -> None:
    security = SecuritySettings(api_keys=("k" * 16,))
    closed = attrs.evolve(settings(tmp_path), security=security)
    async with scripted_api(tmp_path, changed=closed) as api:
        assert (await api.http.get("/metrics")).status_code == 401
        assert (await api.http.get("/metrics", headers={"Authorization": "Bearer " + "k" * 16})).status_code == 200
    opened = attrs.evolve(closed, security=attrs.evolve(security, open=("/metrics",)))
    async with scripted_api(tmp_path, changed=opened) as api:
        assert (await api.http.get("/metrics")).status_code == 200
        assert (await api.http.get("/api/v1/queue")).status_code == 401


async def test_two_services_of_a_process_share_no_metric(tmp_path: Path) -> None:
    before = prometheus_client.generate_latest()
    async with scripted_api(tmp_path / "one") as one, scripted_api(tmp_path / "other") as other:
        await one.finished()
        assert any(name == "jobs_total" for name, _ in await scrape(one))
        assert not any(name == "jobs_total" for name, _ in await scrape(other))
    assert b"mflux_api" not in before + prometheus_client.generate_latest()


async def test_open_metrics_are_spoken_to_who_asks_for_them(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        answer = await api.http.get("/metrics", headers={"Accept": accept})
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        names = {family.name for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]
        assert {"mflux_api_jobs", "mflux_api_step_seconds", "mflux_api_degraded"} <= names
        assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("accept", "open_metrics"),
    [
        ("application/openmetrics-text", True),
        ("text/plain;q=0.2, application/OpenMetrics-Text; version=0.0.1", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=nonsense", True),
        ("", False),
        ("*/*", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;version=9.0.0", False),
        ("application/openmetrics-text;version=1.0.0\x01", False),
        ("application/openmetrics-text;version=abc", False),
        ("text/plain;version=" + "9" * 5000, False),
        (";;;,,,=;=,é", False),
    ],
)
def test_format_follows_accept_whatever_stands_there(accept: str, open_metrics: bool) -> None:
    nothing = Measurements(counters=None, status=None, engines=None, followers=None, webhooks=None)
    text, content_type = write(Reading(measured=nothing, bytes_in_flight=0, max_queue=1), accept)
    assert content_type.startswith("application/openmetrics-text") is open_metrics
    assert text.endswith(b"# EOF\n") is open_metrics
    assert b"mflux_api_unanswered 5.0" in text


async def test_metrics_are_answered_while_an_actor_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mflux_api.gateway.measurements.ANSWER_SECONDS", 0.05)
    async with scripted_api(tmp_path) as api:

        async def silent() -> int:
            await trio.sleep_forever()
            raise AssertionError

        monkeypatch.setattr(api.service._gateway, "_followers", silent)
        found = await scrape(api)
        assert found["unanswered", ()] == 1
        assert ("followers", ()) not in found
        assert ("jobs_unfinished", (("state", "queued"),)) in found


def _documented() -> set[str]:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    return set(re.findall(r"`(mflux_api_\w+)`", text.partition("\n## Monitoring\n")[2].partition("\n## ")[0]))


async def test_every_metric_is_in_the_docs_by_its_name(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        text = (await api.http.get("/metrics")).text
    families = re.findall(r"^# TYPE (mflux_api_\w+) ", text, re.MULTILINE)
    assert set(families) == _documented()
