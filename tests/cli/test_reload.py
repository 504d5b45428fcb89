"""``mflux-api reload``: the server of this state directory hears of it, and nothing else is ever signalled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mflux_api.cli.exit_status import EXIT_FAILED, EXIT_USAGE
from mflux_api.cli.main import main
from mflux_api.storage.state_lock import LOCK_NAME, StateLock, find_holder
from tests.support import scripted_server
from tests.support.server import api_client, serving

CONFIG = '[generation]\noutput_dir = "./output"\n[security]\napi_keys = ["a-key-that-is-long-enough"]\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG, "utf-8")
    path.chmod(0o600)
    return path


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    told: list[int] = []
    monkeypatch.setattr("mflux_api.cli.reload.os.kill", lambda process, _: told.append(process))
    return told


def run(config: Path) -> int:
    return main(["reload", "--config", str(config)])


def test_server_of_the_state_directory_is_signalled(
    config: Path, signalled: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    with StateLock(config.parent / "output") as lock:
        lock.say_reloads()
        assert run(config) == 0
    assert signalled == [os.getpid()]
    assert f"(process {os.getpid()})" in capfd.readouterr().out


def test_without_a_server_the_command_says_what_to_do(
    config: Path, signalled: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(config) == EXIT_FAILED
    with StateLock(config.parent / "output") as lock:
        lock.say_reloads()
    # It has ended, and its file stays.
    assert run(config) == EXIT_FAILED
    assert signalled == []
    assert "no server runs on this state directory" in capfd.readouterr().err


def test_process_that_does_not_reload_is_not_signalled(
    config: Path, signalled: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    with StateLock(config.parent / "output"):
        assert run(config) == EXIT_FAILED
    assert signalled == []
    assert "is not a server that reloads" in capfd.readouterr().err


def test_process_that_does_not_have_the_lock_is_not_signalled(
    config: Path, signalled: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        with StateLock(config.parent / "output") as lock:
            lock.say_reloads()
            # As seen from another container, whose processes have other numbers.
            (config.parent / "output" / LOCK_NAME).write_text(f"{other.pid}\nreloads\n", "ascii")
            assert run(config) == EXIT_FAILED
        other.communicate(b"\n")
    assert signalled == []
    assert "cannot be reached from here" in capfd.readouterr().err


def test_mistake_in_the_keys_is_told_and_nothing_is_signalled(
    config: Path, signalled: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    config.write_text('[generation]\noutput_dir = "./output"\n[security]\nkeys_file = "none.toml"\n', "utf-8")
    with StateLock(config.parent / "output") as lock:
        lock.say_reloads()
        assert run(config) == EXIT_USAGE
    assert signalled == []
    assert "security.keys_file (none.toml): no such file" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "reloads\n", "-1\nreloads\n", "0\nreloads\n", "99999999999\nreloads\n", "x\n"])
def test_file_that_names_no_process_has_no_holder(text: str, tmp_path: Path) -> None:
    with StateLock(tmp_path):
        (tmp_path / LOCK_NAME).write_text(text, "ascii")
        assert find_holder(tmp_path) is None


@pytest.mark.slow
def test_running_server_reloads_and_its_log_is_json(tmp_path: Path) -> None:
    config = f'{CONFIG}[logging]\nformat = "json"\n'
    with serving(tmp_path, config, module=scripted_server.MODULE) as server:
        (tmp_path / "config.toml").write_text(f'{config}[server]\nlog_level = "info"\n', "utf-8")
        command = [sys.executable, "-m", "mflux_api", "reload"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        with api_client(server.url) as client:
            for _ in range(2000):
                client.get("/livez")
                if any("there are 1 API key(s) now" in line for line in server.lines):
                    break
            else:
                pytest.fail(f"it did not reload: {server.lines}")
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert any(line["message"].startswith("listening on http://") and line["level"] == "info" for line in lines)
    assert any(line["message"] == "stopped" for line in lines)
