"""Disks that do not answer: what clients are told, and that no request waits for ever."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mflux_api.gateway import questions
from mflux_api.jobs.job import StoredImage
from mflux_api.storage.checkpoints import Checkpoints
from mflux_api.storage.loras import LoraFiles
from tests.support.harness import gateway
from tests.support.scripted_api import scripted_api


def _content(image: StoredImage) -> bytes:
    return Path(image.path).read_bytes()


@pytest.mark.parametrize(
    ("method", "path", "owner", "call", "setting"),
    [
        ("GET", "/api/v1/models", Checkpoints, "state", "models.cache_dir"),
        ("GET", "/api/v1/models/demo/status", Checkpoints, "state", "models.cache_dir"),
        ("POST", "/api/v1/models/demo/load", Checkpoints, "folder", "models.cache_dir"),
        ("GET", "/api/v1/loras", LoraFiles, "look", "lora.dirs"),
        ("GET", "/api/v1/jobs/{}/images/0", Path, "stat", "generation.output_dir"),
        ("GET", "/api/v1/jobs/{}", Path, "stat", "generation.output_dir"),
    ],
)
async def test_read_of_a_disk_that_does_not_answer_ends_with_the_name_of_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str, owner: type, call: str, setting: str
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(questions, "DISK_SECONDS", 0.05)
    async with scripted_api(tmp_path) as api:
        job = await api.finished()
        original = getattr(owner, call)

        def hang(self: object, *arguments: object, **options: object) -> object:
            if owner is not Path or str(self) == job.images[0].path:
                assert answers.wait(10)
            return original(self, *arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(owner, call, hang)
            answer = await api.http.request(method, path.format(job.id))
            health = await api.http.get("/api/v1/health")
            answers.set()
        assert (answer.status_code, answer.json()["code"]) == (503, "SERVER_BUSY")
        assert setting in answer.json()["error"]
        assert health.status_code == 200


async def test_image_that_is_sent_in_pieces_is_whole(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        job = await api.finished(width=1024, height=1024)
        image = (await gateway(api.service).job(job.id)).job.images[0]
        async with api.http.stream("GET", f"/api/v1/jobs/{job.id}/images/0") as answer:
            pieces = [piece async for piece in answer.aiter_raw()]
        assert b"".join(pieces) == _content(image)
        assert int(answer.headers["Content-Length"]) == sum(map(len, pieces))
        assert answer.headers["Content-Type"] == "image/png"
