"""The machine's memory as control groups of both versions tell it, and without any."""

from pathlib import Path

import psutil
import pytest

from mflux_api import machine

GB = 10**9


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty control-group file system that this process is in, at ``box/inner``."""
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)


def test_version_2_the_tightest_group_counts(groups: Path) -> None:
    (groups / "membership").write_text("0::/box/inner\n")
    write(groups / "box", max="1000000000\n", current="700000000\n", stat="anon 1\ninactive_file 100000000\n")
    write(groups / "box" / "inner", max="max\n", current="5\n", events="low 0\noom 3\noom_kill 2\n")
    assert machine.total_bytes() == 1 * GB
    assert machine.available_bytes() == 400_000_000
    assert machine.oom_kills() == 2
    write(groups / "box" / "inner", events="low 0\noom 3\noom_kill 3\n")
    assert machine.oom_kills() == 3


def test_version_1(groups: Path) -> None:
    (groups / "membership").write_text("7:cpu,cpuacct:/elsewhere\n4:memory:/box\n0::/\n")
    write(
        groups / "memory" / "box",
        limit_in_bytes="1000000000\n",
        usage_in_bytes="1200000000\n",
        stat="total_inactive_file 0\n",
        oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
    )
    write(groups / "memory", limit_in_bytes="9223372036854771712\n", usage_in_bytes="5\n")
    assert machine.total_bytes() == 1 * GB
    assert machine.available_bytes() == 0
    assert machine.oom_kills() == 7


@pytest.mark.parametrize("membership", [None, "", "nonsense", "0::/\n"])
def test_without_limits_it_is_the_machine_itself(groups: Path, membership: str | None) -> None:
    if membership is not None:
        (groups / "membership").write_text(membership)
    assert machine.total_bytes() == psutil.virtual_memory().total
    assert 0 < machine.available_bytes() <= machine.total_bytes()
    assert machine.oom_kills() >= 0
