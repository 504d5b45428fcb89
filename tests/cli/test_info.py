"""``mflux-api info`` and ``generate --from-image``, in this process."""

import json
import re
from pathlib import Path

import pytest

from mflux_api.cli.image_files import read_request
from mflux_api.cli.main import main
from mflux_api.errors import InvalidParameter
from mflux_api.images.generation_record import generation_record
from mflux_api.images.infotext import infotext
from mflux_api.images.png import encode_png
from tests.support.requests import resolved_request

ASKED = resolved_request(prompt="a red house", seed=5, steps=2)


def written(path: Path, *, silent: bool = False) -> Path:
    said = ("", "") if silent else (infotext(ASKED, 7), generation_record(ASKED, 7))
    path.write_bytes(encode_png(bytes(64 * 64 * 3), 64, 64, parameters=said[0], record=said[1]))
    return path


def test_info_prints_how_an_image_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "a.png")
    assert main(["info", str(file)]) == 0
    out = capsys.readouterr().out
    assert "64 × 64 pixels, png" in out
    assert "Seed: 7" in out
    assert main(["info", str(file), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["request"]["seed"] == 7
    assert whole["warnings"] == []


def test_info_says_what_a_file_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(written(tmp_path / "a.png", silent=True))]) == 0
    assert "does not say how it was made" in capsys.readouterr().out
    (tmp_path / "b.png").write_bytes(b"no image")
    for name in ("b.png", "missing.png", ""):
        assert main(["info", str(tmp_path / name)]) == 1
        with pytest.raises(InvalidParameter, match=re.escape(str(tmp_path / name))):
            read_request(tmp_path / name)


def test_request_of_a_file_is_that_of_its_image(tmp_path: Path) -> None:
    request = read_request(written(tmp_path / "a.png"))
    assert (request.prompt, request.seed, request.steps) == ("a red house", 7, 2)
    with pytest.raises(InvalidParameter, match="does not say"):
        read_request(written(tmp_path / "a.png", silent=True))
