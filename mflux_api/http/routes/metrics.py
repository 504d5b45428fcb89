"""``/metrics``: what Prometheus, and whatever reads its format, asks for."""

from typing import Final

import trio
from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.metrics import Reading, write
from mflux_api.http.operations import Operation
from mflux_api.system.threads import read_in_thread

PATH: Final = "/metrics"
_TEXT: Final = {"schema": {"type": "string"}}

OPERATIONS = (
    Operation(
        method="get",
        path=PATH,
        summary="Metrics in Prometheus's format, or as OpenMetrics where Accept says so",
        scope=Scope.READ,
        content={"text/plain": _TEXT, "application/openmetrics-text": _TEXT},
    ),
)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the route."""
    routes = Blueprint("metrics", __name__)
    # One at a time: a crowd of scrapes must not take every thread.
    writers = trio.CapacityLimiter(1)

    @routes.get(PATH)
    async def metrics() -> Response:
        reading = Reading(
            measured=await gateway.measurements(),
            bytes_in_flight=gateway.in_flight.used,
            max_queue=gateway.settings.scheduler.max_queue,
        )
        # Thousands of lines take tens of milliseconds.
        text, content_type = await read_in_thread(write, reading, request.headers.get("Accept", ""), limiter=writers)
        return Response(text, content_type=content_type, headers={"Cache-Control": "no-store"})

    return routes
