"""Proxies in front of the service: who their clients are, over HTTP."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from mflux_api.config import ServerSettings
from mflux_api.errors import ConfigError
from mflux_api.http.app import create_app
from mflux_api.http.open_connections import ConnectionLimits, OpenConnections
from tests.support.harness import gateway, scripted_service, settings
from tests.support.scripted_api import scripted_api
from tests.support.scripted_engine import Script

pytestmark = pytest.mark.slow

JOB = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}


@pytest.mark.parametrize(("trusted", "owner"), [(("127.0.0.1",), "203.0.113.7"), ((), "127.0.0.1")])
async def test_jobs_belong_to_the_client_behind_a_trusted_proxy(
    tmp_path: Path, trusted: tuple[str, ...], owner: str
) -> None:
    changed = attrs.evolve(settings(tmp_path), server=ServerSettings(trusted_proxies=trusted))
    async with scripted_api(tmp_path, changed=changed) as api:
        headers = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7"}
        submitted = (await api.http.post("/api/v1/generate", json=JOB, headers=headers)).json()
        view = await gateway(api.service).job(submitted["job_id"])
        assert view.job.owner == owner


async def test_own_page_behind_a_trusted_proxy_may_manage_and_no_other(tmp_path: Path) -> None:
    page = {"Origin": "https://images.example.com"}
    told = {**page, "X-Forwarded-Host": "images.example.com", "X-Forwarded-Proto": "https"}
    changed = attrs.evolve(settings(tmp_path), server=ServerSettings(trusted_proxies=("127.0.0.1",)))
    async with scripted_api(tmp_path, changed=changed) as api:
        assert (await api.http.post("/sdapi/v1/refresh-loras", headers=told)).status_code == 200
        forwarded = {**page, "Forwarded": "for=203.0.113.7;host=images.example.com;proto=https"}
        assert (await api.http.post("/sdapi/v1/refresh-loras", headers=forwarded)).status_code == 200
        # A proxy that knows the older headers alone passes this one on as its client sent it.
        passed_on = {**forwarded, "X-Forwarded-For": "203.0.113.7"}
        assert (await api.http.post("/sdapi/v1/refresh-loras", headers=passed_on)).status_code == 403
        assert (await api.http.post("/sdapi/v1/refresh-loras", headers=page)).status_code == 403
    async with scripted_api(tmp_path / "untrusted") as api:
        assert (await api.http.post("/sdapi/v1/refresh-loras", headers=told)).status_code == 403


async def test_proxy_that_is_no_address_does_not_start(tmp_path: Path) -> None:
    changed = attrs.evolve(settings(tmp_path), server=ServerSettings(trusted_proxies=("nginx",)))
    async with scripted_service(tmp_path, Script()) as service:
        of = gateway(service)
        of.settings = changed
        with pytest.raises(ConfigError, match="nginx"):
            create_app(of)


def test_connections_of_a_trusted_proxy_have_the_room_of_all() -> None:
    connections = OpenConnections(ConnectionLimits(total=2, per_address=1))
    with connections.place("127.0.0.1", lambda: None) as place:
        place.serve_request()
        assert connections.refusal("127.0.0.1") is not None
        assert connections.refusal("127.0.0.1", shared=True) is None
