"""Commands whose standard streams are closed or full, or not read any more."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import clean_environment

GENERATE = "generate a --model demo --width 64 --height 64 --steps 1"


def shell(folder: Path, command: str, redirections: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m mflux_api {command} {redirections}"],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirections", "status"), [(">&- 2>&- <&-", 0), ("2>/dev/full", 0), (">/dev/full", 1), ("2>&1 | head -n 1", 0)]
)
def test_image_is_made_whatever_becomes_of_what_is_printed(tmp_path: Path, redirections: str, status: int) -> None:
    done = shell(tmp_path, GENERATE, redirections)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "output").rglob("*.png"))) == 1
    if redirections == ">/dev/full":
        last = done.stderr.splitlines()[-1]
        assert last == "mflux-api: standard output cannot be written (no space left on device)"


@pytest.mark.slow
def test_full_disk_of_standard_output_is_not_taken_for_that_of_a_folder(tmp_path: Path) -> None:
    done = shell(tmp_path, "models list", ">/dev/full")
    assert done.returncode == 1
    assert done.stderr == "mflux-api: standard output cannot be written (no space left on device)\n"


PROBE = """
import os, sys
from mflux_api.cli.standard_error import print_line
from mflux_api.cli.standard_streams import open_standard_streams
open_standard_streams()
file = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.write(2, b"from C")
print("from Python", file=sys.stderr)
print_line("a last line")
print("result")
sys.exit(0 if file > 2 and os.fstat(file).st_size == 0 else 1)
"""


def test_nothing_that_is_printed_gets_into_files_where_a_stream_is_closed(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -c '{PROBE}' {tmp_path / 'lock'} <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", command], env=clean_environment(), timeout=30).returncode == 0
