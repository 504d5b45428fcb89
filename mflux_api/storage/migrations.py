"""The SQLite file: opening it, bringing an older one up to date, and what its errors mean."""

import errno
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mflux_api.errors import ConfigError, DiskFull, InternalError

APPLICATION_ID = int.from_bytes(b"mflx")
"""Marks the file as ours, so that another program's database is never migrated."""

BUSY_SECONDS = 5.0
"""How long to wait for somebody who looks at the file with another program."""

_NO_ROOM = frozenset({"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"})
"""Error names that mean a full disk: the database or its log, or the log's index, could not grow."""

_FULL = "No space left for the job store; free some in jobs.state_dir and try again"

_BROKEN = "The job store cannot be read or written; check the disk that holds jobs.state_dir"

Migration = Sequence[str]

MIGRATIONS: Sequence[Migration] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        # `number` orders the list, `finished` orders retention: clocks may jump, these do not. AUTOINCREMENT keeps a
        # number from being used twice, so that a cursor never points into other jobs.
        """
        CREATE TABLE jobs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            status TEXT NOT NULL,
            created_at TEXT NOT NULL,
            started_at TEXT,
            completed_at TEXT,
            finished INTEGER UNIQUE,
            attempts INTEGER NOT NULL,
            service_deaths INTEGER NOT NULL,
            progress REAL NOT NULL,
            synchronous INTEGER NOT NULL,
            request TEXT NOT NULL,
            images TEXT NOT NULL,
            failure TEXT,
            timings TEXT
        ) STRICT
        """,
        "CREATE INDEX jobs_by_status ON jobs (status, number)",
        "CREATE TABLE tombstones (id TEXT PRIMARY KEY, removed_at TEXT NOT NULL) STRICT, WITHOUT ROWID",
        """
        CREATE TABLE totals (
            only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
            generations INTEGER NOT NULL,
            images INTEGER NOT NULL,
            seconds REAL NOT NULL
        ) STRICT
        """,
        "INSERT INTO totals VALUES (1, 0, 0, 0.0)",
    ),
    (
        # The init images of a job, in their order; the files are named by digest, and jobs may share them.
        """
        CREATE TABLE inputs (
            number INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
            place INTEGER NOT NULL,
            sha256 TEXT NOT NULL,
            PRIMARY KEY (number, place)
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX inputs_by_digest ON inputs (sha256)",
    ),
    (
        # A key outlives its job's row and goes with the tombstone: a late retry must not generate again.
        """
        CREATE TABLE idempotency_keys (
            key TEXT PRIMARY KEY,
            body TEXT NOT NULL,
            job_id TEXT NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
        "CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job_id)",
    ),
    (
        # Synchronous jobs that are being generated: a killed process leaves images of them, and no row.
        """
        CREATE TABLE painting (
            id TEXT PRIMARY KEY,
            created_at TEXT NOT NULL,
            images INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID
        """,
    ),
    (
        "ALTER TABLE painting RENAME TO synchronous_runs",
        "ALTER TABLE jobs RENAME COLUMN attempts TO engine_deaths",
        "ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE jobs ADD COLUMN device TEXT",
    ),
)
"""Entry n leads from schema n to schema n + 1. Released entries never change; new ones are added at the end."""


def open_database(path: Path) -> sqlite3.Connection:
    """Open the file, create it if need be, and bring its schema up to date.

    The connection commits each statement by itself, unless ``BEGIN`` was executed, and may be used from any thread.

    Raises:
        ConfigError: it is not a job store, is damaged, was written by a newer version, or cannot be opened.
        DiskFull: no space is left to create it.
    """
    connection: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        # Before anything is written: the file may be somebody else's.
        _check(connection, path.name)
        _configure(connection)
        migrate(connection)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise _reason(error, path.name) from error
        if isinstance(error, OSError):
            raise ConfigError(_cannot_open(path.name, error.strerror or type(error).__name__)) from error
        raise
    return connection


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Apply what is missing, each migration in a transaction of its own."""
    for version in range(_number(connection, "PRAGMA user_version"), len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in migrations[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def typed_errors() -> Iterator[None]:
    """Turn the errors of an open database, or of the files beside it, into those that a client may see.

    Raises:
        DiskFull: no space is left.
        InternalError: anything else that SQLite reports.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        if code in _NO_ROOM:
            raise DiskFull(_FULL) from error
        raise InternalError(_BROKEN, {"reason": code}) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(_FULL) from error
        raise InternalError(_BROKEN, {"reason": error.strerror or type(error).__name__}) from error


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: in WAL mode NORMAL would lose the newest commits with the power.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # A removed job's prompt shall not stay readable in a free page.
    connection.execute("PRAGMA secure_delete = ON")
    if sys.platform == "darwin":
        # There fsync alone leaves the data in the drive's cache.
        connection.execute("PRAGMA fullfsync = 1")


def _check(connection: sqlite3.Connection, name: str) -> None:
    version = _number(connection, "PRAGMA user_version")
    ours = _number(connection, "PRAGMA application_id") == APPLICATION_ID
    empty = version == 0 and _number(connection, "SELECT count(*) FROM sqlite_schema") == 0
    if not (ours or empty):
        raise ConfigError(f"{name}: another program's database; move it away or set jobs.state_dir")
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"{name}: written by a newer mflux-api (schema {version}, this one knows {len(MIGRATIONS)}); "
            "update mflux-api, or set jobs.state_dir to another folder"
        )
    if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise ConfigError(_damaged(name))


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _code(error: sqlite3.Error) -> str:
    # The module's own errors have no code of SQLite's.
    return getattr(error, "sqlite_errorname", type(error).__name__)


def _reason(error: sqlite3.Error, name: str) -> ConfigError | DiskFull:
    code = _code(error)
    if code in _NO_ROOM:
        return DiskFull(_FULL)
    if code == "SQLITE_NOTADB" or code.startswith("SQLITE_CORRUPT"):
        return ConfigError(_damaged(name))
    return ConfigError(_cannot_open(name, str(error)))


def _damaged(name: str) -> str:
    return f"{name}: damaged, or not a job store; move it away to start with an empty one, or set jobs.state_dir"


def _cannot_open(name: str, reason: str) -> str:
    return f"{name}: cannot be opened: {reason}; check the state directory or set jobs.state_dir"
