"""Sessions that were ended: kept until they would have ended, bounded for each key, and read from any file."""

from pathlib import Path

import pytest

from mflux_api.storage.ended_sessions import MOST_PER_KEY, NAME, EndedSessions, Session, read_ended, write_ended

NOW = 1_800_000_000


def session(number: int, *, expires: int = NOW + 60, tag: str = "a" * 8) -> Session:
    return Session(expires, tag, f"id-{number}")


def test_ended_session_is_known_until_its_time_is_over() -> None:
    now = [float(NOW)]
    ended = EndedSessions(clock=lambda: now[0])
    ended.add(session(1))
    assert session(1) in ended
    assert session(2) not in ended
    now[0] += 61
    ended.add(session(2, expires=NOW + 120))
    assert session(1) not in ended
    assert ended.lines() == f"{NOW + 120} {'a' * 8} id-2\n".encode()


def test_key_that_ends_many_revives_only_its_own() -> None:
    ended = EndedSessions(clock=lambda: NOW)
    other = session(0, tag="b" * 8)
    ended.add(other)
    for number in range(MOST_PER_KEY + 1):
        ended.add(session(number))
    assert other in ended
    assert session(0) not in ended
    assert session(1) in ended
    assert session(MOST_PER_KEY) in ended


def test_folder_keeps_them_and_any_file_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    future = session(1, expires=10**11)
    ended = EndedSessions([future])
    write_ended(tmp_path, ended.lines())
    assert future in read_ended(tmp_path)
    (tmp_path / NAME).write_bytes(b"\xff\n1 2 3 4\n" + ended.lines() + b"99999999999 aaaaaaaa cut")
    assert future in read_ended(tmp_path)
    assert not caplog.text
    (tmp_path / "file").touch()
    write_ended(tmp_path / "file", ended.lines())
    assert "count again after a restart" in caplog.text
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    assert future not in read_ended(tmp_path)
    assert "may count again" in caplog.text
