"""``mflux-api jobs`` as a person uses it, with and without a running server."""

import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support import scripted_server
from tests.support.api_jobs import submit, wait_for_end
from tests.support.server import DEMO_CONFIG, api_client, clean_environment, serving

pytestmark = pytest.mark.slow


def jobs(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mflux_api", "jobs", *arguments],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def listed(database: Path) -> list[str]:
    with SqliteRepository(database) as repository:
        return [job.id for job in repository.page(limit=100, cursor=None, status=None).jobs]


def test_backup_of_a_running_server_and_the_file_of_a_killed_one_have_the_finished_jobs(tmp_path: Path) -> None:
    with (
        serving(tmp_path, DEMO_CONFIG, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):
        finished = [submit(client, seed=seed) for seed in range(3)]
        for job_id in finished:
            wait_for_end(client, job_id)
        done = jobs(tmp_path, "backup", "backup.sqlite3")
        assert (done.returncode, done.stdout, done.stderr) == (0, "backup.sqlite3: 3 job(s)\n", "")
        again = jobs(tmp_path, "backup", "backup.sqlite3")
        assert (again.returncode, again.stderr) == (
            2,
            "mflux-api: backup.sqlite3: it is there already; choose another name\n",
        )
        server.stop(signal.SIGKILL)
    for name, source in (("copied", tmp_path / "output" / DATABASE_NAME), ("restored", tmp_path / "backup.sqlite3")):
        (tmp_path / name).mkdir()
        assert set(listed(Path(shutil.copy(source, tmp_path / name / DATABASE_NAME)))) == set(finished)


def test_server_whose_database_is_lost_says_so_at_its_start(tmp_path: Path) -> None:
    with (
        serving(tmp_path, DEMO_CONFIG, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):
        wait_for_end(client, submit(client))
        assert not any("the job store is new" in line for line in server.lines)
        server.stop(signal.SIGKILL)
    for file in (tmp_path / "output").glob(f"{DATABASE_NAME}*"):
        file.unlink()
    with serving(tmp_path, DEMO_CONFIG, module=scripted_server.MODULE) as server:
        assert any(
            "the job store is new, so the images that are in generation.output_dir are not listed" in line
            for line in server.lines
        )
        assert server.stop() == 0


@pytest.mark.parametrize("running", [True, False])
def test_prune_removes_old_records_and_leaves_images_with_and_without_a_server(tmp_path: Path, running: bool) -> None:
    """A server takes a free port, so it is named; without --url and without a server the lock is free."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, DEMO_CONFIG, module=scripted_server.MODULE))
        client = stack.enter_context(api_client(server.url))
        ids = [submit(client, seed=seed) for seed in range(2)]
        for job_id in ids:
            wait_for_end(client, job_id)
        url = ["--url", server.url] if running else []
        if not running:
            refused = jobs(tmp_path, "prune", "--older-than", "0m")
            # The lock is held, and the configured address is not that of this server.
            assert (refused.returncode, "no server answers at" in refused.stderr) == (1, True)
            assert server.stop() == 0
        for age, expected in (("1h", []), ("999999w", []), ("0m", ids)):
            would = jobs(tmp_path, "prune", "--older-than", age, "--dry-run", *url)
            assert would.stdout.splitlines() == [*expected, f"{len(expected)} record(s) would be removed"], would.stderr
        done = jobs(tmp_path, "prune", "--older-than", "0m", *url)
        assert done.stdout.splitlines() == [*ids, "2 record(s) removed"], done.stderr
        if running:
            assert client.get(f"/api/v1/jobs/{ids[0]}").status_code == 410
            assert server.stop() == 0
    assert listed(tmp_path / "output" / DATABASE_NAME) == []
    assert {path.name for path in (tmp_path / "output").rglob("*.png")} == {f"{job_id}-0.png" for job_id in ids}


def test_prune_wants_an_age_and_a_database(tmp_path: Path) -> None:
    for age in ("soon", "-1h", "1", "h"):
        refused = jobs(tmp_path, "prune", f"--older-than={age}")
        assert refused.returncode == 2
        assert "is not an age; write it like 90m, 12h, 30d or 8w" in refused.stderr
    none = jobs(tmp_path, "prune", "--older-than", "1h")
    assert (none.returncode, "there is none in the state directory" in none.stderr) == (2, True)
    assert not (tmp_path / "output").exists()


def test_prune_route_refuses_what_it_does_not_understand_and_foreign_pages(tmp_path: Path) -> None:
    with (
        serving(tmp_path, DEMO_CONFIG, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):
        job_id = submit(client)
        wait_for_end(client, job_id)
        for body, field in (
            ({}, "older_than_hours"),
            ({"older_than_hours": "1"}, "older_than_hours"),
            ({"older_than_hours": -1}, "older_than_hours"),
            ({"older_than_hours": 1, "dry_run": "yes"}, "dry_run"),
        ):
            refused = client.post("/api/v1/jobs/prune", json=body)
            assert (refused.status_code, refused.json()["details"]["field"]) == (400, field)
        foreign = client.post(
            "/api/v1/jobs/prune", json={"older_than_hours": 0}, headers={"Origin": "http://evil.example"}
        )
        assert (foreign.status_code, foreign.json()["code"]) == (403, "ORIGIN_NOT_ALLOWED")
        assert client.get(f"/api/v1/jobs/{job_id}").status_code == 200
