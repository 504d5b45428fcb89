"""The files of the page at ``/``: read once from the package, and told apart from what machines ask for there."""

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

import attrs
from quart import Response, request

_TYPES: Final[Mapping[str, str]] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX: Final = "index.html"
_BASE: Final = '<base href="/">'

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text of a prompt can never become markup: the browser refuses every call that would parse it.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""What the page may load: what is from this server alone, and no script that is written into it or made of a text."""


@attrs.frozen
class PageFile:
    """One file, as it is sent."""

    data: bytes = attrs.field(repr=False)
    type: str
    etag: str


def read_files() -> dict[str, PageFile]:
    """Return the page's files by their names."""
    found = dict[str, PageFile]()
    for entry in sorted(files("mflux_api.page").iterdir(), key=lambda each: each.name):
        suffix = f".{entry.name.rpartition('.')[2]}"
        if suffix in _TYPES:
            data = entry.read_bytes()
            found[entry.name] = PageFile(data, _TYPES[suffix], hashlib.sha256(data).hexdigest()[:16])
    return found


def wants_page() -> bool:
    """Whether the current request comes from a browser that is going to show what it gets."""
    accepted = request.accept_mimetypes
    return "Accept" in request.headers and accepted["text/html"] > accepted["application/json"]


def file_response(file: PageFile, prefix: str = "") -> Response:
    """Return a file as a response; the page itself says below which path it is.

    Args:
        file: the file.
        prefix: what the paths of this server begin with for its clients.
    """
    data = file.data.replace(_BASE.encode(), f'<base href="{prefix}/">'.encode(), 1) if prefix else file.data
    response = Response(data, content_type=file.type)
    response.set_etag(file.etag + hashlib.sha256(prefix.encode()).hexdigest()[:4])
    # Asked for each time, and sent only when it has changed: there are few of them, and they are small.
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Vary"] = "Accept"
    return response
