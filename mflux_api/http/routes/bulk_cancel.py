"""``POST /api/v1/jobs/cancel``: cancel many jobs at once."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from quart import Blueprint, Response

from mflux_api.access.keys import Caller, Scope
from mflux_api.access.visibility import Visibility
from mflux_api.errors import InvalidParameter, OriginNotAllowed, shorten_value
from mflux_api.gateway.bulk_cancel import Outcome
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.body import json_object
from mflux_api.http.operations import BODY_ERRORS, Operation
from mflux_api.http.responses import json_response
from mflux_api.http.routes.job_schemas import MAX_CANCELLED, BulkCancelRequest, BulkCancelResponse, CancelOutcome
from mflux_api.http.security.guard import caller, refuse_unlisted_page
from mflux_api.jobs.job import Status
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.search import MAX_NAME, MAX_QUERY, JobFilter, fold_words

_FIELDS = Fields.of(BulkCancelRequest)
_EXPECTED: Final[Mapping[str, str]] = {
    "ids": f"a list of 1 to {MAX_CANCELLED} job ids",
    "status": "queued or generating",
    "q": f"words, of 1 to {MAX_QUERY} characters",
    "model": f"a model's name, of 1 to {MAX_NAME} characters",
    "lora": f"a LoRA's name, of 1 to {MAX_NAME} characters",
    "edit": "true or false",
    "all": "true or false",
}

OPERATIONS = (
    Operation(
        method="post",
        path="/api/v1/jobs/cancel",
        summary="Cancel many jobs: by their ids, by conditions, or all",
        # A key without `manage` cancels its own jobs.
        scope=Scope.GENERATE,
        body=BulkCancelRequest,
        response=BulkCancelResponse,
        errors=(*BODY_ERRORS, OriginNotAllowed),
    ),
)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the route."""
    routes = Blueprint("bulk_cancel", __name__, url_prefix="/api/v1")

    @routes.post("/jobs/cancel")
    async def cancel_many() -> Response:
        refuse_unlisted_page()
        read = await json_object(_FIELDS)
        asked = _request(read.values)
        more = False
        if asked.ids:
            outcomes = await gateway.cancel_all(asked.ids, visible=caller().sees)
        else:
            outcomes, more = await gateway.cancel_found(
                _conditions(asked), limit=MAX_CANCELLED, visible=_cancellable(caller())
            )
        return json_response(
            BulkCancelResponse(
                jobs=tuple(map(_outcome, outcomes)),
                cancelled=sum(each.status is Status.CANCELLED for each in outcomes),
                more=more,
                warnings=read.warnings,
            )
        )

    return routes


def _cancellable(who: Caller) -> Visibility:
    """Return the jobs that conditions may find: those of others only for one who manages, seen or not."""
    if who.key is None or who.key.allows(Scope.MANAGE):
        return who.sees
    return Visibility(only=who.owner)


def _request(values: Mapping[str, Any]) -> BulkCancelRequest:
    present = {name: value for name, value in values.items() if value is not None}
    try:
        asked = msgspec.convert(present, BulkCancelRequest)
    except msgspec.ValidationError as error:
        place = re.search(r"\$\.(\w+)", str(error))
        field = place[1] if place is not None and place[1] in _EXPECTED else "ids"
        limit = _EXPECTED[field]
        shown = shorten_value(present.get(field))
        raise InvalidParameter.for_field(field, f"is invalid: expected {limit}", value=shown, limit=limit) from None
    conditions = [name for name in ("status", "q", "model", "lora", "edit") if name in present]
    if asked.ids and (conditions or asked.all):
        beside = conditions[0] if conditions else "all"
        raise InvalidParameter.for_field(
            "ids", f"is invalid: expected it without '{beside}'; send ids or conditions", limit="ids or conditions"
        )
    if not (asked.ids or conditions or asked.all):
        raise InvalidParameter.for_field(
            "ids", "is required: send ids, a condition such as 'status', or 'all': true", limit="required"
        )
    return asked


def _conditions(asked: BulkCancelRequest) -> JobFilter:
    words = fold_words(asked.q or "")
    if asked.q is not None and not words:
        # Blanks alone would be no condition.
        raise InvalidParameter.for_field("q", f"is invalid: expected {_EXPECTED['q']}", limit=_EXPECTED["q"])
    return JobFilter(
        words=words,
        model=asked.model,
        lora=asked.lora,
        statuses=() if asked.status is None else (Status(asked.status),),
        edit=asked.edit,
    )


def _outcome(each: Outcome) -> CancelOutcome:
    return CancelOutcome(
        id=each.id,
        status=None if each.status is None else each.status.value,
        code=None if each.error is None else each.error.code,
        error=None if each.error is None else each.error.message,
    )
