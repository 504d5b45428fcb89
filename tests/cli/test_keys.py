"""``mflux-api keys``, and a running server that hears of its keys by SIGUSR1."""

import os
import signal
from pathlib import Path

import pytest

from mflux_api.cli import doctor
from mflux_api.cli.main import main
from mflux_api.config import SecuritySettings, Settings
from tests.support import scripted_server
from tests.support.server import DEMO_CONFIG, api_client, serving

KEYED = f'{DEMO_CONFIG}[security]\nkeys_file = "private/keys.toml"\n'


def configured(folder: Path, text: str = KEYED) -> tuple[str, str]:
    (folder / "private").mkdir(exist_ok=True)
    (folder / "config.toml").write_text(text, "utf-8")
    return "--config", str(folder / "config.toml")


def new_key(folder: Path, name: str, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["keys", "new", name, *configured(folder), *options]) == 0
    return capfd.readouterr().out.strip()


def test_new_key_is_printed_once_and_its_digest_kept_for_the_owner_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = new_key(tmp_path, "ana", capfd, "--scopes", "read", "generate", "--max-jobs", "3")
    assert len(secret) > 40
    path = tmp_path / "private" / "keys.toml"
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret not in path.read_text("utf-8")
    new_key(tmp_path, "boss", capfd, "--scopes", "manage")
    assert main(["keys", "list", *configured(tmp_path)]) == 0
    assert capfd.readouterr().out == "ana  generate, read  at most 3 waiting job(s)\nboss  manage\n"


def test_name_that_is_taken_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    new_key(tmp_path, "ana", capfd)
    assert main(["keys", "new", "ana", *configured(tmp_path)]) == 2
    assert "the name 'ana' is used twice" in capfd.readouterr().err


def test_without_a_file_the_entry_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "ana", *configured(tmp_path, DEMO_CONFIG)]) == 0
    shown = capfd.readouterr()
    assert shown.out.startswith("mflux_")
    assert '[[keys]]\nname = "ana"\nhash = "sha256:' in shown.err
    assert shown.out.strip() not in shown.err
    assert main(["keys", "list", *configured(tmp_path, DEMO_CONFIG)]) == 2


def test_server_does_not_start_with_a_file_that_others_can_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new_key(tmp_path, "ana", capfd)
    (tmp_path / "private" / "keys.toml").chmod(0o644)
    # Where the command would go on, it would take this process's signals.
    monkeypatch.setattr("mflux_api.cli.serve.trio.run", pytest.fail)
    before = {kind: signal.getsignal(kind) for kind in signal.valid_signals() if kind not in (9, 19)}
    try:
        assert main(["serve", *configured(tmp_path)]) == 2
    finally:
        for kind, handler in before.items():
            if callable(handler) or isinstance(handler, signal.Handlers):
                signal.signal(kind, handler)
    error = capfd.readouterr().err
    assert "chmod 600" in error
    assert str(tmp_path) not in error


def test_doctor_says_what_is_wrong_with_the_keys(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    new_key(tmp_path, "ana", capfd)
    settings = Settings(security=SecuritySettings(keys_file=tmp_path / "private" / "keys.toml", api_keys=("short",)))
    (finding,) = doctor._keys(settings)
    assert (finding.state, finding.says) == ("warning", "2, 1 too short")
    (tmp_path / "private" / "keys.toml").chmod(0o644)
    (finding,) = doctor._keys(settings)
    assert finding.state == "problem"
    assert "chmod 600" in finding.advice
    assert [(each.state, each.says) for each in doctor._keys(Settings())] == [
        ("ok", "none: open to all who reach the port")
    ]


@pytest.mark.slow
def test_running_server_hears_of_its_keys_and_log_level_by_a_signal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = new_key(tmp_path, "ana", capfd)
    path = tmp_path / "private" / "keys.toml"
    with (
        serving(tmp_path, KEYED, module=scripted_server.MODULE) as server,
        api_client(server.url) as client,
    ):

        def status(secret: str) -> int:
            return client.get("/api/v1/queue", headers={"Authorization": f"Bearer {secret}"}).status_code

        def reload(expected: str) -> None:
            server.process.send_signal(signal.SIGUSR1)
            for _ in range(2000):
                client.get("/livez")
                if any(expected in line for line in server.lines):
                    return
            pytest.fail(f"no line with '{expected}': {server.lines}")

        assert status(first) == 200
        second = new_key(tmp_path, "bob", capfd)
        assert status(second) == 401
        reload("there are 2 API key(s) now")
        assert (status(first), status(second)) == (200, 200)
        os.chmod(path, 0o644)
        reload("stay as they were: security.keys_file (keys.toml): its mode is 644")
        assert (status(first), status(second)) == (200, 200)
        os.chmod(path, 0o600)
        path.write_text("[[keys]]" + path.read_text("utf-8").rpartition("[[keys]]")[2], "utf-8")
        reload("there are 1 API key(s) now")
        assert (status(first), status(second)) == (401, 200)
        (tmp_path / "config.toml").write_text(f'{KEYED}[server]\nlog_level = "warning"\n', "utf-8")
        os.chmod(path, 0o640)
        reload("its mode is 640")
        assert server.stop() == 0
        assert not any("INFO" in line and "stopped" in line for line in server.lines)
        assert not any(secret in line for line in server.lines for secret in (first, second))
