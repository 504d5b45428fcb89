"""What only the SQLite file guarantees: it outlives the process, disks that fill up, and older and newer versions."""

import json
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.errors import ConfigError, DiskFull, InternalError, ServiceError
from mflux_api.jobs import job as jobs
from mflux_api.jobs.job import Job, Status
from mflux_api.storage import database_file
from mflux_api.storage.database_file import open_database
from mflux_api.storage.in_memory import InMemoryRepository
from mflux_api.storage.migrations import APPLICATION_ID, MIGRATIONS, migrate
from mflux_api.storage.repository import Abandoned, Repository, Tombstone, Totals
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from tests.support.stored_jobs import NOW, completed, failed, queued, read_only_folder, started, stored_images

FOREVER = timedelta.max


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


def sql(path: Path, query: str, *values: Any) -> list[Any]:
    """Look at, or change, the file behind the repository's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(query, values).fetchall()


def ids(found: tuple[Job, ...]) -> list[str]:
    return [job.id for job in found]


def listed(repository: Repository) -> list[str]:
    return ids(repository.page(limit=1000, cursor=None, status=None).jobs)


# --- the process ends ---


def test_everything_but_unfinished_synchronous_jobs_is_there_after_a_restart(path: Path) -> None:
    ended, broken, waiting = queued("a"), queued("b"), queued("c")
    done, lost, removed = queued("D", synchronous=True), queued("E", synchronous=True), queued("f")
    with SqliteRepository(path) as repository:
        for job in (removed, ended, done, broken, lost, waiting):
            repository.insert(job)
        repository.replace(completed(removed))
        repository.expire(now=NOW, keep=0, ttl=FOREVER)
        repository.replace(completed(ended))
        repository.replace(failed(broken))
        repository.replace(completed(done))
        totals = repository.totals()
        assert listed(repository) == ["c", "E", "b", "D", "a"]
    with SqliteRepository(path) as repository:
        assert listed(repository) == ["c", "b", "D", "a"]
        found = [repository.get(job.id) for job in (ended, broken, done, waiting)]
        assert found == [completed(ended), failed(broken), completed(done), waiting]
        assert repository.get("E") is None
        assert repository.get("f") == Tombstone(id="f", removed_at=NOW)
        assert repository.unfinished() == (waiting,)
        assert repository.totals() == totals == Totals(generations=3, images=6, seconds=6.0)


def test_a_killed_process_leaves_a_record_of_its_synchronous_jobs(path: Path) -> None:
    waiting, generating, done = (queued(name, synchronous=True) for name in ("A", "B", "C"))
    with SqliteRepository(path) as repository:
        for job in (waiting, generating, done):
            repository.insert(job)
        repository.replace(started(generating))
        repository.replace(jobs.requeue(started(generating), engine_died=True))
        repository.replace(started(generating))
        repository.replace(started(done))
        repository.replace(completed(done))
        assert repository.abandoned() == ()
    left = Abandoned(id="B", created_at=generating.created_at, images=generating.request.num_images)
    for _ in range(2):
        with SqliteRepository(path) as repository:
            assert repository.abandoned() == (left,)
    with SqliteRepository(path) as repository:
        # A job that runs now is not one that an earlier process left.
        repository.insert(waiting)
        repository.replace(started(waiting))
        repository.forget_abandoned()
        assert repository.abandoned() == ()
    with SqliteRepository(path) as repository:
        assert [job.id for job in repository.abandoned()] == ["A"]


@pytest.mark.parametrize("names", [["-wal"], ["-wal", "-shm"]])
def test_removed_log_loses_nothing_that_is_acknowledged(path: Path, tmp_path: Path, names: list[str]) -> None:
    with SqliteRepository(path) as repository:
        repository.insert(queued("a"))
        repository.replace(started(queued("a")))
        for name in names:
            path.with_name(path.name + name).unlink()
        repository.insert(queued("b"))
        # What a process that is killed now would leave.
        killed = tmp_path / "killed" / DATABASE_NAME
        killed.parent.mkdir()
        for file in tmp_path.glob(f"{path.name}*"):
            shutil.copy(file, killed.parent)
        with SqliteRepository(killed) as found:
            assert listed(found) == ["b", "a"]
        repository.replace(completed(queued("a")))
        assert listed(repository) == ["b", "a"]
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_removed_log_is_kept_while_another_program_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite cannot save all of it then, and says so in a row that no statement has to read."""
    monkeypatch.setattr("mflux_api.storage.database_file.BUSY_SECONDS", 0.1)
    with SqliteRepository(path) as repository:
        repository.insert(queued("a"))
        reader = subprocess.Popen(
            [sys.executable, "-c", _READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reading\n"
            for name in "bc":
                repository.insert(queued(name))
            path.with_name(path.name + "-wal").unlink()
            with pytest.raises(InternalError, match="Another program reads"):
                repository.insert(queued("d"))
            assert listed(repository) == ["c", "b", "a"]
            reader.communicate(b"\n")
        repository.insert(queued("d"))
        assert listed(repository) == ["d", "c", "b", "a"]
    with SqliteRepository(path) as repository:
        assert listed(repository) == ["d", "c", "b", "a"]


_READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT * FROM jobs").fetchall()
print("reading", flush=True)
sys.stdin.readline()
connection.close()
"""


def test_full_disk_after_a_removed_log_is_over_when_there_is_room_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> sqlite3.Connection:
        raise DiskFull("No space left")

    with SqliteRepository(path) as repository:
        repository.insert(queued("a"))
        path.with_name(path.name + "-wal").unlink()
        with monkeypatch.context() as patch:
            patch.setattr("mflux_api.storage.database_file.open_database", full)
            for _ in range(2):
                with pytest.raises(DiskFull):
                    repository.insert(queued("b"))
        assert listed(repository) == ["a"]
        repository.insert(queued("b"))
        assert listed(repository) == ["b", "a"]


def test_files_of_an_expired_job_go_before_its_row(path: Path) -> None:
    with SqliteRepository(path) as repository:
        repository.insert(queued("a"))
        repository.replace(completed(queued("a")))

        def killed(job: Job) -> bool:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            repository.expire(now=NOW, keep=0, ttl=FOREVER, discard=killed)
        assert ids(repository.page(limit=9, cursor=None, status=None).jobs) == ["a"]


def test_a_synchronous_job_is_in_the_file_only_after_its_end(path: Path) -> None:
    job = queued("A", synchronous=True)
    with SqliteRepository(path) as repository:
        repository.insert(job)
        repository.replace(started(job))
        assert sql(path, "SELECT count(*) FROM jobs") == [(0,)]
        repository.replace(completed(job))
        assert sql(path, "SELECT id, synchronous FROM jobs") == [("A", 1)]


def test_numbers_are_not_used_again_after_everything_was_removed(path: Path) -> None:
    with SqliteRepository(path) as repository:
        for name in "abc":
            repository.insert(completed(queued(name)))
        repository.expire(now=NOW, keep=0, ttl=FOREVER)
    with SqliteRepository(path) as repository:
        repository.insert(queued("d"))
    assert sql(path, "SELECT number FROM jobs") == [(4,)]


@pytest.mark.slow
def test_what_was_acknowledged_survives_kills(path: Path) -> None:
    rng = random.Random(20260301)
    acknowledged: dict[str, str] = {}
    code = (
        "import sys; from pathlib import Path; from tests.support.stored_jobs import insert_and_finish_forever as run; "
    )
    for generation in range(10):
        first = generation * 100_000 + 1
        command = [sys.executable, "-c", f"{code} run(Path(sys.argv[1]), {first})", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            try:
                lines = [child.stdout.readline() for _ in range(rng.randint(1, 40))]
                # Into the middle of whatever it is doing by now.
                threading.Event().wait(rng.uniform(0, 0.01))
            finally:
                child.kill()
            lines += child.stdout.readlines()
        for line in lines:
            if line.endswith(b"\n"):
                event, job_id = line.decode().split()
                acknowledged[job_id] = event
        assert sql(path, "PRAGMA integrity_check") == [("ok",)]
        with SqliteRepository(path) as repository:
            found = {job_id: repository.get(job_id) for job_id in acknowledged}
            for job_id, event in acknowledged.items():
                job = found[job_id]
                assert isinstance(job, Job)
                assert job.status.terminal or event == "kept"
            completed_jobs = repository.page(limit=100_000, cursor=None, status=Status.COMPLETED).jobs
            assert repository.totals().generations == len(completed_jobs)
            assert repository.totals().images == sum(len(job.images) for job in completed_jobs)
            assert repository.totals().seconds == 2.0 * len(completed_jobs)
            assert not any(job.synchronous for job in repository.unfinished())
    assert len(acknowledged) > 50


@pytest.mark.slow
def test_it_behaves_like_the_memory_repository_on_a_random_walk(path: Path) -> None:
    rng = random.Random(7)
    now = NOW
    with SqliteRepository(path) as sqlite:
        memory = InMemoryRepository(keep_finished=10_000)
        for n in range(400):
            now += timedelta(seconds=rng.uniform(-5, 30))
            unfinished = sqlite.unfinished()
            assert unfinished == memory.unfinished()
            move = rng.random()
            if move < 0.4 or not unfinished:
                job = queued(f"{n:x}", synchronous=rng.random() < 0.5, created_at=now)
                sqlite.insert(job)
                memory.insert(job)
            elif move < 0.95:
                job = rng.choice(unfinished)
                ways = [completed(job, at=now), failed(job, at=now)]
                ways.append(started(job, now) if job.status is Status.QUEUED else jobs.requeue(job, engine_died=True))
                changed = rng.choice(ways)
                sqlite.replace(changed)
                memory.replace(changed)
            else:
                keep, ttl = rng.randint(0, 60), timedelta(minutes=rng.randint(0, 60))
                expired = sqlite.expire(now=now, keep=keep, ttl=ttl)
                assert expired == memory.expire(now=now, keep=keep, ttl=ttl)
            assert sqlite.totals() == memory.totals()
            known = f"{rng.randint(0, n):x}"
            assert sqlite.get(known) == memory.get(known)
            cursor = None
            status = rng.choice([None, *Status])
            for _ in range(3):
                page = sqlite.page(limit=rng.choice([3, 3, 10]), cursor=cursor, status=status)
                limit = len(page.jobs) or 1
                assert page == memory.page(limit=limit, cursor=cursor, status=status)
                cursor = page.next_cursor
        assert sqlite.totals().generations > 20


# --- the disk fails ---


@contextmanager
def full_disk(repository: SqliteRepository) -> Iterator[None]:
    """SQLite reports a limit on the pages exactly like a file system without space."""
    connection = repository._file.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        connection.execute("PRAGMA max_page_count = 1000000")


@contextmanager
def failing_disk(repository: SqliteRepository) -> Iterator[None]:
    """No file may grow, which SQLite sees as an I/O error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("trouble", "expected"), [(full_disk, DiskFull), (failing_disk, InternalError)])
@pytest.mark.parametrize("synchronous", [False, True])
def test_a_failed_write_changes_nothing_and_the_next_one_works(
    path: Path, trouble: Any, expected: type[ServiceError], synchronous: bool
) -> None:
    first, big = queued("a", synchronous=synchronous), queued("b", prompt="long " * 2000)
    # Its result fits no page that is there already.
    ended = completed(first, images=stored_images("a", 64))
    with SqliteRepository(path) as repository:
        repository.insert(first)
        with trouble(repository):
            with pytest.raises(expected) as refused:
                repository.insert(big)
            with pytest.raises(expected):
                repository.replace(ended)
            assert repository.get("a") == first
            assert repository.get("b") is None
            assert repository.unfinished() == (first,)
            assert repository.totals() == Totals()
        assert "\n" not in str(refused.value)
        assert str(path.parent) not in str(refused.value)
        repository.insert(big)
        repository.replace(ended)
    with SqliteRepository(path) as repository:
        assert (repository.get("a"), repository.get("b")) == (ended, big)
        assert listed(repository) == ["b", "a"]
        assert repository.totals().generations == 1


def test_retention_that_fails_removes_nothing(path: Path) -> None:
    with SqliteRepository(path) as repository:
        repository.insert(completed(queued("a")))
        with failing_disk(repository), pytest.raises(InternalError):
            repository.expire(now=NOW, keep=0, ttl=FOREVER)
        assert repository.get("a") == completed(queued("a"))
        assert ids(repository.expire(now=NOW, keep=0, ttl=FOREVER)) == ["a"]


def test_a_closed_repository_refuses_calls(path: Path) -> None:
    repository = SqliteRepository(path)
    repository.close()
    repository.close()
    with pytest.raises(InternalError, match="job store"):
        repository.totals()


# --- how it is opened ---


def test_commits_are_durable_and_one_connection_serves_all_calls(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SqliteRepository(path) as repository:
        monkeypatch.setattr(sqlite3, "connect", None)
        repository.insert(completed(queued("a")))
        connection = repository._file.connection
        settings = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "fullfsync", "secure_delete")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "fullfsync": int(sys.platform == "darwin"),
        "secure_delete": 1,
    }


def test_threads_take_turns(path: Path) -> None:
    failures: list[BaseException] = []
    with SqliteRepository(path) as repository:

        def work(name: str) -> None:
            try:
                repository.insert(queued(name))
                repository.replace(completed(queued(name)))
            except BaseException as error:  # noqa: BLE001 - shown by the assertion below
                failures.append(error)

        for name in "abc":
            thread = threading.Thread(target=work, args=(name,))
            thread.start()
            thread.join()
        assert failures == []
        assert repository.totals().generations == 3


def test_folders_are_made(tmp_path: Path) -> None:
    with SqliteRepository(tmp_path / "new" / "state" / DATABASE_NAME) as repository:
        assert listed(repository) == []


def test_a_file_that_is_not_a_database_is_a_config_error_and_stays(path: Path) -> None:
    content = b"not a database at all, but long enough to look like one" * 20
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{DATABASE_NAME}: damaged, or not a job store; move it away") as refused:
        SqliteRepository(path)
    assert str(path.parent) not in str(refused.value)
    assert path.read_bytes() == content


def test_a_damaged_file_is_a_config_error(path: Path) -> None:
    with SqliteRepository(path) as repository:
        for n in range(20):
            repository.insert(queued(f"{n}", prompt="long " * 1000))
    data = bytearray(path.read_bytes())
    data[8192 : len(data) // 2] = b"\xff" * (len(data) // 2 - 8192)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        SqliteRepository(path)


def test_another_programs_database_is_a_config_error_and_stays(path: Path) -> None:
    sql(path, "CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="another program's database"):
        SqliteRepository(path)
    assert path.read_bytes() == before


def test_a_newer_database_is_a_config_error_and_stays(path: Path) -> None:
    SqliteRepository(path).close()
    newer = len(MIGRATIONS) + 1
    sql(path, f"PRAGMA user_version = {newer}")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"newer mflux-api \(schema {newer}.*; update mflux-api"):
        SqliteRepository(path)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_a_config_error() -> None:
    with read_only_folder() as folder:
        for path in (folder / DATABASE_NAME, folder / "new" / DATABASE_NAME, folder):
            with pytest.raises(ConfigError, match=r"cannot be opened: .*jobs\.state_dir") as refused:
                SqliteRepository(path)
            assert str(folder) not in str(refused.value)


# --- versions ---


def test_a_new_file_has_the_newest_schema_and_our_mark(path: Path) -> None:
    SqliteRepository(path).close()
    assert sql(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert sql(path, "PRAGMA application_id") == [(APPLICATION_ID,)]


def test_migrations_go_on_from_where_a_failed_one_stopped(path: Path) -> None:
    steps = (
        *MIGRATIONS,
        ("CREATE TABLE more (x)", "INSERT INTO more VALUES (1)"),
        ("CREATE TABLE last (x)", "nonsense"),
    )
    with closing(open_database(path)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, steps)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        assert connection.execute("SELECT x FROM more").fetchall() == [(1,)]
        migrate(connection, (*steps[:-1], ("CREATE TABLE last (x)",)))
        assert connection.execute("SELECT count(*) FROM last").fetchone() == (0,)
        assert connection.execute("SELECT x FROM more").fetchall() == [(1,)]
    with pytest.raises(ConfigError, match="newer"):
        SqliteRepository(path)


def test_rows_of_other_versions_load(path: Path) -> None:
    job = completed(queued("a"))
    with SqliteRepository(path) as repository:
        repository.insert(job)
        request, images, timings = sql(path, "SELECT request, images, timings FROM jobs")[0]
        older = {name: value for name, value in json.loads(request).items() if name in ("prompt", "model", "seed")}
        # A field of the future, and a value beyond today's limit.
        older |= {"dream": [1], "seed": 2**60}
        newer_images = [image | {"dream": 1} for image in json.loads(images)]
        timings = {"total": json.loads(timings)["total"], "dream": 1}
        sql(
            path,
            "UPDATE jobs SET request = ?, images = ?, timings = ?",
            *(json.dumps(value) for value in (older, newer_images, timings)),
        )
        found = repository.get("a")
    assert isinstance(found, Job)
    assert (found.request.prompt, found.request.seed, found.request.lora_files) == ("a cat", 2**60, ())
    assert found.images == job.images
    assert found.timings == jobs.Timings(total=2.0)


# --- what is in the file ---


def test_a_state_folder_may_be_moved_with_its_images(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    inside, outside = stored_images("a", 1, str(old / "2026-03-01")), stored_images("a", 1, str(tmp_path / "else"))
    with SqliteRepository(old / DATABASE_NAME) as repository:
        repository.insert(completed(queued("a"), images=inside + outside))
        assert repository.get("a") == completed(queued("a"), images=inside + outside)
    old.rename(new)
    with SqliteRepository(new / DATABASE_NAME) as repository:
        found = repository.get("a")
    assert isinstance(found, Job)
    moved = attrs.evolve(inside[0], path=str(new / "2026-03-01" / "a-0.png"))
    assert found.images == (moved, *outside)


def test_a_removed_prompt_is_not_in_the_file_any_more(path: Path) -> None:
    with SqliteRepository(path) as repository:
        repository.insert(completed(queued("a", prompt="the secret garden")))
    assert b"secret garden" in path.read_bytes()
    with SqliteRepository(path) as repository:
        repository.expire(now=NOW, keep=0, ttl=FOREVER)
    assert b"secret garden" not in path.read_bytes()


@pytest.mark.parametrize("visible", [ALL_JOBS, Visibility(only="key ana"), Visibility(hidden=("key ana",))])
@pytest.mark.parametrize("status", [None, Status.QUEUED])
def test_a_page_is_read_through_an_index(path: Path, status: Status | None, visible: Visibility) -> None:
    with SqliteRepository(path) as repository:
        for name in "abc":
            repository.insert(queued(name))
        statements: list[str] = []
        repository._file.connection.set_trace_callback(statements.append)
        repository.page(limit=1, cursor="3", status=status, visible=visible)
        repository._file.connection.set_trace_callback(None)
        (query,) = statements
    plan = " ".join(row[3] for row in sql(path, f"EXPLAIN QUERY PLAN {query}"))
    assert "SEARCH jobs USING" in plan
    assert "B-TREE" not in plan


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_removed_database_acknowledges_nothing(tmp_path: Path, synchronous: bool, replaced: bool) -> None:
    path = tmp_path / "state" / "jobs.sqlite3"
    with SqliteRepository(path) as repository:
        kept = queued("a")
        repository.insert(kept)
        shutil.rmtree(path.parent)
        if replaced:
            path.parent.mkdir()
            path.write_bytes(b"another file")
        with pytest.raises(InternalError, match="was removed from the state directory; restart"):
            repository.insert(queued("b", synchronous=synchronous))
        with pytest.raises(InternalError, match="was removed"):
            repository.replace(started(kept))


def test_undelivered_jobs_are_found_through_their_index(path: Path) -> None:
    with SqliteRepository(path) as repository:
        seen = list[str]()
        repository._file.connection.set_trace_callback(seen.append)
        repository.undelivered()
        repository.owners_of_undelivered()
    assert len(seen) == 2
    for query in seen:
        plan = " ".join(str(row) for row in sql(path, f"EXPLAIN QUERY PLAN {query}"))
        assert "jobs_by_delivery" in plan
        assert "TEMP B-TREE" not in plan


def test_beginning_of_a_run_is_written_at_once_and_synced_when_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(database_file, "sync_file", lambda file: synced.append(file.name))
    with SqliteRepository(path) as repository:
        job = queued("0123456789ab")
        repository.insert(job)
        repository.replace(started(job))
        # What outlives the process: another connection reads it.
        assert sql(path, "SELECT status FROM jobs") == [(Status.GENERATING.value,)]
        assert synced == []
        repository.sync()
        assert synced == [f"{path.name}-wal"]
        # Every other commit waits for the disk again.
        assert repository._file.connection.execute("PRAGMA synchronous").fetchone() == (2,)
