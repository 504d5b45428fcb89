"""``mflux-api models`` as a person uses it, against a hub and a server on loopback."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub_downloads import REPO, TRANSFORMER
from tests.support.hub_server import COMMIT, Hub
from tests.support.server import clean_environment, serving

pytestmark = pytest.mark.slow

CONFIG = f"""
[models]
default = "demo"

[[models.custom]]
name = "tiny"
base = "flux2-klein-4b"
repo = "{REPO}"
"""


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``mflux-api models`` with the configuration in a folder."""
    (folder / "config.toml").write_text(CONFIG, "utf-8")
    return subprocess.run(
        [sys.executable, "-m", "mflux_api", "models", *arguments],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_list_download_status_and_delete_without_a_server(hub: Hub, tmp_path: Path) -> None:
    listed = run(tmp_path, "list").stdout.splitlines()
    assert len(listed) == 35
    assert any(line.split()[:3] == ["tiny", "not", "downloaded"] for line in listed)
    hub.faults.bytes_per_second = 4e6
    done = run(tmp_path, "download", "tiny", "demo")
    assert done.returncode == 0, done.stderr
    # No terminal, and done in less than half a minute.
    assert done.stderr == ""
    path = Path(done.stdout.splitlines()[0].removeprefix("tiny: "))
    assert (path / TRANSFORMER).is_file()
    assert "nothing to download" in done.stdout
    shown = run(tmp_path, "status", "tiny").stdout
    assert COMMIT in shown
    assert "ready" in shown
    assert run(tmp_path, "delete", "tiny").stdout == "tiny: deleted\n"
    assert not path.exists()
    refused = run(tmp_path, "delete", "tiny", "demo")
    assert refused.returncode == 1
    assert "nothing to delete" in refused.stderr


def test_a_failed_download_names_the_reason_and_sets_the_exit_status(hub: Hub, tmp_path: Path) -> None:
    hub.faults.gated = True
    failed = run(tmp_path, "download", "tiny")
    assert failed.returncode == 1
    assert "HF_TOKEN" in failed.stderr
    assert "Traceback" not in failed.stderr
    # Nothing has arrived, so nothing is partial.
    assert any(line.split()[:3] == ["tiny", "not", "downloaded"] for line in run(tmp_path, "list").stdout.splitlines())
    unknown = run(tmp_path, "download", "nonsense")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "models list" in unknown.stderr


def test_load_unload_and_delete_are_a_running_servers(hub: Hub, tmp_path: Path) -> None:
    alone = run(tmp_path, "load", "demo", "--url", "http://127.0.0.1:9")
    assert alone.returncode == 1
    assert "no server answers" in alone.stderr
    assert run(tmp_path, "download", "tiny").returncode == 0
    with serving(tmp_path, CONFIG, hub.environ()) as server:
        assert run(tmp_path, "load", "tiny", "--url", server.url).stdout == "tiny: loaded\n"
        assert run(tmp_path, "unload", "tiny", "--url", server.url).stdout == "tiny: ready\n"
        kept = run(tmp_path, "delete", "tiny")
        # The configuration's port is not the one that this server has.
        assert "no server answers" in kept.stderr
        assert run(tmp_path, "delete", "tiny", "--url", server.url).stdout == "tiny: deleted\n"
        refused = run(tmp_path, "delete", "demo", "--url", server.url)
        assert refused.returncode == 1
        assert "comes with the package" in refused.stderr
