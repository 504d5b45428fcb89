"""A copy of the job database in one file, made while a server may be writing to it."""

import errno
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from mflux_api.errors import ConfigError, DiskFull
from mflux_api.storage.database_file import BUSY_SECONDS, check_ours, opening_error
from mflux_api.system.durable import sync_file, sync_folder
from mflux_api.system.private_files import make_private_file


def back_up(database: Path, target: Path) -> int:
    """Copy a job database with SQLite's online backup, and return how many jobs the copy has.

    The copy is whole, and durable under its name, when this returns; otherwise there is none.

    Raises:
        ConfigError: there is no job database, it is damaged, or the target is there already or cannot be written.
        DiskFull: no space is left for the copy.
    """
    if not database.is_file():
        raise ConfigError(f"{database.name}: there is none in the state directory; set jobs.state_dir")
    if target.exists():
        raise ConfigError(f"{target.name or target}: it is there already; choose another name")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        # Now it can be said that the folder is missing, or cannot be written.
        make_private_file(temporary)
        count = _copy(database, temporary)
        sync_file(temporary)
        temporary.rename(target)
        sync_folder(target.parent)
    except sqlite3.Error as error:
        explained = opening_error(error, database.name)
        # Nothing is written to the database itself.
        raise _no_room(target) if isinstance(explained, DiskFull) else explained from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(target) from error
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{target.name}: cannot be written: {reason}; name a file in a folder that can") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return count


def _no_room(target: Path) -> DiskFull:
    return DiskFull(f"{target.name}: no space left for the copy; free some there, or name a file on another disk")


def _copy(database: Path, target: Path) -> int:
    source = sqlite3.connect(database, timeout=BUSY_SECONDS, isolation_level=None)
    with closing(source), closing(sqlite3.connect(target, isolation_level=None)) as copy:
        # Nothing is written to it, but a log that a killed server left is read, which takes more than mode=ro.
        source.execute("PRAGMA query_only = ON")
        check_ours(source, database.name)
        # All pages in one step: in parts it would begin anew with every job that the server changes meanwhile.
        source.backup(copy)
        # One file: without its own log beside it the copy would be as empty as the original can be.
        copy.execute("PRAGMA journal_mode = DELETE")
        check_ours(copy, target.name)
        return int(copy.execute("SELECT count(*) FROM jobs").fetchone()[0])
