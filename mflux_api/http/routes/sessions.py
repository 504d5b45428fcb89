"""``/api/v1/session`` and ``/api/v1/jobs/{id}/ticket``: how browsers, which set few headers, come in with a key."""

from datetime import UTC, datetime

from quart import Blueprint, Response

from mflux_api.access.keys import ALL_SCOPES, Key, Scope
from mflux_api.errors import JobGone, JobNotFound, OriginNotAllowed, Unauthorized
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.body import json_object
from mflux_api.http.forwarded import external_prefix, external_scheme
from mflux_api.http.operations import BODY_ERRORS, Operation, path_parameter
from mflux_api.http.render import image_path, timestamp
from mflux_api.http.responses import json_response
from mflux_api.http.routes.session_schemas import SessionRequest, SessionResponse, TicketResponse
from mflux_api.http.security.guard import (
    caller,
    end_session,
    has_keys,
    key_in_body,
    key_in_headers,
    refuse_foreign_page,
    refuse_key,
    session_expires,
    tokens,
)
from mflux_api.http.security.tokens import TICKET
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.parse import convert

PATH = "/api/v1/session"
_FIELDS = Fields.of(SessionRequest)

OPERATIONS = (
    Operation(
        method="post",
        path=PATH,
        summary="Turn a key, in a header or the body, into a cookie that counts for this server's own pages",
        scope=None,
        body=SessionRequest,
        body_optional=True,
        response=SessionResponse,
        errors=(*BODY_ERRORS, Unauthorized, OriginNotAllowed),
    ),
    Operation(
        method="get",
        path=PATH,
        summary="Whose key the request has, and what it may do",
        scope=Scope.READ,
        response=SessionResponse,
    ),
    Operation(
        method="delete",
        path=PATH,
        summary="End the session of the cookie, also where it was copied to, and take the cookie away",
        scope=None,
        response=SessionResponse,
        errors=(OriginNotAllowed,),
    ),
    Operation(
        method="post",
        path="/api/v1/jobs/{job_id}/ticket",
        summary="A short-lived token for one job, its stream and its images, for EventSource and <img>",
        scope=Scope.READ,
        response=TicketResponse,
        parameters=(path_parameter("job_id"),),
        errors=(JobNotFound, JobGone),
    ),
)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("sessions", __name__)

    @routes.post(PATH)
    async def open_session() -> Response:
        refuse_foreign_page()
        read = await json_object(_FIELDS, may_be_empty=True)
        asked = convert(read.values, SessionRequest)
        if not has_keys():
            return json_response(_described(None))
        key = key_in_body(asked.key) if asked.key is not None else key_in_headers()
        if key is None:
            await refuse_key()
        token, expires = await tokens().session(key)
        response = json_response(_described(key, expires))
        await tokens().set_cookie(response, token, secure=external_scheme() == "https")
        return response

    @routes.get(PATH)
    async def session() -> Response:
        return json_response(_described(caller().key, await session_expires()))

    @routes.delete(PATH)
    async def close_session() -> Response:
        refuse_foreign_page()
        response = json_response(SessionResponse(name=None, scopes=(), expires_at=None))
        await end_session(response, secure=external_scheme() == "https")
        return response

    @routes.post("/api/v1/jobs/<job_id>/ticket")
    async def ticket(job_id: str) -> Response:
        job = (await gateway.job(job_id, visible=caller().sees)).job
        key = caller().key
        token, expires = (None, None) if key is None else await tokens().ticket(job.id, key)
        below = external_prefix()
        query = "" if token is None else f"?{TICKET}={token}"
        return json_response(
            TicketResponse(
                job_id=job.id,
                ticket=token,
                expires_at=_time(expires),
                stream=f"{below}/api/v1/jobs/{job.id}/stream{query}",
                images=tuple(below + image_path(job, index) + query for index in range(len(job.images))),
            )
        )

    return routes


def _described(key: Key | None, expires: int | None = None) -> SessionResponse:
    scopes = ALL_SCOPES if key is None else {scope for scope in Scope if key.allows(scope)}
    return SessionResponse(
        name=None if key is None else key.name,
        scopes=tuple(sorted(scopes)),
        expires_at=_time(expires),
    )


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else timestamp(datetime.fromtimestamp(seconds, UTC))
