"""The schemas that were ever released, as migrations, and applying them."""

import sqlite3
from collections.abc import Sequence

APPLICATION_ID = int.from_bytes(b"mflx")
"""Marks the file as a job store, so that another program's database is never migrated."""

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
    (
        # Rows that cannot be read, as they were. No types: what is wrong may be one. A column that `jobs` gets later
        # comes here, too.
        """
        CREATE TABLE unreadable_jobs (
            set_aside_at, number, id, status, created_at, started_at, completed_at, finished, engine_deaths,
            service_deaths, progress, synchronous, owner, device, request, images, failure, timings
        )
        """,
    ),
    (
        # A key sees its own jobs only, and of these also that they are gone.
        "CREATE INDEX jobs_by_owner ON jobs (owner, number)",
        "ALTER TABLE tombstones ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
    ),
    (
        # The outbox of webhooks is a part of the job's own row: no end can be committed without its message, and no
        # message outlives its job. `delivery_due` is null once nothing is to be sent.
        "ALTER TABLE jobs ADD COLUMN delivery TEXT",
        "ALTER TABLE jobs ADD COLUMN delivery_due TEXT",
        "CREATE INDEX jobs_by_delivery ON jobs (delivery_due) WHERE delivery_due IS NOT NULL",
        "ALTER TABLE unreadable_jobs ADD COLUMN delivery",
        "ALTER TABLE unreadable_jobs ADD COLUMN delivery_due",
    ),
)
"""Entry n leads from schema n to schema n + 1. Released entries never change; new ones are added at the end."""


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Apply the migrations that are missing, each in a transaction of its own."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    for version in range(found, len(migrations)):
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
