"""How long a download waits for a hub or a proxy that says nothing: huggingface_hub's own questions wait for ever."""

from functools import cache

import httpx
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

SILENCE_SECONDS = 30.0
"""What a connection, and each piece of an answer, may take where huggingface_hub sets no limit; its variables raise
it."""


@cache
def limit_waits() -> None:
    """Have every request of huggingface_hub in this process end in time."""
    set_client_factory(_client)


def _client() -> httpx.Client:
    client = default_client_factory()
    hooks = client.event_hooks
    # Its calls name "no limit" themselves, so one of the client's would not count.
    client.event_hooks = {**hooks, "request": [*hooks["request"], _limit]}
    return client


def _limit(request: httpx.Request) -> None:
    most = max(SILENCE_SECONDS, constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)
    given = request.extensions.get("timeout", {})
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: most if given.get(kind) is None else given[kind] for kind in kinds}
