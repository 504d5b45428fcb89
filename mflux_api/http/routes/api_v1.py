"""``/api/v1``, probes and metrics, as the app and ``/openapi.json`` take them: a new module of routes is named here."""

from quart import Blueprint

from mflux_api.gateway.gateway import Gateway
from mflux_api.http.render import Renderer
from mflux_api.http.routes import (
    bulk_cancel,
    events,
    image_info,
    images,
    job_search,
    jobs,
    loras,
    metrics,
    models,
    sessions,
    system,
)
from mflux_api.http.slots import Slots
from mflux_api.http.waits import Waits

OPERATIONS = (
    *jobs.OPERATIONS,
    *images.OPERATIONS,
    *image_info.OPERATIONS,
    *events.OPERATIONS,
    *job_search.OPERATIONS,
    *bulk_cancel.OPERATIONS,
    *models.OPERATIONS,
    *loras.OPERATIONS,
    *sessions.OPERATIONS,
    *system.OPERATIONS,
    *metrics.OPERATIONS,
)


def blueprints(gateway: Gateway, renderer: Renderer, streams: Slots, waits: Waits) -> tuple[Blueprint, ...]:
    """Build the routes of every module."""
    return (
        jobs.blueprint(gateway, renderer, streams, waits),
        images.blueprint(gateway),
        image_info.blueprint(gateway),
        events.blueprint(gateway),
        job_search.blueprint(gateway),
        bulk_cancel.blueprint(gateway),
        models.blueprint(gateway),
        loras.blueprint(gateway),
        sessions.blueprint(gateway),
        system.blueprint(gateway),
        metrics.blueprint(gateway),
    )
