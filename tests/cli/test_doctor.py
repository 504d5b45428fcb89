"""What ``doctor`` finds of the folders here."""

from pathlib import Path

import pytest

from mflux_api.cli import doctor
from mflux_api.config import ModelSettings, Settings


@pytest.mark.parametrize(("default", "state"), [("demo", "warning"), ("flux2-klein-4b", "problem")])
def test_models_that_can_only_be_read_are_a_problem_where_some_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: str, state: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    settings = Settings(models=ModelSettings(default=default, cache_dir=tmp_path / "models"))
    monkeypatch.setattr(
        doctor, "why_not_writable", lambda folder: "permission denied" if folder.name == "models" else ""
    )
    (found,) = [each for each in doctor._folders(settings) if each.subject == "models directory"]
    assert found.state == state
    assert "permission denied" in found.says


def test_report_does_not_tell_whose_home_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert doctor._display_path(tmp_path / "models") == "~/models"
    assert doctor._display_path(tmp_path / "work" / "models") == "./models"
    assert doctor._display_path(Path("/models")) == "/models"
