"""``mflux-api jobs``: those of a running server; a backup of the job database, and removing the records of old jobs."""

import argparse
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mflux_api.cli.running_server import address, call
from mflux_api.cli.server_jobs import add_list_options, cancel_jobs, list_jobs, watch_job
from mflux_api.config import Settings, load_settings
from mflux_api.errors import ConfigError, InternalError
from mflux_api.storage.backup import back_up
from mflux_api.storage.retention import Retention, prune
from mflux_api.storage.sqlite import DATABASE_NAME, SqliteRepository
from mflux_api.storage.state_lock import StateInUse, StateLock

_AGE = re.compile(r"([0-9]{1,6})([mhdw])")
_MOST_HOURS = 1e6
"""What the route takes: longer ago than any job."""
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def add_arguments(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """Describe the subcommands and their options."""
    commands = parser.add_subparsers(dest="action", required=True)
    server_help = "the server (default: the address in the configuration)"
    listing = commands.add_parser("list", parents=[shared], help="list a server's jobs, newest first")
    add_list_options(listing)
    listing.add_argument("--url", help=server_help)
    watching = commands.add_parser("watch", parents=[shared], help="show a job's progress until its end")
    watching.add_argument("job", metavar="ID", help="of the list")
    watching.add_argument("--url", help=server_help)
    cancelling = commands.add_parser("cancel", parents=[shared], help="cancel jobs that wait or run")
    cancelling.add_argument("jobs", nargs="*", metavar="ID", help="of the list")
    cancelling.add_argument("--all", action="store_true", help="every job that is not finished")
    cancelling.add_argument("--url", help=server_help)
    backup = commands.add_parser(
        "backup", parents=[shared], help="copy the job database to a file, with or without a running server"
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="a file that is not there yet")
    old = commands.add_parser(
        "prune", parents=[shared], help="remove the records of old jobs; through the server, when one runs"
    )
    old.add_argument(
        "--older-than", type=_age, required=True, metavar="AGE", help="since their end: 90m, 12h, 30d or 8w"
    )
    old.add_argument("--dry-run", action="store_true", help="only say which they are")
    old.add_argument("--url", help="the server (default: the address in the configuration, if one runs)")


def run(options: argparse.Namespace) -> int:
    """Carry out one of them.

    Raises:
        ConfigError: the configuration or the job database cannot be used, or the file is there already.
        ServiceError: it cannot be done; the message says why.
        OSError: no server answers where one is needed.
    """
    settings = load_settings(options.config)
    match options.action:
        case "list":
            return list_jobs(settings, options)
        case "watch":
            return watch_job(settings, options.url, options.job)
        case "cancel":
            return cancel_jobs(settings, options.url, options.jobs, everything=options.all)
        case "backup":
            count = back_up(settings.state_dir / DATABASE_NAME, options.file)
            print(f"{options.file}: {count} job(s)")
        case "prune":
            removed = _prune(settings, options.older_than, dry_run=options.dry_run, url=options.url)
            for job_id in removed:
                print(job_id)
            print(f"{len(removed)} record(s) {'would be ' if options.dry_run else ''}removed")
    return 0


def _age(text: str) -> timedelta:
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not an age; write it like 90m, 12h, 30d or 8w")
    return int(match[1]) * _UNITS[match[2]]


def _prune(settings: Settings, older_than: timedelta, *, dry_run: bool, url: str | None) -> list[str]:
    if url is None:
        try:
            return _prune_here(settings, older_than, dry_run=dry_run)
        except StateInUse:
            # A server runs and is the only one that may change its jobs.
            url = address(settings)
    body = {"older_than_hours": min(older_than / timedelta(hours=1), _MOST_HOURS), "dry_run": dry_run}
    removed: Iterable[str] = call(settings, url, "POST", "jobs/prune", body, holds="removed")["removed"]
    return list(removed)


def _prune_here(settings: Settings, older_than: timedelta, *, dry_run: bool) -> list[str]:
    database = settings.state_dir / DATABASE_NAME
    if not database.is_file():
        raise ConfigError(f"{DATABASE_NAME}: there is none in the state directory; set jobs.state_dir")
    with StateLock.from_settings(settings), SqliteRepository(database) as repository:
        now = datetime.now(UTC)
        retention = Retention.from_settings(settings)
        removed = prune(repository, retention, now=now, older_than=older_than, dry_run=dry_run)
    if removed.stuck is not None:
        raise InternalError(
            f"Some images cannot be deleted ({removed.stuck}), and their records stay; check output_dir"
        )
    return [job.id for job in removed.jobs]
