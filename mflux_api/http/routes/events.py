"""``/api/v1/events``: everything that happens to a caller's jobs, in one stream."""

from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.errors import ShuttingDown, TooManyConnections
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.event_feed import FeedBegins, feed_response
from mflux_api.http.forwarded import external_prefix
from mflux_api.http.half_close import need_client
from mflux_api.http.held import held
from mflux_api.http.open_connections import connection_limits
from mflux_api.http.operations import Operation
from mflux_api.http.schemas import JobResponse
from mflux_api.http.security.guard import caller, still_allowed
from mflux_api.http.slots import Slots
from mflux_api.http.sse import CONTENT_TYPE
from mflux_api.jobs.progress import Progress

PATH = "/api/v1/events"
_DATA = "Events whose data is JSON: Progress, JobResponse, FeedBegins"
_SHARE = 8
"""A page needs one of these, and a bot."""

OPERATIONS = (
    Operation(
        method="get",
        path=PATH,
        summary="Follow all of the caller's jobs, those that come later too",
        scope=Scope.READ,
        parameters=({"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}},),
        content={"text/event-stream": {"schema": {"description": _DATA}}},
        also_describes=(Progress, JobResponse, FeedBegins),
        errors=(TooManyConnections, ShuttingDown),
    ),
)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the route."""
    routes = Blueprint("events", __name__)
    limits = connection_limits(gateway.settings.server)
    feeds = Slots("event streams", total=limits.total // 2, per_caller=max(1, limits.per_address // _SHARE))

    @routes.get(PATH)
    async def events() -> Response:
        if request.method == "HEAD":
            response = Response(b"", content_type=CONTENT_TYPE)
            response.headers.pop("Content-Length", None)
            return response
        last_event_id = request.headers.get("Last-Event-ID") or None
        held().stack.enter_context(feeds.slot(caller().owner))
        feed = await gateway.follow_all(last_event_id, visible=caller().sees)
        held().stack.callback(feed.channel.close)
        need_client()
        return feed_response(
            feed, resumed=last_event_id is not None, allowed=still_allowed(), paths_below=external_prefix()
        )

    return routes
