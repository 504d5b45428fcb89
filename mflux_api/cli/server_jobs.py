"""Jobs and the queue of a running server: listing, watching, cancelling."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from mflux_api.cli.error_text import describe, name_options
from mflux_api.cli.exit_status import EXIT_FAILED
from mflux_api.cli.generating import follow
from mflux_api.cli.progress_bar import ProgressBar, clock_text
from mflux_api.cli.running_server import connected
from mflux_api.cli.table import line_width, table
from mflux_api.config import Settings
from mflux_api.errors import ConfigError, ServiceError
from mflux_api.ipc.printable import printable
from mflux_api.jobs.job import Status

if TYPE_CHECKING:
    from mflux_api.client import ActiveJob, Client, Job, QueuedJob

MOST_LISTED = 500
_PAGE = 100


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of ``jobs list``."""
    parser.add_argument("--limit", type=int, default=20, help=f"how many, at most {MOST_LISTED} (default: 20)")
    parser.add_argument("--status", choices=[status.value for status in Status], help="those in this state")
    parser.add_argument("--search", metavar="WORDS", help="those whose prompt has all these words")
    parser.add_argument("--model", help="those on this model")
    parser.add_argument("--lora", help="those with this LoRA")
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def list_jobs(settings: Settings, options: argparse.Namespace) -> int:
    """Print jobs, newest first.

    Raises:
        ConfigError: the limit is not one.
        ServiceError: the server refuses.
        ConnectionError: no server answers.
    """
    if not 1 <= options.limit <= MOST_LISTED:
        raise ConfigError(f"--limit: expected 1 to {MOST_LISTED}")
    where = {"status": options.status, "q": options.search, "model": options.model, "lora": options.lora}
    with connected(settings, options.url) as client:
        jobs = _pages(client, options.limit, where)
    if options.json:
        print_json(jobs)
    elif jobs:
        rows = [(job.id, job.status.value, _when(job.created_at), job.model, printable(job.prompt)) for job in jobs]
        print(table([("ID", "STATUS", "CREATED", "MODEL", "PROMPT"), *rows], line_width()))
    else:
        print("no jobs")
    return 0


def _pages(client: "Client", limit: int, where: dict[str, Any]) -> "list[Job]":
    jobs: list[Job] = []
    cursor = None
    while len(jobs) < limit:
        page = client.jobs(limit=min(_PAGE, limit - len(jobs)), cursor=cursor, **where)
        jobs += page.jobs
        cursor = page.next_cursor
        if cursor is None:
            break
    return jobs


def watch_job(settings: Settings, url: str | None, job_id: str) -> int:
    """Show a job's progress until its end; Ctrl-C leaves it alone. Returns a failure where it did not complete.

    Raises:
        ServiceError: the server refuses.
        ConnectionError: no server answers.
    """
    with connected(settings, url, retries=3) as client, ProgressBar(sys.stderr) as bar:
        job = follow(client, job_id, bar)
    for warning in job.warnings:
        print(f"mflux-api: warning: {name_options(warning)}", file=sys.stderr)
    failure = job.failure()
    if failure is None:
        seeds = () if job.result is None else job.result.seeds
        print(f"{job.id}: {job.status}, {len(seeds)} image(s), seed {', '.join(map(str, seeds))}")
        return 0
    print(f"{job.id}: {job.status}{'' if job.status is Status.CANCELLED else f', {describe(failure)}'}")
    return EXIT_FAILED


def cancel_jobs(settings: Settings, url: str | None, job_ids: Sequence[str], *, everything: bool) -> int:
    """Cancel jobs, and print what became of each. Returns a failure where one could not be.

    Raises:
        ConfigError: none is named, or both some and all.
        ServiceError: the server refuses.
        ConnectionError: no server answers.
    """
    if everything == bool(job_ids):
        raise ConfigError("name the jobs to cancel, or give --all")
    status = 0
    with connected(settings, url) as client:
        if everything:
            while (page := client.cancel_all()).jobs:
                for outcome in page.jobs:
                    print(f"{outcome.id}: {outcome.status or printable(outcome.error or '')}")
                if not page.more:
                    break
        for job_id in job_ids:
            try:
                print(f"{job_id}: {client.cancel(job_id)}")
            except ServiceError as error:
                print(f"{job_id}: {describe(error)}", file=sys.stderr)
                status = EXIT_FAILED
    return status


def show_queue(settings: Settings, url: str | None, *, as_json: bool) -> int:
    """Print what runs, and what waits in the order in which it is due.

    Raises:
        ServiceError: the server refuses.
        ConnectionError: no server answers.
    """
    with connected(settings, url) as client:
        queue = client.queue()
    if as_json:
        print_json(queue)
        return 0
    active = queue.active
    rows = [] if active is None else [_place(active, f"{active.progress:.0%}")]
    rows += [_place(job, f"#{job.position}") for job in queue.queued]
    if rows:
        print(table([("ID", "PLACE", "LEFT", "PROMPT"), *rows], line_width()))
    more = queue.total - len(queue.queued)
    print(f"{queue.total} waiting" + (f", {more} of them not shown" if more > 0 else ""))
    return 0


def _place(job: "ActiveJob | QueuedJob", place: str) -> tuple[str, ...]:
    return (job.job_id or "", place, _left(job.eta_seconds), printable(job.prompt or "(another's)"))


def print_json(value: Any) -> None:
    """Print an answer of a server, or several, as JSON."""
    print(json.dumps(msgspec.to_builtins(value), indent=2))


def _left(seconds: float | None) -> str:
    return "" if seconds is None else clock_text(seconds)


def _when(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone():%m-%d %H:%M}"
