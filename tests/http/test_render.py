"""Results as JSON: megabytes of base64 that must not hold up other requests."""

import base64
import binascii
import json
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mflux_api.http.render import Renderer
from tests.support.harness import ended, gateway, request, scripted_service
from tests.support.scripted_engine import Script


async def test_images_are_encoded_in_a_worker_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[threading.Thread] = set()

    def noting(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            threads.add(threading.current_thread())
            return function(*arguments, **options)

        return call

    monkeypatch.setattr("mflux_api.images.encode.b2a_base64", noting(binascii.b2a_base64))
    async with scripted_service(tmp_path, Script()) as service:
        job = await ended(service, (await service.submit(request(num_images=2))).id)
        with ExitStack() as held:
            answer = await Renderer(gateway(service)).job(await gateway(service).job(job.id), held)
    result = json.loads(b"".join(answer.pieces()))["result"]
    assert [base64.b64decode(image) for image in result["images"]] == [
        Path(each.path).read_bytes()  # noqa: ASYNC240
        for each in job.images
    ]
    assert threads
    assert threading.main_thread() not in threads
