"""The actors' names, and who may wait for an answer of whom."""

from collections.abc import Mapping

GATEWAY = "gateway"
JOB_STORE = "job_store"
EVENT_HUB = "event_hub"
DOWNLOADER = "downloader"
DECODER = "decoder"
MODEL_LOADER = "model_loader"
GENERATOR = "generator"
SCHEDULER = "scheduler"
STATS = "stats"
WEBHOOKS = "webhooks"
HTTP_FRONT = "http_front"
ENGINES = "engines"
"""The supervisor of the engines: it tells the scheduler of an engine that failed, and asks no actor."""

ASK_GRAPH: Mapping[str, frozenset[str]] = {
    GATEWAY: frozenset(
        {SCHEDULER, JOB_STORE, EVENT_HUB, DOWNLOADER, DECODER, MODEL_LOADER, GENERATOR, STATS, WEBHOOKS}
    ),
    SCHEDULER: frozenset({JOB_STORE, EVENT_HUB, DOWNLOADER, DECODER, MODEL_LOADER, GENERATOR}),
    DOWNLOADER: frozenset({MODEL_LOADER}),
    MODEL_LOADER: frozenset({GENERATOR}),
    WEBHOOKS: frozenset({JOB_STORE}),
}
"""Who may ask whom, by role: always downhill, so that no two actors can wait for each other. Anyone may ``tell``.

A model loader asks the generator of its own engine only: it knows no other's address.
"""
