"""``GET /api/v1/jobs``: the list of jobs, and searching it."""

from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.errors import InvalidParameter
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.operations import Operation, query_parameter
from mflux_api.http.query import invalid_parameter, number_parameter, unknown_parameters
from mflux_api.http.render import job_response
from mflux_api.http.responses import json_response
from mflux_api.http.routes.job_schemas import JobList
from mflux_api.http.security.guard import caller
from mflux_api.jobs.job import Status
from mflux_api.jobs.search import MAX_NAME, MAX_QUERY, JobFilter, fold_words

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
MAX_STATUSES = 16
"""Values of ``status`` that are read; there are five."""

PARAMETERS = ("limit", "cursor", "status", "q", "model", "lora", "edit")

OPERATIONS = (
    Operation(
        method="get",
        path="/api/v1/jobs",
        summary="List jobs, newest first, or search them",
        scope=Scope.READ,
        response=JobList,
        parameters=(
            query_parameter(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
                "Jobs on a page",
            ),
            query_parameter("cursor", {"type": "string"}, "next_cursor of the page before"),
            query_parameter(
                "status",
                {"type": "array", "items": {"enum": [status.value for status in Status]}, "maxItems": MAX_STATUSES},
                "Only jobs in one of these states: repeated, or separated by commas",
            ),
            query_parameter("q", {"type": "string", "maxLength": MAX_QUERY}, "Words that the prompt has, all of them"),
            query_parameter("model", {"type": "string", "maxLength": MAX_NAME}, "Only jobs on this model"),
            query_parameter("lora", {"type": "string", "maxLength": MAX_NAME}, "Only jobs with this LoRA"),
            query_parameter("edit", {"type": "boolean"}, "Only jobs that are made from an image, or are not"),
        ),
        errors=(InvalidParameter,),
    ),
)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the route."""
    routes = Blueprint("job_search", __name__, url_prefix="/api/v1")

    @routes.get("/jobs")
    async def list_jobs() -> Response:
        asked, cursor, visible = number_parameter("limit", 1, MAX_LIMIT), request.args.get("cursor"), caller().sees
        limit = DEFAULT_LIMIT if asked is None else asked
        where = _filter()
        if where == JobFilter(statuses=where.statuses) and len(where.statuses) <= 1:
            status = where.statuses[0] if where.statuses else None
            views, cursor = await gateway.jobs(limit=limit, cursor=cursor, status=status, visible=visible)
        else:
            views, cursor = await gateway.search(where, limit=limit, cursor=cursor, visible=visible)
        jobs = tuple(job_response(view) for view in views)
        return json_response(JobList(jobs=jobs, next_cursor=cursor, warnings=unknown_parameters(*PARAMETERS)))

    return routes


def _filter() -> JobFilter:
    """Return what the current address asks for; an empty value asks for nothing.

    Raises:
        InvalidParameter: one of its parameters is not what was expected.
    """
    return JobFilter(
        words=fold_words(_text("q", MAX_QUERY) or ""),
        model=_text("model", MAX_NAME),
        lora=_text("lora", MAX_NAME),
        statuses=_statuses(),
        edit=_edit(request.args.get("edit")),
    )


def _text(name: str, longest: int) -> str | None:
    text = request.args.get(name) or None
    if text is not None and len(text) > longest:
        raise invalid_parameter(name, text, f"at most {longest} characters")
    return text


def _statuses() -> tuple[Status, ...]:
    asked = [each for value in request.args.getlist("status") for each in value.split(",", MAX_STATUSES)]
    statuses: dict[Status, None] = {}
    for each in asked:
        try:
            statuses[Status(each.strip())] = None
        except ValueError:
            raise invalid_parameter("status", each, ", ".join(Status)) from None
    # All of them are no condition.
    return () if len(statuses) == len(Status) else tuple(statuses)


def _edit(text: str | None) -> bool | None:
    if not text:
        return None
    if text.lower() not in ("true", "false"):
        raise invalid_parameter("edit", text, "true or false")
    return text.lower() == "true"
