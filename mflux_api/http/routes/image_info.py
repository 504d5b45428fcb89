"""``/api/v1/images/info``: how an image was made, and the request that makes it again."""

from collections.abc import Mapping
from typing import Any

import attrs
from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.body import json_object
from mflux_api.http.operations import BODY_ERRORS, Operation
from mflux_api.http.responses import json_response
from mflux_api.http.security.guard import caller
from mflux_api.images.generation_record import recipe_of
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.parse import convert
from mflux_api.jobs.request import EncodedImage

PATH = "/api/v1/images/info"


@attrs.frozen(kw_only=True)
class ImageInfoRequest:
    """``POST /api/v1/images/info``."""

    image: EncodedImage = attrs.field(repr=False)
    """A PNG, JPEG or WebP file as base64 or a data URL, or a file of a form."""


@attrs.frozen(kw_only=True)
class ImageInfoResponse:
    """``POST /api/v1/images/info``."""

    width: int
    height: int
    format: str
    infotext: str
    """A1111's; empty where there is none."""
    request: Mapping[str, Any]
    """What ``POST /api/v1/generate`` takes to make the image again; empty where the file does not say."""
    warnings: tuple[str, ...]
    """What the file does not tell."""


OPERATIONS = (
    Operation(
        method="post",
        path=PATH,
        summary="How an image was made, and the request that makes it again",
        scope=Scope.READ,
        body=ImageInfoRequest,
        forms=True,
        response=ImageInfoResponse,
        errors=BODY_ERRORS,
    ),
)

_FIELDS = Fields.of(ImageInfoRequest)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the route."""
    routes = Blueprint("image_info", __name__)

    @routes.post(PATH)
    async def image_info() -> Response:
        read = await json_object(_FIELDS, forms=True)
        asked = convert(read.values, ImageInfoRequest)
        found = await gateway.decoding.read_metadata(asked.image, caller().owner)
        recipe = recipe_of(found)
        return json_response(
            ImageInfoResponse(
                width=found.width,
                height=found.height,
                format=found.format,
                infotext=found.infotext,
                request=recipe.request,
                warnings=(*recipe.warnings, *read.warnings),
            )
        )

    return routes
