"""The groups of routes in ``/openapi.json``, in the order in which a reader meets them."""

import re
from typing import Final

_TAGS: Final = (
    (
        "Jobs",
        "Generate and edit images, follow the jobs, get their images",
        re.compile(r"/api/v1/(generate|jobs|events|images)\b"),
    ),
    ("Models", "What can be generated with: download, load, delete", re.compile(r"/api/v1/models\b")),
    ("LoRAs", "Adapters that requests may name", re.compile(r"/api/v1/loras\b")),
    ("Sessions", "A cookie in place of a key, for this server's own pages", re.compile(r"/api/v1/session\b")),
    ("OpenAI", "What clients of OpenAI's images API ask for", re.compile(r"/v1/")),
    ("A1111", "What clients of A1111 and of Gradio ask for", re.compile(r"/(sdapi|internal|config|login)\b")),
    ("Server", "Health, memory, queue, metrics and this description", re.compile(r"/")),
)
"""Name, description, and how the paths begin; the first that fits counts, and the last one fits every path."""

TAGS: Final = tuple({"name": name, "description": text} for name, text, _ in _TAGS)


def tag_of(path: str) -> str:
    """Return the name of a route's group."""
    return next(name for name, _, pattern in _TAGS if pattern.match(path))
