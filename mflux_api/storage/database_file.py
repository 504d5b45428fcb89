"""The SQLite file: opening it, its log, whether it is still the one that was opened, and what its errors mean."""

import errno
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path

from mflux_api.errors import ConfigError, DiskFull, InternalError
from mflux_api.storage.migrations import APPLICATION_ID, MIGRATIONS, migrate
from mflux_api.system.durable import make_folder, sync_file
from mflux_api.system.private_files import make_private_file, tighten

BUSY_SECONDS = 5.0
"""How long to wait for another program that reads the file."""

_NO_ROOM = frozenset({"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"})
"""Error names that mean a full disk: the database or its log, or the log's index, could not grow."""

_FULL = "No space left for the job store; free some in jobs.state_dir and try again"

_BROKEN = "The job store cannot be read or written; check the disk that holds jobs.state_dir"


class DatabaseFile:
    """An open database that notices when its file or its log is removed.

    Raises:
        ConfigError: the file is not a job store, is damaged, was written by a newer version, or cannot be opened.
        DiskFull: no space is left to create it.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(os.path.abspath(path))
        self._log = self._path.with_name(f"{self._path.name}-wal")
        self._open: sqlite3.Connection | None = open_database(self._path)
        self._identity = _identity(self._path)
        self._log_identity = _identity(self._log)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._open is not None:
            self._open.close()

    def check(self) -> None:
        """Make sure that what is written can be found again: SQLite goes on writing to a file that was removed.

        Raises:
            InternalError: the file was removed, or another program holds its log.
        """
        if self._identity is None or _identity(self._path) != self._identity:
            raise InternalError("The job database was removed from the state directory; restart the service")
        log = _identity(self._log)
        if self._open is None or log == self._log_identity:
            return
        if self._log_identity is None:
            # It comes with the first write.
            self._log_identity = log
        else:
            self._save_removed_log(self._open)

    def _save_removed_log(self, connection: sqlite3.Connection) -> None:
        """Write what is in a log that was removed, which only this process still sees, into the file."""
        with translate_errors():
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            # What it holds is nowhere else: the connection stays until the other program is done.
            raise InternalError("Another program reads the job database; close it and try again")
        connection.close()
        self._open = None

    @property
    def connection(self) -> sqlite3.Connection:
        """The open file; opened again, as often as need be, after :meth:`_save_removed_log`.

        Raises:
            DiskFull: no space is left for a new log.
            InternalError: it cannot be opened any more.
        """
        if self._open is None:
            try:
                self._open = open_database(self._path)
            except ConfigError as error:
                raise InternalError("The job database cannot be opened now; look at the state directory") from error
            self._log_identity = _identity(self._log)
        return self._open

    def checkpoint(self) -> None:
        """Write the log into the file, as far as that can be done now."""
        if self._open is not None:
            checkpoint(self._open)

    def sync(self) -> None:
        """Return when everything that was committed is on the disk.

        Raises:
            DiskFull: no space is left.
            InternalError: the disk refuses it.
        """
        with translate_errors(), suppress(FileNotFoundError):
            sync_file(self._log)

    @contextmanager
    def transaction(self, *, synced: bool = True) -> Iterator[None]:
        """Commit what the block executes, or none of it.

        Args:
            synced: whether to wait until it is on the disk; otherwise it outlives the process, and a power cut only
                after :meth:`sync` or the next transaction that is synced.

        Raises:
            DiskFull: no space is left.
            InternalError: the file cannot be written.
        """
        with translate_errors():
            if not synced:
                self.connection.execute("PRAGMA synchronous = NORMAL")
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors.
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            finally:
                if not synced:
                    self.connection.execute("PRAGMA synchronous = FULL")


def open_database(path: Path) -> sqlite3.Connection:
    """Open the file, create it if need be, and bring its schema up to date.

    The connection commits each statement by itself, unless ``BEGIN`` was executed, and may be used from any thread.

    Raises:
        ConfigError: it is not a job store, is damaged, was written by a newer version, or cannot be opened.
        DiskFull: no space is left to create it.
    """
    connection: sqlite3.Connection | None = None
    try:
        make_folder(path.parent)
        # SQLite would make it as the umask says; its log and its index get the file's mode.
        with suppress(FileExistsError):
            make_private_file(path)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        # Before anything is written: the file may belong to another program.
        check_ours(connection, path.name)
        tighten([path])
        _configure(connection)
        migrate(connection)
        _check_tables(connection, path.name)
        checkpoint(connection)
        tighten(path.with_name(f"{path.name}-{part}") for part in ("wal", "shm"))
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise opening_error(error, path.name) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(_FULL) from error
        if isinstance(error, OSError):
            raise ConfigError(_cannot_open_message(path.name, error.strerror or type(error).__name__)) from error
        raise
    return connection


def count_jobs(path: Path) -> int:
    """Return how many jobs a database has, and change nothing in it.

    Raises:
        ConfigError: it is not a job store, is damaged, was written by a newer version, or cannot be opened.
        DiskFull: no space is left to read it.
    """
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
            connection.execute("PRAGMA query_only = ON")
            check_ours(connection, path.name)
            if _number(connection, "PRAGMA user_version") == len(MIGRATIONS):
                _check_tables(connection, path.name)
            # An empty file is a job store, too; opening brings it up to date.
            return _number(connection, "SELECT count(*) FROM jobs") if "jobs" in _columns(connection) else 0
    except sqlite3.Error as error:
        raise opening_error(error, path.name) from error


def checkpoint(connection: sqlite3.Connection) -> None:
    """Write the log into the file, as far as that can be done now: a copy of the file alone then has what was in it.

    On a full disk it is left to the next time: the log still has everything.
    """
    with suppress(sqlite3.Error):
        # PASSIVE waits for no reader.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


@contextmanager
def translate_errors() -> Iterator[None]:
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
    # A byte that is not UTF-8 concerns its own row only.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: in WAL mode NORMAL would lose the newest commits with the power.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # A removed job's prompt must not stay readable in a free page.
    connection.execute("PRAGMA secure_delete = ON")
    if sys.platform == "darwin":
        # There fsync alone leaves the data in the drive's cache.
        connection.execute("PRAGMA fullfsync = 1")


def check_ours(connection: sqlite3.Connection, name: str) -> None:
    """Make sure that an open file is a job store that this version can use, or empty.

    Raises:
        ConfigError: it is not.
    """
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
        raise ConfigError(_damaged_message(name))


def _check_tables(connection: sqlite3.Connection, name: str) -> None:
    found = _columns(connection)
    for table, columns in _expected_columns().items():
        lacks = f"the table '{table}'" if table not in found else ""
        for column in columns - found.get(table, columns):
            lacks = f"the column '{column}' of the table '{table}'"
        if lacks:
            raise ConfigError(
                f"{name}: {lacks} is missing; put a backup of the file in its place, or move it away to start with an "
                "empty one"
            )


@cache
def _expected_columns() -> Mapping[str, frozenset[str]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        return _columns(connection)


def _columns(connection: sqlite3.Connection) -> dict[str, frozenset[str]]:
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    return {
        table: frozenset(row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,)))
        for (table,) in tables
    }


def _code(error: sqlite3.Error) -> str:
    # The module's own errors have no code of SQLite's.
    return getattr(error, "sqlite_errorname", type(error).__name__)


def opening_error(error: sqlite3.Error, name: str) -> ConfigError | DiskFull:
    """Return what an operator reads when a file cannot be opened or copied."""
    code = _code(error)
    if code in _NO_ROOM:
        return DiskFull(_FULL)
    if code == "SQLITE_NOTADB" or code.startswith("SQLITE_CORRUPT"):
        return ConfigError(_damaged_message(name))
    return ConfigError(_cannot_open_message(name, str(error)))


def _damaged_message(name: str) -> str:
    return f"{name}: damaged, or not a job store; move it away to start with an empty one, or set jobs.state_dir"


def _cannot_open_message(name: str, reason: str) -> str:
    return f"{name}: cannot be opened: {reason}; check the state directory or set jobs.state_dir"


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
