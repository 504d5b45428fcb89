"""`mflux-api mcp`: what keeps it from starting, in words. tests/mcp has what it does."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from mflux_api.cli.main import main
from mflux_api.config import load_settings
from mflux_api.storage.state_lock import StateLock
from tests.support.server import ROOT


def complaint(capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """Run the command, which has to refuse, and return what it says."""
    assert main(["mcp", *options]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    return err


def test_missing_extra_says_what_to_type(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "mflux_api.mcp.server", raising=False)
    monkeypatch.setitem(sys.modules, "mcp_types", None)
    said = complaint(capfd)
    assert "type `uv sync --extra mcp` in a checkout" in said
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["mcp"]
    (requirement,) = re.findall(r"`pip install '([^']+)'`", said)
    assert requirement in extra


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--root", "nowhere"], "--root nowhere: not a folder; name one that is there"),
        (["--url", "::"], "--url is not the address of a server: write http://host:port"),
        (["--output-dir", "file/images"], "generation.output_dir cannot be written (a folder above it is a file)"),
    ],
)
def test_wrong_options_are_named(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert says in complaint(capfd, *options)


def test_server_on_the_same_folder_is_pointed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mflux_api.cli.mcp import warn_of_server

    monkeypatch.chdir(tmp_path)
    settings = load_settings(environ={})
    warn_of_server(settings)
    assert caplog.messages == []
    lock = StateLock.from_settings(settings)
    warn_of_server(settings)
    lock.close()
    warn_of_server(settings)
    assert caplog.messages == [
        "a server runs here: with --url http://127.0.0.1:7861 its engine is used, and no second one"
    ]
