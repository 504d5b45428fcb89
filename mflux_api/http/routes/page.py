"""The files of the page at ``/``; the page itself is answered where machines ask for ``/``."""

from quart import Blueprint, Response, request

from mflux_api.errors import NotFound
from mflux_api.http.browser_files import BrowserFile
from mflux_api.http.operations import Operation, path_parameter
from mflux_api.http.page_files import INDEX, page_response

OPERATIONS = (
    Operation(
        method="get",
        path="/page/{name}",
        summary="A file of the page for browsers",
        scope=None,
        parameters=(path_parameter("name"),),
        content={"*/*": {"schema": {"type": "string", "format": "binary"}}},
        bodiless={"304": "If-None-Match is the file's ETag"},
        errors=(NotFound,),
    ),
    Operation(
        method="get",
        path="/favicon.ico",
        summary="The icon, for browsers that ask for it unasked",
        scope=None,
        content={"image/svg+xml": {"schema": {"type": "string"}}},
        bodiless={"304": "If-None-Match is the file's ETag"},
    ),
)


def blueprint(pages: dict[str, BrowserFile]) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("page", __name__)

    @routes.get("/page/<name>")
    async def file(name: str) -> Response:
        found = pages.get(name)
        if found is None or name == INDEX:
            raise NotFound("There is no such file of the page; GET / is the page")
        return await page_response(found).make_conditional(request)

    @routes.get("/favicon.ico")
    async def icon() -> Response:
        return await page_response(pages["icon.svg"]).make_conditional(request)

    return routes
