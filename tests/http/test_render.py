"""Results as JSON: megabytes of base64 that must not hold up other requests."""

import base64
import threading
from pathlib import Path
from typing import Any

import pytest

from mflux_api.http import responses
from mflux_api.http.render import Renderer
from tests.support.harness import ended, gateway, request, scripted_service
from tests.support.scripted_engine import Script


async def test_result_is_rendered_in_a_worker_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[threading.Thread] = set()

    def noting(function: Any) -> Any:
        def call(value: Any) -> Any:
            # A preview is small, and is encoded where it arrives.
            if not isinstance(value, bytes) or value.startswith(b"\x89PNG"):
                threads.add(threading.current_thread())
            return function(value)

        return call

    monkeypatch.setattr(responses, "to_json", noting(responses.to_json))
    monkeypatch.setattr(base64, "b64encode", noting(base64.b64encode))
    async with scripted_service(tmp_path, Script()) as service:
        job = await ended(service, (await service.submit(request(num_images=2))).id)
        data = await Renderer(gateway(service)).job(await gateway(service).job(job.id))
    assert job.id.encode() in data
    assert threads
    assert threading.main_thread() not in threads
