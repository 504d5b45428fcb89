"""``/docs``: Swagger UI over ``/openapi.json``, from files that a package ships, so that it works offline."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.errors import NotFound
from mflux_api.http.browser_files import BrowserFile, file_response
from mflux_api.http.forwarded import external_prefix
from mflux_api.http.operations import Operation, path_parameter

_PACKAGE: Final = "flask_openapi3_swagger"
_SHIPPED: Final = {
    "swagger-ui-bundle.js": ("js", "text/javascript; charset=utf-8"),
    "swagger-ui.css": ("css", "text/css; charset=utf-8"),
}
_START: Final = b"""SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#reference",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  filter: true,
  deepLinking: true,
  validatorUrl: null,
});
"""
"""Without ``validatorUrl: null`` the address of the description would be sent to a service on the internet."""

_HTML: Final = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<base href="/">
<title>API reference - mflux-api</title>
<link rel="icon" href="favicon.ico">
<link rel="stylesheet" href="docs/swagger-ui.css">
<script src="docs/swagger-ui-bundle.js" defer></script>
<script src="docs/start.js" defer></script>
</head>
<body>
<main id="reference"><noscript>This reference needs JavaScript; openapi.json is what it shows.</noscript></main>
</body>
</html>
"""

_UNCHANGED: Final = {"304": "If-None-Match is the file's ETag"}
OPERATIONS = (
    Operation(
        method="get",
        path="/docs",
        summary="This description, for browsers",
        scope=Scope.READ,
        content={"text/html": {"schema": {"type": "string"}}},
        bodiless=_UNCHANGED,
    ),
    Operation(
        method="get",
        path="/docs/{name}",
        summary="A file of the description for browsers",
        scope=Scope.READ,
        parameters=(path_parameter("name"),),
        content={"*/*": {"schema": {"type": "string", "format": "binary"}}},
        bodiless=_UNCHANGED,
        errors=(NotFound,),
    ),
)


def blueprint() -> Blueprint:
    """Build the routes.

    Raises:
        ModuleNotFoundError: the package with Swagger UI's files is not installed.
    """
    routes = Blueprint("api_reference", __name__)
    html = BrowserFile(_HTML, "text/html; charset=utf-8")
    files = _read_files()

    @routes.get("/docs")
    async def reference() -> Response:
        return await file_response(html, external_prefix()).make_conditional(request)

    @routes.get("/docs/<name>")
    async def file(name: str) -> Response:
        found = files.get(name)
        if found is None:
            raise NotFound("There is no such file of the API reference; GET /docs is the reference")
        return await file_response(found).make_conditional(request)

    return routes


def _read_files() -> Mapping[str, BrowserFile]:
    # The package is found and not imported: its code is for Flask, and would bring pydantic with it.
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{_PACKAGE} has the files of /docs and is not installed: install mflux-api again")
    folder = Path(spec.origin).parent / "templates" / "swagger"
    shipped = {
        name: BrowserFile((folder / kind / name).read_bytes(), media_type)
        for name, (kind, media_type) in _SHIPPED.items()
    }
    return shipped | {"start.js": BrowserFile(_START, "text/javascript; charset=utf-8")}
