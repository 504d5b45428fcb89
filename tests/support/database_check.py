"""SQLite's own opinion of a server's database."""

import contextlib
import sqlite3
from pathlib import Path

from mflux_api.storage.sqlite import DATABASE_NAME


def integrity(folder: Path) -> str:
    """Return ``ok`` if the database in a server's folder is sound, else what is wrong with it."""
    with contextlib.closing(sqlite3.connect(folder / "output" / DATABASE_NAME)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
