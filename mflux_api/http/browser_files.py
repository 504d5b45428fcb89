"""Files for browsers: read once, sent when they have changed, and told what they may load."""

import hashlib
from typing import Final

import attrs
from quart import Response

_BASE: Final = b'<base href="/">'

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
    )
)
"""What a page may load: nothing but this server's files, and no script that is written into it."""


def _etag_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@attrs.frozen
class BrowserFile:
    """One file, as it is sent."""

    data: bytes = attrs.field(repr=False)
    type: str
    policy: str = POLICY
    etag: str = attrs.field(init=False)

    @etag.default
    def _of_data(self) -> str:
        return _etag_of(self.data)


def file_response(file: BrowserFile, prefix: str = "") -> Response:
    """Return a file as a response; a page's ``<base>`` says below which path the server is.

    Args:
        file: the file.
        prefix: what the paths of this server begin with for its clients.
    """
    data = file.data.replace(_BASE, f'<base href="{prefix}/">'.encode(), 1) if prefix else file.data
    response = Response(data, content_type=file.type)
    response.set_etag(_etag_of(data) if prefix else file.etag)
    # Asked for each time, and sent only when it has changed: there are few of them, and they are small.
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = file.policy
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
