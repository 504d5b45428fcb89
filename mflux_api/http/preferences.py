"""``Prefer`` of a request (RFC 7240): whether its client wants to be answered before the work is done."""

from collections.abc import Sequence
from typing import Final

import attrs
from quart import Response, request

MAX_WAIT_SECONDS: Final = 3600.0
MOST_LOOKED_AT: Final = 16
_MAX_DIGITS: Final = 9
_MOST_TEXT: Final = 1024


@attrs.frozen(kw_only=True)
class Preferences:
    """What a client prefers of what is known here."""

    respond_async: bool = False
    wait: float | None = None
    """Seconds that it waits for the work to be done."""

    def apply(self, response: Response) -> Response:
        """Say in an answer which preferences it follows."""
        told = ["respond-async"] if self.respond_async else []
        if self.wait is not None:
            told.append(f"wait={self.wait:g}")
        if told:
            response.headers["Preference-Applied"] = ", ".join(told)
        return response


def read_preferences() -> Preferences:
    """Return what the current request prefers."""
    return parse_preferences(request.headers.getlist("Prefer"))


def parse_preferences(values: Sequence[str]) -> Preferences:
    """Read the header's values; what has no reading is no preference, and of several the first counts."""
    respond_async, wait = False, None
    for preference in _split(",".join(values)[:_MOST_TEXT])[:MOST_LOOKED_AT]:
        # Parameters of a preference stand behind semicolons.
        name, _, value = preference.partition(";")[0].partition("=")
        name, value = name.strip().lower(), value.strip().strip('"')
        if name == "respond-async" and not value:
            respond_async = True
        elif name == "wait" and wait is None and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
            wait = min(float(value), MAX_WAIT_SECONDS)
    return Preferences(respond_async=respond_async, wait=wait)


def _split(text: str) -> list[str]:
    """Return what is between commas; those in quotation marks separate nothing, unless nothing closes the marks."""
    pieces, quoted, escaped = [""], False, False
    for place, letter in enumerate(text):
        if letter == "," and not quoted:
            pieces.append("")
            continue
        if escaped or letter == "\\":
            escaped = not escaped
        elif letter == '"':
            quoted = not quoted and '"' in text[place + 1 :]
        pieces[-1] += letter
    return pieces
