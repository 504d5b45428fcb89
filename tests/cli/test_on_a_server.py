"""Commands that ask a running server, against one over a scripted engine in this process."""

import json
from pathlib import Path

import attrs
import pytest
import trio

from mflux_api.cli.exit_status import EXIT_FAILED, EXIT_USAGE
from mflux_api.cli.main import main
from mflux_api.cli.table import table
from mflux_api.config import SecuritySettings
from mflux_api.version import package_version
from tests.support.command_line import typed
from tests.support.harness import request, settings
from tests.support.lora_files import lora_bytes, write_lora
from tests.support.scripted_api import Api, scripted_api
from tests.support.scripted_engine import Fail, Hold, Script


async def said(
    api: Api, folder: Path, capfd: pytest.CaptureFixture[str], *arguments: str, status: int = 0
) -> list[str]:
    """Return the lines of standard output, and of standard error where the command fails."""
    assert await typed(api.port, folder, *arguments) == status
    out, error = capfd.readouterr()
    return (out + error).splitlines() if status else out.splitlines()


async def test_jobs_are_listed_newest_first_and_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with scripted_api(tmp_path) as api:
        assert await said(api, tmp_path, capfd, "jobs", "list") == ["no jobs"]
        first = await api.finished(prompt="a lake\x1b[2J at dawn")
        second = await api.finished(prompt="a house")
        header, *rows = await said(api, tmp_path, capfd, "jobs", "list")
        assert header.split() == ["ID", "STATUS", "CREATED", "MODEL", "PROMPT"]
        assert [row.split()[:2] for row in rows] == [[second.id, "completed"], [first.id, "completed"]]
        # What a prompt holds does nothing to a terminal.
        assert rows[1].endswith("a lake\ufffd[2J at dawn")
        found = await said(api, tmp_path, capfd, "jobs", "list", "--search", "dawn", "--status", "completed", "--json")
        assert [job["id"] for job in json.loads("\n".join(found))] == [first.id]
        assert len(await said(api, tmp_path, capfd, "jobs", "list", "--limit", "1")) == 2
        refused = await said(api, tmp_path, capfd, "jobs", "list", "--limit", "0", status=EXIT_USAGE)
        assert refused == ["mflux-api: --limit: expected 1 to 500"]


async def test_watch_ends_with_the_job_as_the_job_did(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with scripted_api(tmp_path, Script(at={"denoising": Fail()})) as api:
        failed = await api.service.submit(request(1))
        [line] = await said(api, tmp_path, capfd, "jobs", "watch", failed.id, status=EXIT_FAILED)
        assert line.startswith(f"{failed.id}: failed, ")
        made = await api.service.submit(request(7))
        assert await said(api, tmp_path, capfd, "jobs", "watch", made.id) == [
            f"{made.id}: completed, 1 image(s), seed 7"
        ]
        [unknown] = await said(api, tmp_path, capfd, "jobs", "watch", "000000000000", status=EXIT_FAILED)
        assert unknown == "mflux-api: Job '000000000000' not found"


async def test_jobs_are_cancelled_by_id_and_all_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hold = Hold()
    async with scripted_api(tmp_path, Script(at={"denoising": hold})) as api:
        ids = [(await api.service.submit(request(seed))).id for seed in range(3)]
        with trio.fail_after(5):
            await hold.reached.wait()
        header, running, *waiting, total = await said(api, tmp_path, capfd, "queue")
        assert header.split() == ["ID", "PLACE", "LEFT", "PROMPT"]
        assert [row.split()[0] for row in (running, *waiting)] == ids
        assert [row.split()[1] for row in waiting] == ["#1", "#2"]
        assert total == "2 waiting"
        queue = json.loads("\n".join(await said(api, tmp_path, capfd, "queue", "--json")))
        assert (queue["active"]["job_id"], queue["total"]) == (ids[0], 2)
        lines = await said(api, tmp_path, capfd, "jobs", "cancel", ids[2], "000000000000", status=EXIT_FAILED)
        assert lines == [f"{ids[2]}: cancelled", "000000000000: Job '000000000000' not found"]
        everything = await said(api, tmp_path, capfd, "jobs", "cancel", "--all")
        assert sorted(everything) == sorted(f"{job_id}: cancelled" for job_id in ids[:2])
        assert await said(api, tmp_path, capfd, "queue") == ["0 waiting"]
        for arguments in ((), (ids[0], "--all")):
            refused = await said(api, tmp_path, capfd, "jobs", "cancel", *arguments, status=EXIT_USAGE)
            assert refused == ["mflux-api: name the jobs to cancel, or give --all"]


async def test_models_of_a_server_are_listed_and_loaded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with scripted_api(tmp_path) as api:
        header, first, *_ = await said(api, tmp_path, capfd, "models", "list")
        assert (header.split(), first.split()[:2]) == (["MODEL", "STATE", "SIZE", "WEIGHTS"], ["demo", "ready"])
        assert await said(api, tmp_path, capfd, "models", "load", "demo") == ["demo: loaded"]
        assert "state  loaded" in await said(api, tmp_path, capfd, "models", "status", "demo")
        assert await said(api, tmp_path, capfd, "models", "unload", "demo") == ["demo: ready"]
        assert await said(api, tmp_path, capfd, "models", "download", "demo") == ["demo: ready"]


def test_list_of_models_fits_a_terminal_with_those_on_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:3]] == ["demo", "demo-base"]
    assert main(["models", "list", "--long"]) == 0
    assert "black-forest-labs/FLUX.2-klein-4B@" in capsys.readouterr().out
    assert main(["models", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "ready"


@pytest.mark.parametrize("here", [True, False])
async def test_loras_come_and_go_here_and_on_a_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], here: bool
) -> None:
    write_lora(tmp_path / "style.safetensors", seed=1)
    (tmp_path / "cut.safetensors").write_bytes(lora_bytes(1)[:-1])
    async with scripted_api(tmp_path) as api:

        async def lines(*arguments: str, status: int = 0) -> list[str]:
            if not here:
                return await said(api, tmp_path, capfd, "loras", *arguments, status=status)
            config = tmp_path / "here.toml"
            config.write_text('[lora]\ndirs = ["mine"]\n[jobs]\nstate_dir = "elsewhere"\n', "utf-8")
            whole = ["loras", *arguments, "--config", str(config)]
            assert await trio.to_thread.run_sync(main, whole) == status
            out, error = capfd.readouterr()
            return (out + error).splitlines()

        assert await lines("add", str(tmp_path / "style.safetensors"), "--name", "ink") == ["ink.safetensors"]
        assert [row.split()[0] for row in await lines("list")] == ["LORA", "ink.safetensors"]
        assert [each["name"] for each in json.loads("\n".join(await lines("list", "--json")))] == ["ink.safetensors"]
        info = await lines("info", "ink")
        assert "format  lora" in info
        assert "use     mflux-api generate … --lora 'ink:0.8'" in info
        [taken] = await lines("add", str(tmp_path / "style.safetensors"), "--name", "ink", status=EXIT_FAILED)
        assert "there is a ink.safetensors" in taken
        assert await lines("add", str(tmp_path / "style.safetensors"), "--name", "ink", "--overwrite")
        [damaged] = await lines("add", str(tmp_path / "cut.safetensors"), status=EXIT_FAILED)
        assert damaged.startswith("mflux-api: ")
        assert await lines("remove", "ink") == [f"{'ink.safetensors' if here else 'ink'}: removed"]
        [gone] = await lines("info", "ink", status=EXIT_FAILED)
        assert "ink" in gone
        assert await lines("list") == ["no LoRAs: put .safetensors files into a folder of lora.dirs"]


async def test_doctor_says_what_a_server_has_as_a_block_to_paste(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with scripted_api(tmp_path) as api:
        await api.finished()
        first, *lines, nothing, last = await said(api, tmp_path, capfd, "doctor", "--report")
        assert (first, nothing, last) == ("```text", "Nothing is wrong.", "```")
        assert f"✓ mflux-api  {package_version()}" in lines
        assert "✓ server     healthy" in lines
        [engine] = [line for line in lines if line.startswith("✓ engine 0")]
        assert "ready" in engine
        assert engine.endswith(", demo")


async def test_server_with_keys_is_sent_one_and_its_refusal_says_where_it_goes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secured = attrs.evolve(settings(tmp_path), security=SecuritySettings(api_keys=("0123456789abcdef",)))
    async with scripted_api(tmp_path, changed=secured) as api:
        [refused] = await said(api, tmp_path, capfd, "queue", status=EXIT_FAILED)
        assert refused.endswith("; set MFLUX_API_KEYS to a key")
        monkeypatch.setenv("MFLUX_API_KEYS", "0123456789abcdef")
        assert await said(api, tmp_path, capfd, "queue") == ["0 waiting"]


async def test_server_that_is_not_there_is_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (("queue",), ("jobs", "list"), ("loras", "list"), ("generate", "a"), ("models", "list")):
        status = await trio.to_thread.run_sync(main, [*arguments, "--url", "http://127.0.0.1:1"])
        assert status == EXIT_FAILED
        out, error = capfd.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert "no server answers at http://127.0.0.1:1 (connection refused); start one, or name it with --url" in error


def test_last_column_is_cut_to_the_line() -> None:
    rows = [("ID", "PROMPT"), ("1", "a lake at dawn")]
    assert table(rows, 12).splitlines() == ["ID  PROMPT", "1   a lake …"]
    assert table(rows).splitlines()[1] == "1   a lake at dawn"
