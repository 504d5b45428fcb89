"""``/login``, as Gradio's clients call it: a key as a user's name or password becomes a session's cookie."""

from urllib.parse import parse_qs

from quart import Blueprint, Response, request

from mflux_api.access.keys import Key
from mflux_api.errors import InvalidParameter, OriginNotAllowed, Unauthorized
from mflux_api.http.a1111.discovery_schemas import LoginRequest, LoginResponse
from mflux_api.http.body import json_object
from mflux_api.http.forwarded import external_scheme
from mflux_api.http.operations import BODY_ERRORS, Operation
from mflux_api.http.responses import json_response
from mflux_api.http.security.guard import (
    has_keys,
    key_in_body,
    key_in_headers,
    offers_key,
    refuse_foreign_page,
    refuse_key,
    tokens,
)
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.parse import convert

PATH = "/login"
MOST_FORM_BYTES = 4 * 1024
_MOST_FORM_FIELDS = 16
"""Gradio's own form has up to six: OAuth's ``grant_type``, ``scope`` and so on beside the two."""
_FIELDS = Fields.of(LoginRequest)

OPERATIONS = (
    Operation(
        method="post",
        path=PATH,
        summary="What Gradio's clients send before all else; the name or the password is an API key",
        scope=None,
        body=LoginRequest,
        body_optional=True,
        forms=True,
        response=LoginResponse,
        errors=(*BODY_ERRORS, Unauthorized, OriginNotAllowed),
    ),
)


def blueprint() -> Blueprint:
    """Build the route."""
    routes = Blueprint("login", __name__)

    @routes.post(PATH)
    async def login() -> Response:
        refuse_foreign_page()
        asked = await _read()
        response = json_response(LoginResponse())
        if has_keys():
            token, _ = await tokens().session(await _key(asked))
            await tokens().set_cookie(response, token, secure=external_scheme() == "https")
        return response

    return routes


async def _read() -> LoginRequest:
    """Read what a client sends: a form of either kind, JSON, or nothing."""
    if request.mimetype != "application/x-www-form-urlencoded":
        return convert((await json_object(_FIELDS, may_be_empty=True, forms=True)).values, LoginRequest)
    data = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    try:
        if len(data) > MOST_FORM_BYTES:
            raise ValueError
        fields = parse_qs(data.decode(), max_num_fields=_MOST_FORM_FIELDS, errors="strict")
    except ValueError:
        expected = f"username and password as a form of up to {MOST_FORM_BYTES // 1024} KB"
        raise InvalidParameter.for_field("body", f"is invalid: expected {expected}", limit=expected) from None
    return LoginRequest(**{name: fields[name][0] for name in ("username", "password") if name in fields})


async def _key(asked: LoginRequest) -> Key:
    """Return the key of a login: one of the body, else of the headers, which such clients send as well.

    Raises:
        Unauthorized: there is none, or it is wrong.
    """
    sent = [secret for secret in (asked.password, asked.username) if secret]
    for secret in sent:
        if (key := key_in_body(secret)) is not None:
            return key
    if not sent and (key := key_in_headers()) is not None:
        return key
    if sent or offers_key():
        await refuse_key()
    raise Unauthorized("A valid API key is required: send it as 'password', or as 'Authorization: Bearer KEY'")
