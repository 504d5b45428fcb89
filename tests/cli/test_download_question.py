"""Before a model is downloaded: what is said, when it is asked, and what the answers do."""

import io
import sys
from pathlib import Path

import pytest

from mflux_api.catalog import Model
from mflux_api.cli.download_question import may_download
from mflux_api.config import ModelSettings, Settings
from mflux_api.errors import ModelNotDownloaded


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def asked(
    monkeypatch: pytest.MonkeyPatch, folder: Path, answer: str | None, alias: str = "flux2-klein-4b", **options: bool
) -> tuple[bool, str]:
    """Return whether it goes on, and what was said; without an answer there is no terminal."""
    said: io.StringIO = io.StringIO() if answer is None else _Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(sys, "stdin", io.StringIO() if answer is None else _Terminal(answer))
    settings = Settings(models=ModelSettings(cache_dir=folder))
    goes_on = may_download(model(settings, alias), settings, **{"named": True, "yes": False, **options})
    return goes_on, said.getvalue()


def model(settings: Settings, alias: str) -> Model:
    found = settings.catalog().get(alias)
    assert found is not None
    return found


@pytest.mark.parametrize(("answer", "goes_on"), [("y\n", True), ("YES\n", True), ("\n", False), ("", False)])
def test_terminal_is_asked_and_only_yes_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, goes_on: bool
) -> None:
    result, said = asked(monkeypatch, tmp_path, answer)
    assert result is goes_on
    assert "Download 15.96 GB? [y/N] " in said
    assert ("nothing was downloaded; --yes" in said) is not goes_on


def test_script_is_told_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, said = asked(monkeypatch, tmp_path, None)
    assert goes_on
    assert said == (
        "flux2-klein-4b is not on disk: 15.96 GB will be downloaded from black-forest-labs/FLUX.2-klein-4B "
        "(Apache-2.0) into models.cache_dir; --model demo needs no download\n"
    )


def test_no_other_model_is_named_in_the_place_of_an_upscaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, said = asked(monkeypatch, tmp_path, None, "seedvr2")
    assert said.endswith("into models.cache_dir\n")


def test_answer_that_was_given_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, said = asked(monkeypatch, tmp_path, "n\n", yes=True, named=False)
    assert goes_on
    assert "[y/N]" not in said
    assert said.startswith("flux2-klein-4b, the default (models.default), is not on disk")


def test_model_that_is_quantized_here_needs_all_of_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = tmp_path / "models--black-forest-labs--FLUX.2-klein-4B" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "etag.mflux-api.incomplete").open("wb") as file:
        file.truncate(3_000_000_000)
    _, said = asked(monkeypatch, tmp_path, None, "flux2-klein-4b-4-bit")
    assert "15.96 GB (3.00 GB of it are here) will be downloaded" in said


def test_model_on_disk_is_not_talked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, tmp_path, "n\n", "demo") == (True, "")


def test_no_question_where_downloads_are_off(tmp_path: Path) -> None:
    settings = Settings(models=ModelSettings(cache_dir=tmp_path, auto_download=False))
    with pytest.raises(ModelNotDownloaded):
        may_download(model(settings, "flux2-klein-4b"), settings, named=True, yes=True)
