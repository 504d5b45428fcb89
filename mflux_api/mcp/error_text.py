"""Errors of the service in the words of these tools: tools for routes."""

import re
from typing import Final

from mflux_api.errors import InvalidModel, ServiceError

_ROUTES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"give it as init_images to \S+ or \S+, or as --init-image"), "call upscale with it"),
    (re.compile(r" or POST /api/v1/models/[^\s/]+/(download|load|unload)"), ""),
    (re.compile(r"POST /api/v1/models/([^\s/]+)/(download|load|unload)"), r"`mflux-api models \2 \1`"),
    (re.compile(r"; GET /api/v1/loras lists them( all)?"), "; `mflux-api loras list` lists them"),
    (re.compile(r"GET /api/v1/models\S*"), "list_models"),
    (re.compile(r"(GET|POST|DELETE) /(api|sdapi|v1)/\S+"), "the service's log"),
)
"""Advice that names a route, and what helps here."""


def describe(error: ServiceError) -> str:
    """Return what an assistant can read and act on: a sentence, and the error's code."""
    text = str(error) if isinstance(error, InvalidModel) else error.message
    for pattern, words in _ROUTES:
        text = pattern.sub(words, text)
    return f"{text} ({error.code})"
