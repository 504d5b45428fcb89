"""``/sdapi/v1/png-info``: how an image was made, as A1111's clients read it."""

from collections.abc import Mapping

import attrs
from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.body import json_object
from mflux_api.http.operations import BODY_ERRORS, Operation
from mflux_api.http.responses import json_response
from mflux_api.http.security.guard import caller
from mflux_api.images.infotext import parse_infotext
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.parse import convert
from mflux_api.jobs.request import EncodedImage

PATH = "/sdapi/v1/png-info"


@attrs.frozen(kw_only=True)
class PngInfoRequest:
    """``POST /sdapi/v1/png-info``."""

    image: EncodedImage = attrs.field(repr=False)
    """A PNG, JPEG or WebP file as base64 or a data URL."""


@attrs.frozen(kw_only=True)
class PngInfoResponse:
    """``POST /sdapi/v1/png-info``."""

    info: str
    """The infotext; empty where there is none."""
    items: Mapping[str, str]
    """All texts of the file by name."""
    parameters: Mapping[str, str]
    """What the infotext says, by A1111's names."""


OPERATIONS = (
    Operation(
        method="post",
        path=PATH,
        summary="How an image was made, as its file says",
        scope=Scope.READ,
        body=PngInfoRequest,
        forms=True,
        response=PngInfoResponse,
        errors=BODY_ERRORS,
    ),
)

_FIELDS = Fields.of(PngInfoRequest)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the route."""
    routes = Blueprint("png_info", __name__)

    @routes.post(PATH)
    async def png_info() -> Response:
        asked = convert((await json_object(_FIELDS, forms=True)).values, PngInfoRequest)
        found = await gateway.decoding.read_metadata(asked.image, caller().owner)
        items = dict(found.items) | ({"parameters": found.infotext} if found.infotext else {})
        parameters = parse_infotext(found.infotext) if found.infotext else {}
        return json_response(PngInfoResponse(info=found.infotext, items=items, parameters=parameters))

    return routes
