"""Output on what is not UTF-8: every character is shown somehow, and nothing breaks."""

import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mflux_api.cli.encoding import decode_argument, print_path, show_everything
from mflux_api.cli.progress_bar import ProgressBar
from mflux_api.cli.standard_error import print_line
from tests.support.server import clean_environment


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"+ x ## .. ... \\xfc \\u96ea a\xff.png\n"),
        ("latin-1", "+ x ## ·· ... ü \\u96ea aÿ.png\n".encode("latin-1")),
        ("cp437", b"+ x \xdb\xdb \xfa\xfa ... \x81 \\u96ea a\xff.png\n"),
        ("utf-8", "✓ ✗ ██ ·· … ü 雪 a".encode() + b"\xff.png\n"),
    ],
)
def test_what_an_encoding_lacks_is_shown_otherwise(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, write_through=True))
    show_everything()
    sys.stdout.write("✓ ✗ ██ ·· … ü 雪 a\udcff.png\n")
    assert written.getvalue() == shown


def test_path_keeps_the_bytes_that_the_file_system_has(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    print_path("/ü/a\udcff.png")
    assert written.getvalue() == os.fsencode("/ü/a\udcff.png") + b"\n"


def test_progress_is_drawn_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, "ascii", write_through=True))
    show_everything()
    # A minute from one look to the next: where there is no terminal a line comes every half minute.
    with ProgressBar(sys.stderr, clock=itertools.count(0, 60).__next__) as bar:
        bar.transfer("model", 50, 100)
    assert written.getvalue().startswith(b"[" + b"#" * 10 + b"." * 10 + b"]  50% model")


def test_last_line_is_written_in_the_encoding_of_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "log", "w", encoding="latin-1") as stream:
        monkeypatch.setattr(sys, "__stderr__", stream)
        print_line("ü 雪")
    assert (tmp_path / "log").read_bytes() == b"\xfc \\u96ea\n"


def test_prompt_that_the_locale_cannot_read_is_taken_as_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert decode_argument("gr\udcc3\udcbcn") == "grün"
    assert decode_argument("bad \udcff byte") == "bad \ufffd byte"
    assert decode_argument("grün 雪") == "grün 雪"


@pytest.mark.slow
def test_doctor_reports_in_ascii(tmp_path: Path) -> None:
    (tmp_path / "ü").mkdir()
    environ = clean_environment() | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    doctor = [sys.executable, "-m", "mflux_api", "doctor"]
    done = subprocess.run(doctor, cwd=tmp_path / "ü", env=environ, capture_output=True, timeout=90)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"+ mflux-api " in done.stdout
    assert done.stdout.isascii()


@pytest.mark.slow
def test_reader_that_leaves_ends_a_command_quietly(tmp_path: Path) -> None:
    listing = [sys.executable, "-m", "mflux_api", "models", "list"]
    command = subprocess.Popen(
        listing, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None
    assert command.stderr is not None
    with command, command.stdout, command.stderr:
        command.stdout.close()
        assert command.stderr.read() == b""
    # It has what it wanted, as `head` does.
    assert command.returncode == 0
