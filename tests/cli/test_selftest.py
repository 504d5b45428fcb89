"""``mflux-api selftest``: right here, and it notices what is not."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mflux_api.cli import selftest
from mflux_api.cli.selftest import Selftest, settings_in
from mflux_api.cli.selftest_files import psnr
from mflux_api.config import EngineSettings
from mflux_api.errors import EngineUnavailable
from mflux_api.service import open_service
from tests.support.scripted_engine import Crash, Script
from tests.support.server import clean_environment


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_selftest_finds_everything_right_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mflux_api", "selftest", "--devices", "cpu"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[0].startswith("mflux-api ")
    assert "(cpu), float32" in lines[1]
    names = ["image", "same bits", "edit", "LoRA", "8 bits", "4 bits", "low_ram", "cancel", "killed engine", "memory"]
    assert [line.split("  ")[0] for line in lines[2:-1]] == [f"✓ {name}" for name in names]
    assert lines[-1].startswith("Everything is right.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
async def test_selftest_notices_another_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "RECORDED", selftest.RECORDED_EDIT)
    (tmp_path / "loras").mkdir()
    async with open_service(settings_in(tmp_path, EngineSettings())) as service:
        outcome = await Selftest(service, tmp_path).image()
    assert not outcome.good
    assert "at least 60" in outcome.says


async def test_selftest_ends_with_the_reason_of_an_engine_that_does_not_start(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    script = Script(at={"start": Crash(times=100_000, reason="exited with status 1: ImportError: libcuda.so.1")})
    async with open_service(settings_in(tmp_path, EngineSettings()), start_engine=script.start) as service:
        with trio.fail_after(10), pytest.raises(EngineUnavailable, match="libcuda"):
            await Selftest(service, tmp_path).info()


def test_distance_of_images() -> None:
    assert psnr(b"\x00\x10", b"\x00\x10") == math.inf
    assert psnr(b"\x00" * 12, b"\xff" * 12) == 0
    assert psnr(b"\x00" * 4, b"\x01\x00\x00\x00") == pytest.approx(54.15, abs=0.01)
    assert psnr(b"\x00", b"\x00\x00") == 0
