"""The files of the page at ``/``: read once from the package, and told apart from what machines ask for there."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from quart import Response, request

from mflux_api.http import browser_files
from mflux_api.http.browser_files import BrowserFile, file_response

_TYPES: Final[Mapping[str, str]] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX: Final = "index.html"

POLICY: Final = "; ".join(
    (
        browser_files.POLICY,
        # Text of a prompt can never become markup: the browser refuses every call that would parse it.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""What the page may load: what is from this server alone, and no script that is written into it or made of a text."""


def read_files() -> dict[str, BrowserFile]:
    """Return the page's files by their names."""
    found = dict[str, BrowserFile]()
    for entry in sorted(files("mflux_api.page").iterdir(), key=lambda each: each.name):
        suffix = f".{entry.name.rpartition('.')[2]}"
        if suffix in _TYPES:
            found[entry.name] = BrowserFile(entry.read_bytes(), _TYPES[suffix], POLICY)
    return found


def wants_page() -> bool:
    """Whether the current request comes from a browser that is going to show what it gets."""
    accepted = request.accept_mimetypes
    return "Accept" in request.headers and accepted["text/html"] > accepted["application/json"]


def page_response(file: BrowserFile, prefix: str = "") -> Response:
    """Return a file of the page as a response; at the page's own path machines get something else."""
    response = file_response(file, prefix)
    response.headers["Vary"] = "Accept"
    return response
