"""``mflux-api jobs`` as a person uses it, with and without a running server."""

import shutil
import signal
import subprocess
import sys
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
        assert any("the job store is new, but generation.output_dir has images" in line for line in server.lines)
        assert server.stop() == 0
