"""LoRAs over HTTP: links, and deleting by the name that the list has, never one that a job still needs."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest
import trio

from mflux_api.actors import messages as m
from mflux_api.engine.protocol import Run
from mflux_api.http.routes import loras
from mflux_api.images.child.protocol import DescribedLora
from mflux_api.jobs.job import Status
from mflux_api.storage.lora_folders import LoraFile, look
from mflux_api.storage.loras import LoraFiles
from tests.support.harness import ended, eventually, gateway, request, runs, settings, settled
from tests.support.safetensors_bytes import safetensors_bytes
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Hold, Script

NAMES = ("ink", "styles/oil", "styles/a b", "100% é?#", "plus+and&")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with LoRAs."""
    for name in NAMES:
        path = tmp_path / "loras" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(safetensors_bytes())
    return tmp_path


async def names(api: Api) -> list[str]:
    return [lora["name"] for lora in (await api.http.get("/api/v1/loras")).json()["loras"]]


async def test_lora_is_deleted_by_its_name_however_the_path_spells_it(folder: Path) -> None:
    async with scripted_api(folder) as api:
        assert len(await names(api)) == len(NAMES)
        for path in ("ink", "styles/oil.safetensors", "styles%2Fa%20b", quote("100% é?#"), "plus+and&"):
            answer = await api.http.delete(f"/api/v1/loras/{path}")
            assert (answer.status_code, answer.json()["deleted"]) == (200, True), path
            assert answer.json()["name"].endswith(".safetensors")
            again = await api.http.delete(f"/api/v1/loras/{path}")
            assert (again.status_code, again.json()["code"]) == (404, "LORA_NOT_FOUND")
        assert await names(api) == []
        assert os.listdir(folder / "loras" / "styles") == []


async def test_list_that_has_not_changed_is_the_same_bytes_for_all(folder: Path) -> None:
    """Of thousands of files it has megabytes, and many callers may read it slowly."""
    listing = look([folder / "loras"])
    described = (DescribedLora(),) * len(listing.files)
    render = loras._Render()
    first = render(listing, described)
    assert render(look([folder / "loras"]), (DescribedLora(),) * len(listing.files)) is first
    (folder / "loras" / "ink.safetensors").unlink()
    assert b'"ink.safetensors"' not in render(look([folder / "loras"]), described[1:])


async def test_any_other_name_is_404_and_nothing_is_gone(folder: Path) -> None:
    (folder / "secret.safetensors").touch()
    async with scripted_api(folder) as api:
        for path in ("nothing", "oil", "..%2Fsecret", "styles", "%FF", "styles%2F..%2Fink", "ink%00"):
            answer = await api.http.delete(f"/api/v1/loras/{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "LORA_NOT_FOUND"), path
            assert "GET /api/v1/loras" in answer.json()["error"]
            assert str(folder) not in answer.text
        assert len(await names(api)) == len(NAMES)
    assert (folder / "secret.safetensors").exists()


@pytest.mark.parametrize("follow_links", [False, True])
async def test_link_out_of_the_folder_is_a_lora_where_the_setting_says_so(folder: Path, follow_links: bool) -> None:
    (folder / "blob").write_bytes(safetensors_bytes())
    link = folder / "loras" / "hub.safetensors"
    link.symlink_to(folder / "blob")
    usual, script = settings(folder), Script()
    changed = attrs.evolve(usual, lora=attrs.evolve(usual.lora, follow_links=follow_links))
    async with scripted_api(folder, script, changed=changed) as api:
        assert ("hub.safetensors" in await names(api)) is follow_links
        answer = await api.http.post("/api/v1/generate", json={"prompt": "a", "model": "demo", "lora_files": ["hub"]})
        if follow_links:
            await ended(api.service, answer.json()["job_id"])
            assert [run.lora_paths for run in script.engines[0].received if isinstance(run, Run)] == [(str(link),)]
        else:
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_PARAMETER")
            assert "set lora.follow_links = true" in answer.json()["error"]


async def test_lora_that_a_job_names_is_kept_until_no_job_does(folder: Path) -> None:
    """A job that waits would fail over it; so would one that reads it by a link."""
    (folder / "loras" / "alias.safetensors").symlink_to("ink.safetensors")
    hold = Hold()
    async with scripted_api(folder, Script(at={"run": hold})) as api:
        running = await api.service.submit(attrs.evolve(request(), lora_files=("ink",)))
        waiting = await api.service.submit(attrs.evolve(request(), lora_files=("alias", "ink")))
        other = await api.service.submit(attrs.evolve(request(), lora_files=("styles/oil",)))
        await hold.reached.wait()
        refused = await api.http.delete("/api/v1/loras/ink")
        assert (refused.status_code, refused.json()["code"]) == (409, "LORA_IN_USE")
        assert refused.json()["details"] == {"name": "ink.safetensors", "jobs": 2}
        assert "named by 2 job(s)" in refused.json()["error"]
        assert (await api.http.delete("/api/v1/loras/alias")).json()["details"]["jobs"] == 1
        assert (await api.http.delete(f"/api/v1/loras/{quote('plus+and&')}")).status_code == 200
        hold.release.set()
        for job in (running, waiting, other):
            await ended(api.service, job.id)
        for name in ("ink", "alias", "styles/oil"):
            expected = 404 if name == "alias" else 200
            assert (await api.http.delete(f"/api/v1/loras/{name}")).status_code == expected


async def test_job_whose_lora_is_deleted_while_it_is_accepted_is_refused_and_does_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked the file up before the deletion began, and was counted after the deletion had asked who needs it."""
    asked, go_on, token = trio.Event(), threading.Event(), trio.lowlevel.current_trio_token()
    remove, hold = LoraFiles.remove, Hold()
    script = Script(at={"run": hold})

    def slow(self: LoraFiles, file: LoraFile) -> None:
        token.run_sync_soon(asked.set)
        assert go_on.wait(10)
        remove(self, file)

    monkeypatch.setattr(LoraFiles, "remove", slow)
    async with scripted_api(folder, script) as api, trio.open_nursery() as nursery:
        # A free engine would begin with the job before it is taken back.
        await api.service.submit(request())
        await hold.reached.wait()
        submit = gateway(api.service)._submit

        async def submit_late(message: m.Submit) -> m.Accepted:
            nursery.start_soon(api.http.delete, "/api/v1/loras/ink")
            await asked.wait()
            accepted = await submit(message)
            go_on.set()
            return accepted

        monkeypatch.setattr(gateway(api.service), "_submit", submit_late)
        answer = await api.http.post("/api/v1/generate", json={"prompt": "a", "model": "demo", "lora_files": ["ink"]})
        assert (answer.status_code, answer.json()["details"]["field"]) == (400, "lora_files")
        hold.release.set()
        await eventually(lambda: settled(api.service, 2))
        ((refused, _), _) = await gateway(api.service).jobs()
        assert refused.job.status == Status.CANCELLED
        assert len(runs(script)) == 1


async def test_disk_that_refuses_a_deletion_is_an_error_that_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async with scripted_api(folder) as api:
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", refuse)
            answer = await api.http.delete("/api/v1/loras/ink")
        assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL_ERROR")
        assert "writable" in answer.json()["error"]
        assert str(folder) not in answer.text


async def test_a_cancelled_job_needs_its_lora_no_more(folder: Path) -> None:
    hold = Hold()
    async with scripted_api(folder, Script(at={"run": hold})) as api:
        job = await api.service.submit(attrs.evolve(request(), lora_files=("ink",)))
        await hold.reached.wait()
        assert (await api.http.delete("/api/v1/loras/ink")).status_code == 409
        await api.http.delete(f"/api/v1/jobs/{job.id}")
        await ended(api.service, job.id)
        assert (await api.http.delete("/api/v1/loras/ink")).status_code == 200
