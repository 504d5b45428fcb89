"""A copy of the job database in one file, made while a server may be writing to it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from mflux_api.errors import ConfigError
from mflux_api.storage.database_file import BUSY_SECONDS, check_ours, opening_error
from mflux_api.system.durable import sync_file, sync_folder


def back_up(database: Path, target: Path) -> int:
    """Copy a job database with SQLite's online backup, and return how many jobs the copy has.

    The copy is whole, and durable under its name, when this returns; otherwise there is none.

    Raises:
        ConfigError: there is no job database, it is damaged, or the target is there already.
        DiskFull: no space is left for the copy.
        OSError: the target cannot be written.
    """
    if not database.is_file():
        raise ConfigError(f"{database.name}: there is none in the state directory; set jobs.state_dir")
    if target.exists():
        raise ConfigError(f"{target.name}: it is there already; choose another name")
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb"):
            # Now it can be said that the folder is missing, or cannot be written.
            pass
        count = _copy(database, temporary)
        sync_file(temporary)
        temporary.rename(target)
    except sqlite3.Error as error:
        raise opening_error(error, database.name) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return count


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
