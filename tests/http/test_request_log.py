"""A line for each job at its end and for each request that is refused, which its client can be asked for by its id."""

from __future__ import annotations

import logging
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock

from mflux_api.config import SecuritySettings
from mflux_api.http.request_log import LINES_IN_A_MINUTE, MINUTE, Lines
from mflux_api.system.log_fields import fields_of
from tests.support.harness import ended, settings
from tests.support.scripted_api import scripted_api
from tests.support.scripted_engine import Script

KEY = "a-key-that-is-long-enough"
GENERATE = {"prompt": "a secret house", "model": "demo", "width": 64, "height": 64, "steps": 2}


def lines(caplog: pytest.LogCaptureFixture, begins: str) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.getMessage().startswith(begins)]


@pytest.mark.slow
async def test_job_has_a_line_at_its_end_with_the_request_that_it_came_by(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with scripted_api(tmp_path, Script()) as api:
        accepted = await api.http.post("/api/v1/generate", json=GENERATE, headers={"X-Request-ID": "mine-1"})
        job = await ended(api.service, accepted.json()["job_id"])
    (line,) = lines(caplog, f"job {job.id}: ")
    assert line.getMessage().startswith(f"job {job.id}: completed; demo, 64x64, 2 steps, 1 of 1 image(s), queued ")
    fields = dict(fields_of(line))
    assert fields.pop("queued_seconds") >= 0
    assert fields.pop("ran_seconds") >= 0
    assert fields == {
        "job_id": job.id,
        "outcome": "completed",
        "code": None,
        "model": "demo",
        "width": 64,
        "height": 64,
        "steps": 2,
        "images": 1,
        "request_id": "mine-1",
    }
    assert "secret" not in caplog.text


@pytest.mark.slow
async def test_refused_request_has_a_line_with_its_route_and_code_and_nothing_that_was_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keyed = attrs.evolve(settings(tmp_path), security=SecuritySettings(api_keys=(KEY,)))
    async with scripted_api(tmp_path, changed=keyed) as api:
        headers = {"Authorization": f"Bearer {KEY}"}
        bad = await api.http.post("/api/v1/generate", json={**GENERATE, "width": 63}, headers=headers)
        await api.http.get("/api/v1/jobs/0123456789ab?ticket=secret-ticket")
        await api.http.get("/secret/path", headers=headers)
        await api.http.get("/api/v1/health")
    said = [each.getMessage() for each in lines(caplog, "request refused: ")]
    assert said == [
        "request refused: POST /api/v1/generate, 400 INVALID_PARAMETER",
        "request refused: GET /api/v1/jobs/<job_id>, 401 UNAUTHORIZED",
        "request refused: GET none, 404 NOT_FOUND",
    ]
    first = lines(caplog, "request refused: ")[0]
    assert fields_of(first)["request_id"] == bad.headers["X-Request-ID"]
    ours = "\n".join(each.getMessage() for each in caplog.records if each.name.startswith("mflux_api"))
    assert "secret" not in ours
    assert KEY not in ours


async def test_refused_requests_have_so_many_lines_a_minute_and_the_rest_is_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("mflux_api.http.request_log.method_label", lambda: "GET")
    monkeypatch.setattr("mflux_api.http.request_log.route_label", lambda: "none")
    log = Lines()
    for _ in range(LINES_IN_A_MINUTE + 5):
        log.refused(404, "NOT_FOUND", "an-id")
    assert len(caplog.records) == LINES_IN_A_MINUTE
    await trio.sleep(MINUTE)
    log.refused(404, "NOT_FOUND", "an-id")
    assert [each.getMessage() for each in caplog.records[LINES_IN_A_MINUTE:]] == [
        "5 further request(s) were refused since, without a line each",
        "request refused: GET none, 404 NOT_FOUND",
    ]
