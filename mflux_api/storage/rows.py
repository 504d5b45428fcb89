"""A job as a row of the database, and back.

A row may have been written by an older version, or by a newer one before a downgrade: unknown fields are left
out, and missing ones get their defaults.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import attrs

from mflux_api.errors import InternalError
from mflux_api.jobs.inpainting import Inpainting
from mflux_api.jobs.job import Failure, Job, Status, StoredImage, Timings
from mflux_api.jobs.request import DEFAULT_SIDE
from mflux_api.jobs.resolve import ResolvedRequest, Upscaling
from mflux_api.jobs.webhook import Delivery, DeliveryState, Webhook

T = TypeVar("T")


class UnreadableRow(InternalError):
    """A row of the database is not that of a job; it is, or will be, in the table ``unreadable_jobs``."""

    @classmethod
    def of(cls, job_id: object) -> "UnreadableRow":
        """Return the error for one job."""
        shown = str(job_id)[:32]
        return cls(f"The record of job '{shown}' cannot be read, and was set aside; submit it again", {"job_id": shown})


COLUMNS = (
    "number, id, status, created_at, started_at, completed_at, finished, engine_deaths, service_deaths, progress, "
    "synchronous, owner, device, request, images, failure, timings, "
    "delivery, delivery_due"
)


_DEFAULTS: Mapping[str, Any] = {
    "model": "",
    "seed": 0,
    "width": DEFAULT_SIDE,
    "height": DEFAULT_SIDE,
    "steps": 0,
    "guidance": 1.0,
}
"""Values that a row may lack. A job without its own values is listed, and fails when it runs."""


def to_row(number: int, job: Job, finished: int | None, *, folder: Path) -> dict[str, Any]:
    """Return a job's row by column name.

    Args:
        number: its place in the list of jobs.
        job: the job; its init images are kept elsewhere.
        finished: its place among the finished ones.
        folder: images below it are kept by their relative path.
    """
    images = [attrs.evolve(image, path=_stored_path(image.path, folder)) for image in job.images]
    return {
        "number": number,
        "id": job.id,
        "status": job.status.value,
        "created_at": moment_text(job.created_at),
        "started_at": None if job.started_at is None else moment_text(job.started_at),
        "completed_at": None if job.completed_at is None else moment_text(job.completed_at),
        "finished": finished,
        "engine_deaths": job.engine_deaths,
        "service_deaths": job.service_deaths,
        "progress": job.progress,
        "synchronous": job.synchronous,
        "owner": job.owner,
        "device": job.device,
        "request": _json(_request_fields(job.request)),
        "images": _json([attrs.asdict(image) for image in images]),
        "failure": None if job.failure is None else _json(attrs.asdict(job.failure)),
        "timings": None if job.timings is None else _json(attrs.asdict(job.timings)),
        "delivery": None if job.delivery is None else _json(attrs.asdict(attrs.evolve(job.delivery, due=None))),
        "delivery_due": None if job.delivery is None or job.delivery.due is None else moment_text(job.delivery.due),
    }


def from_row(row: tuple[Any, ...], *, folder: Path) -> tuple[int, Job]:
    """Return a job and its place in the list of jobs.

    Args:
        row: the values of :data:`COLUMNS`.
        folder: what relative paths of images are relative to.

    Raises:
        UnreadableRow: the row cannot be read.
    """
    number, job_id, status, created, started, completed, _, *others = row
    *counts, request, images, failure, timings, delivery, due = others
    engine_deaths, service_deaths, progress, synchronous, owner, device = counts
    try:
        _require(isinstance(job_id, str) and job_id.isascii(), "an id is ASCII")
        stored = [_build(StoredImage, image) for image in json.loads(images)]
        job = Job(
            id=job_id,
            request=_request(json.loads(request)),
            created_at=moment(created),
            status=Status(status),
            started_at=None if started is None else moment(started),
            completed_at=None if completed is None else moment(completed),
            engine_deaths=engine_deaths,
            service_deaths=service_deaths,
            images=tuple(attrs.evolve(image, path=str(folder / image.path)) for image in stored),
            progress=progress,
            failure=None if failure is None else _build(Failure, json.loads(failure)),
            timings=None if timings is None else _build(Timings, json.loads(timings)),
            synchronous=bool(synchronous),
            owner=owner,
            device=device,
            delivery=None if delivery is None else _delivery(json.loads(delivery), due),
        )
        _require((job.completed_at is not None) == job.status.terminal, "a job has an end when it is over")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        # Not a ValueError: page() raises that for a cursor.
        raise UnreadableRow.of(job_id) from error
    return number, job


def moment(text: str) -> datetime:
    """Read what :func:`moment_text` wrote.

    Raises:
        ValueError: it is not such a text.
        TypeError: it is not a text.
    """
    found = datetime.fromisoformat(text)
    _require(found.tzinfo is not None, "a moment has its time zone")
    return found


def moment_text(moment: datetime) -> str:
    """Return a moment as text, all of one width, so that SQL can compare them."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _request_fields(request: ResolvedRequest) -> dict[str, Any]:
    """Return the request as one flat object, as every version has written it."""
    fields = attrs.asdict(attrs.evolve(request, init_images=(), mask="", upscaling=None))
    del fields["upscaling"]
    upscaling = request.upscaling
    return fields | ({"resolution": None} if upscaling is None else attrs.asdict(upscaling))


def _request(fields: Mapping[str, Any]) -> ResolvedRequest:
    upscaling = _build(Upscaling, fields) if fields.get("resolution") is not None else None
    inpainting = None if fields.get("inpainting") is None else _build(Inpainting, fields["inpainting"])
    webhook = None if fields.get("webhook") is None else _build(Webhook, fields["webhook"])
    parts = {"upscaling": upscaling, "inpainting": inpainting, "webhook": webhook}
    return _build(ResolvedRequest, {**_DEFAULTS, **fields, **parts})


def _delivery(fields: Mapping[str, Any], due: str | None) -> Delivery:
    found = _build(Delivery, fields)
    return attrs.evolve(found, state=DeliveryState(found.state), due=None if due is None else moment(due))


def _stored_path(path: str, folder: Path) -> str:
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path


def _json(value: Any) -> str:
    # Escaped to ASCII: SQLite takes no lone surrogates, but a prompt or the path of a file may hold one.
    return json.dumps(value, default=str)


def _build(target: type[T], fields: Mapping[str, Any]) -> T:
    """Build a value from the fields that this version knows; limits do not apply to what was accepted once."""
    hints: Mapping[str, Any] = _hints(target)  # type: ignore[arg-type]
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    known = {name: value for name, value in plain.items() if name in hints}
    for name, value in known.items():
        expected = _PLAIN.get(hints[name])
        _require(expected is None or isinstance(value, expected), "a field has its type")
    return target(**known)


_PLAIN: Mapping[Any, tuple[type, ...]] = {str: (str,), int: (int,), float: (float, int), bool: (bool,)}
"""Types that are compared: the others may be absent, or are built from these."""


@cache
def _hints(target: type[Any]) -> Mapping[str, Any]:
    hints = get_type_hints(target)
    return {field.name: hints[field.name] for field in attrs.fields(target)}


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)
