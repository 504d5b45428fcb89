"""The commands of docs/api.md and docs/clients.md that take more than one line, run as printed but for the host."""

from __future__ import annotations

import base64
import os
import re
import shutil
from pathlib import Path

import attrs
import pytest
import trio

from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import append, new_entry
from mflux_api.config import SecuritySettings
from tests.support.harness import ended, settings
from tests.support.sample_images import scene, to_base64
from tests.support.scripted_api import Api, scripted_api
from tests.support.server import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(any(shutil.which(tool) is None for tool in ("bash", "curl", "jq")), reason="needs curl and jq"),
]

KEY = "the key of those who read the document"
BLOCKS = [
    block
    for name in ("api.md", "clients.md")
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / name).read_text("utf-8"), re.DOTALL)
]


def example(word: str) -> str:
    """The one block of the document that has a word."""
    (block,) = [each for each in BLOCKS if word in each]
    return str(block)


async def run(block: str, api: Api, folder: Path, **variables: str) -> str:
    script = block.replace("http://localhost:7861", f"http://127.0.0.1:{api.port}")
    done = await trio.run_process(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ | variables,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return str(done.stdout.decode())


async def test_form_with_files_is_a_job(tmp_path: Path) -> None:
    for name in ("photo.png", "mask.png"):
        (tmp_path / name).write_bytes(base64.b64decode(to_base64(scene((64, 64)))))
    async with scripted_api(tmp_path) as api:
        printed = await run(example("curl -F"), api, tmp_path)
        assert '"job_id"' in printed


async def test_image_of_a_job_that_was_not_waited_for(tmp_path: Path) -> None:
    async with scripted_api(tmp_path) as api:
        await run(example("respond-async"), api, tmp_path)
    assert "event: complete" in (tmp_path / "events.txt").read_text()
    assert (tmp_path / "lake.webp").read_bytes()[8:12] == b"WEBP"


async def test_session_and_ticket_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    append(path, new_entry("reader", KEY, [Scope.GENERATE], None))
    changed = attrs.evolve(settings(tmp_path), security=SecuritySettings(keys_file=path))
    async with scripted_api(tmp_path, changed=changed) as api:
        asked = {"prompt": "a lake", "model": "demo", "width": 64, "height": 64, "steps": 1}
        made = await api.http.post("/api/v1/generate", json=asked, headers={"Authorization": f"Bearer {KEY}"})
        job: str = made.json()["job_id"]
        await ended(api.service, job)
        printed = await run(example("cookies.txt"), api, tmp_path, KEY=KEY, JOB=job)
        assert '"name":"reader"' in printed
        assert f'"id":"{job}"' in printed
        assert "event: complete" in printed
        assert KEY not in (tmp_path / "cookies.txt").read_text("utf-8")
