"""Rows and files that cannot be read: each costs itself and nothing else, and an operator is told in one sentence."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from mflux_api.errors import ConfigError, DiskFull, InternalError
from mflux_api.jobs.idempotency import IdempotencyKey
from mflux_api.jobs.job import Status
from mflux_api.service import open_service
from mflux_api.storage.database_file import DatabaseFile, count_jobs
from mflux_api.storage.repository import Totals
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.harness import DEADLINE_SECONDS, ended, gateway, request, settings
from tests.support.scripted_engine import Hold, Script
from tests.support.stored_jobs import NOW, completed, queued, started

BROKEN: list[tuple[str, Any]] = [
    ("request", "{"),
    ("request", "[]"),
    ("request", "7"),
    ("request", "[" * 100_000),
    ("request", '{"prompt": 7, "model": "demo"}'),
    ("status", "lost"),
    ("created_at", "yesterday"),
    ("created_at", "2026-01-01T00:00:00"),
    ("completed_at", None),
    ("images", "[7]"),
    ("images", '[{"path": 1, "seed": 1, "width": 1, "height": 1, "sha256": ""}]'),
    ("timings", '{"total": "x"}'),
]
"""A column of a completed job's row and a value that no release wrote."""

OF_WAITING = [(column, value) for column, value in BROKEN if column not in ("completed_at", "timings")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


def sql(path: Path, query: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(query, values).fetchall()


def listed(repository: SqliteRepository, *, limit: int = 1000) -> list[str]:
    return [job.id for job in repository.page(limit=limit, cursor=None, status=None).jobs]


def break_row(path: Path, column: str, value: Any, job_id: str = "b") -> None:
    """Break the row of a job."""
    sql(path, f"UPDATE jobs SET {column} = ? WHERE id = ?", value, job_id)


@pytest.mark.parametrize(("column", "value"), BROKEN)
@pytest.mark.parametrize("question", ["page", "expire", "get"])
def test_broken_row_of_a_finished_job_is_set_aside_and_hides_no_other(
    path: Path, column: str, value: Any, question: str, caplog: pytest.LogCaptureFixture
) -> None:
    with SqliteRepository(path) as repository:
        for name in "abc":
            repository.insert(queued(name))
            repository.replace(completed(queued(name)))
        break_row(path, column, value)
        if question == "page":
            assert listed(repository, limit=2) == ["c", "a"]
        elif question == "expire":
            expired = repository.expire(now=NOW, keep=0, ttl=timedelta.max)
            assert [job.id for job in expired] == ["a", "c"]
            assert listed(repository) == []
        for _ in range(2):
            with pytest.raises(InternalError, match="record of job 'b' cannot be read") as raised:
                repository.get("b")
            assert str(path.parent) not in raised.value.message
        assert sql(path, f"SELECT id, {column} FROM unreadable_jobs") == [("b", value)]
    assert "job b: its row cannot be read; it is in the table unreadable_jobs now" in caplog.text
    with SqliteRepository(path) as repository:
        assert "b" not in listed(repository)


@pytest.mark.parametrize(("column", "value"), OF_WAITING)
async def test_start_with_a_broken_row_of_an_unfinished_job_runs_the_others(
    tmp_path: Path, column: str, value: Any
) -> None:
    options = settings(tmp_path)
    path = options.state_dir / DATABASE_NAME
    with SqliteRepository(path) as repository:
        for name in "abc":
            repository.insert(queued(name))
        repository.replace(started(queued("b")))
    break_row(path, column, value)
    with trio.fail_after(DEADLINE_SECONDS), SqliteRepository(path) as repository:
        async with open_service(options, repository=repository, start_engine=Script().start) as service:
            for name in "ac":
                assert (await ended(service, name)).status is Status.COMPLETED
            views, _ = await gateway(service).jobs()
            assert [view.job.id for view in views] == ["c", "a"]
            assert (await ended(service, (await service.submit(request())).id)).status is Status.COMPLETED


async def test_row_that_breaks_under_a_running_service_costs_itself(tmp_path: Path) -> None:
    options = settings(tmp_path)
    path = options.state_dir / DATABASE_NAME
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    with trio.fail_after(DEADLINE_SECONDS), SqliteRepository(path) as repository:
        repository.insert(queued("a"))
        repository.insert(queued("b"))
        repository.insert(queued("c"))
        async with open_service(options, repository=repository, start_engine=script.start) as service:
            await hold.reached.wait()
            break_row(path, "request", "{")
            hold.release.set()
            for name in "ac":
                assert (await gateway(service).finished(name)).status is Status.COMPLETED
            with pytest.raises(InternalError, match="cannot be read"):
                await service.job("b")


async def test_many_rows_that_break_under_a_running_service_do_not_end_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = settings(tmp_path)
    path = options.state_dir / DATABASE_NAME
    hold = Hold()
    names = [f"b{number}" for number in range(6)]
    with trio.fail_after(DEADLINE_SECONDS), SqliteRepository(path) as repository:
        for name in ("a", *names, "c"):
            repository.insert(queued(name))
        script = Script(at={"step 0/1": hold})
        async with open_service(options, repository=repository, start_engine=script.start) as service:
            await hold.reached.wait()
            for name in names:
                break_row(path, "request", "{", name)
            hold.release.set()
            for name in "ac":
                assert (await gateway(service).finished(name)).status is Status.COMPLETED
            for name in names:
                with pytest.raises(InternalError, match="cannot be read"):
                    await service.job(name)
            status = await gateway(service).status()
            assert (status.active, status.queued, status.store_trouble) == (0, 0, None)
    assert "'scheduler' failed" not in caplog.text


async def test_follower_of_a_job_whose_row_breaks_is_told_so_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    options = settings(tmp_path)
    path = options.state_dir / DATABASE_NAME
    hold = Hold()
    script = Script(at={"step 0/1": hold})
    with trio.fail_after(DEADLINE_SECONDS), SqliteRepository(path) as repository:
        repository.insert(queued("a"))
        repository.insert(queued("b"))
        async with open_service(options, repository=repository, start_engine=script.start) as service:
            await hold.reached.wait()
            stream = await gateway(service).follow("b")
            break_row(path, "request", "{")
            hold.release.set()
            with pytest.raises(InternalError, match="record of job 'b' cannot be read"):
                async for _ in stream:
                    pass


def test_bytes_that_are_not_text_cost_their_own_row(path: Path) -> None:
    with SqliteRepository(path) as repository:
        for name in "abc":
            repository.insert(queued(name))
        sql(path, "UPDATE jobs SET status = CAST(x'ff' AS TEXT) WHERE id = 'b'")
        assert listed(repository) == ["c", "a"]
        assert [job.id for job in repository.unfinished()] == ["a", "c"]


def test_key_of_a_broken_row_is_free_for_a_retry(path: Path) -> None:
    key = IdempotencyKey(key="k", body="b")
    with SqliteRepository(path) as repository:
        repository.insert(queued("b"), key)
        break_row(path, "request", "{")
        assert repository.unfinished() == ()
        assert repository.get_idempotency_record("k") is None
        repository.insert(queued("c"), key)
        assert listed(repository) == ["c"]


def test_broken_row_that_cannot_be_set_aside_on_a_full_disk_is_passed_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteRepository(path) as repository:
        for name in "abc":
            repository.insert(queued(name))
        break_row(path, "request", "{")

        def full(_: DatabaseFile) -> None:
            raise DiskFull("scripted")

        with monkeypatch.context() as patch:
            patch.setattr(DatabaseFile, "transaction", full)
            assert listed(repository) == ["c", "a"]
        assert sql(path, "SELECT count(*) FROM unreadable_jobs") == [(0,)]


def test_totals_that_are_gone_are_counted_again(path: Path) -> None:
    with SqliteRepository(path) as repository:
        for name in "ab":
            repository.insert(queued(name))
            repository.replace(completed(queued(name)))
        expected = repository.totals()
        sql(path, "DELETE FROM totals")
        assert repository.totals() == Totals()
    with SqliteRepository(path) as repository:
        assert repository.totals() == expected == Totals(generations=2, images=4, seconds=4.0)
        repository.insert(completed(queued("c")))
        assert repository.totals().generations == 3


@pytest.mark.parametrize("table", ["tombstones WHERE id = 'a'", "synchronous_runs"])
def test_broken_moment_in_another_table_is_long_ago(path: Path, table: str) -> None:
    with SqliteRepository(path) as repository:
        repository.insert(completed(queued("a")))
        repository.insert(queued("S", synchronous=True))
        repository.replace(started(queued("S", synchronous=True)))
        repository.expire(now=NOW, keep=0, ttl=timedelta.max)
        name, _, where = table.partition(" ")
        column = "removed_at" if name == "tombstones" else "created_at"
        sql(path, f"UPDATE {name} SET {column} = 'x' {where}")
    with SqliteRepository(path) as repository:
        assert [job.id for job in repository.abandoned()] == ["S"]
        assert repository.get("a") is not None
        repository.insert(queued("b"))
        assert listed(repository) == ["b"]


def _drop_column(path: Path) -> None:
    sql(path, "ALTER TABLE jobs DROP COLUMN device")


def _drop_old_tables(path: Path) -> None:
    sql(path, "DROP TABLE jobs")
    sql(path, "PRAGMA user_version = 2")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        *(
            (lambda path, table=table: sql(path, f"DROP TABLE {table}"), f"the table '{table}' is missing")
            for table in ("jobs", "tombstones", "totals", "inputs", "idempotency_keys", "synchronous_runs")
        ),
        (_drop_column, "the column 'device' of the table 'jobs' is missing"),
        (_drop_old_tables, "cannot be opened"),
    ],
)
def test_database_that_lacks_something_is_one_sentence_that_says_what_to_do(
    path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    SqliteRepository(path).close()
    damage(path)
    with pytest.raises(ConfigError, match=says) as raised:
        SqliteRepository(path)
    message = str(raised.value)
    assert message.startswith(DATABASE_NAME)
    assert "\n" not in message
    assert str(path.parent) not in message


def test_looking_at_a_database_counts_its_jobs_or_says_what_a_start_would_say(path: Path) -> None:
    path.touch()
    assert count_jobs(path) == 0
    with SqliteRepository(path) as repository:
        repository.insert(queued("a"))
        assert count_jobs(path) == 1
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE tombstones")
    for use in (count_jobs, SqliteRepository):
        with pytest.raises(ConfigError, match="the table 'tombstones' is missing"):
            use(path)
