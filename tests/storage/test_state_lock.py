"""One service per state directory: the lock is exclusive, and no end of its holder leaves it behind."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mflux_api.errors import ConfigError
from mflux_api.storage.state_lock import LOCK_NAME, StateInUse, StateLock
from tests.support.disk_calls import refuse_with
from tests.support.stored_jobs import read_only_folder

HOLD = """
import sys, time
from pathlib import Path
from mflux_api.storage.state_lock import StateLock
lock = StateLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_holder_learns_which_process_holds_it_and_what_to_do(tmp_path: Path) -> None:
    with StateLock(tmp_path), pytest.raises(StateInUse) as refused:
        StateLock(tmp_path)
    message = str(refused.value)
    assert message.startswith("STATE_IN_USE: another service uses this state directory")
    assert message.endswith("stop it or set jobs.state_dir")
    assert f"process {os.getpid()}" in message
    assert str(tmp_path) not in message
    assert refused.value.code == "STATE_IN_USE"
    assert isinstance(refused.value, ConfigError)


def test_closing_lets_the_next_one_in_and_may_be_repeated(tmp_path: Path) -> None:
    first = StateLock(tmp_path)
    first.close()
    first.close()
    with StateLock(tmp_path), pytest.raises(StateInUse):
        StateLock(tmp_path)
    StateLock(tmp_path).close()


def test_a_refused_attempt_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        probe = os.dup(0)
        os.close(probe)
        for _ in range(3):
            with pytest.raises(StateInUse):
                StateLock(tmp_path)
        again = os.dup(0)
        os.close(again)
    assert again == probe


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_with(number))
    with pytest.raises(ConfigError, match="file system without locks") as refused:
        StateLock(tmp_path)
    assert "jobs.state_dir" in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


def test_the_directory_is_created(tmp_path: Path) -> None:
    with StateLock(tmp_path / "new" / "state"):
        assert (tmp_path / "new" / "state" / LOCK_NAME).is_file()


def test_directories_do_not_lock_each_other(tmp_path: Path) -> None:
    with StateLock(tmp_path / "one"), StateLock(tmp_path / "two"), pytest.raises(StateInUse):
        StateLock(tmp_path / "two")


def test_a_killed_holder_leaves_the_directory_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(StateInUse, match=f"process {holder.pid}"):
                StateLock(tmp_path)
        finally:
            holder.send_signal(signal.SIGKILL)
    with StateLock(tmp_path), pytest.raises(StateInUse, match=f"process {os.getpid()}"):
        StateLock(tmp_path)


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = StateLock(tmp_path)
    child = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(child, stdout=subprocess.PIPE, close_fds=False) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            lock.close()
            with StateLock(tmp_path), pytest.raises(StateInUse):
                StateLock(tmp_path)
        finally:
            process.kill()


def assert_unusable(folder: Path, shown: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used.*jobs\.state_dir") as refused:
        StateLock(folder)
    assert not isinstance(refused.value, StateInUse)
    assert str(shown) not in str(refused.value)


@pytest.mark.parametrize("below", [".", "new"])
def test_a_directory_that_cannot_be_written_is_a_config_error(below: str) -> None:
    with read_only_folder() as folder:
        assert_unusable(folder / below, folder)
        assert list(folder.iterdir()) == []


def test_a_file_in_place_of_the_directory_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert_unusable(tmp_path / "file", tmp_path)
    assert_unusable(tmp_path / "file" / "below", tmp_path)
