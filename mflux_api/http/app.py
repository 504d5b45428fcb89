"""The Quart app: all routes, the shape of errors and CORS put together."""

import re
from collections.abc import Sequence

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import RequestEntityTooLarge

from mflux_api.access.access import Access
from mflux_api.access.proxies import TrustedProxies
from mflux_api.gateway.gateway import Gateway
from mflux_api.http import api_reference, early_refusal, error_handlers, forwarded, metrics, openapi, request_log
from mflux_api.http.a1111 import sdapi
from mflux_api.http.body import MAX_BODY_BYTES
from mflux_api.http.body_limits import LIMITS, BodyLimit, BodyLimits
from mflux_api.http.client_calls import ClientCalls
from mflux_api.http.connection import HTTPConnection
from mflux_api.http.half_close import SAYS
from mflux_api.http.held import IN_FLIGHT, ServiceRequest
from mflux_api.http.open_connections import connection_limits
from mflux_api.http.openai import routes as openai
from mflux_api.http.page_files import read_files
from mflux_api.http.probes import PROBES
from mflux_api.http.render import Renderer
from mflux_api.http.root_path import ROOT_PATH, RootPath
from mflux_api.http.routes import api_v1, page
from mflux_api.http.routes.system import probes
from mflux_api.http.security.guard import Guard, install, route_scopes
from mflux_api.http.security.hosts import HostRules, own_names
from mflux_api.http.security.origins import OriginRules
from mflux_api.http.security.tokens import Tokens
from mflux_api.http.slots import Slots
from mflux_api.http.waits import Waits
from mflux_api.jobs.json_fields import Fields

ALLOWED_HEADERS = (
    "Authorization, Content-Type, Content-Encoding, X-API-Key, Last-Event-ID, Idempotency-Key, Prefer, "
    "User-Agent, OpenAI-Organization, OpenAI-Project"
)
"""What pages may send. With the last ones OpenAI's SDK says what it is."""
EXPOSED_HEADERS = "Retry-After, X-Request-ID, X-Should-Retry, Location, Preference-Applied"

_SDK_HEADER = re.compile(r"x-stainless-[a-z-]{1,40}")
"""What OpenAI's SDK says of its machine and its attempts; the names change with its versions."""
_MOST_SDK_HEADERS = 32


def create_app(gateway: Gateway, access: Access | None = None) -> QuartTrio:
    """Build the app; it holds no state but a cache of rendered results, and who sent wrong keys.

    Args:
        gateway: what the routes ask.
        access: the keys, where more than this app needs to know them.

    Raises:
        ConfigError: the file of keys cannot be used, or a trusted proxy is not an address.
        LookupError: a route does not say who may ask for it.
    """
    settings = gateway.settings
    app = QuartTrio("mflux_api", static_folder=None)
    app.asgi_http_class = HTTPConnection
    app.request_class = ServiceRequest
    app.config[IN_FLIGHT] = gateway.in_flight
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    # A synchronous call may take as long as its job; a client that leaves cancels it.
    app.config["RESPONSE_TIMEOUT"] = None
    app.url_map.strict_slashes = False
    # Doubled ones are one already; Werkzeug redirects encoded ones, to a URL that it makes from the Host header.
    app.url_map.merge_slashes = False
    renderer = Renderer(gateway)
    calls = ClientCalls(gateway)
    limits = connection_limits(settings.server)
    # The rest is for other requests of the same client.
    most = max(1, limits.per_address * 3 // 4)
    streams = Slots("event streams and waits", total=limits.total, per_caller=most)
    waits = Waits(gateway, streams)
    pages = read_files()
    for blueprint in (
        *sdapi.blueprints(gateway, renderer, calls, waits, pages),
        *openai.blueprints(gateway, renderer, calls),
        *api_v1.blueprints(gateway, renderer, streams, waits),
    ):
        app.register_blueprint(blueprint)
    app.register_blueprint(page.blueprint(pages))
    app.register_blueprint(api_reference.blueprint())
    app.register_blueprint(openapi.blueprint(max_images=settings.generation.max_batch_size))
    request_log.install(app)
    metrics.install(app, gateway)
    error_handlers.install(app)
    forwarded.install(app, TrustedProxies(settings.server.trusted_proxies))
    app.config[ROOT_PATH] = RootPath(settings.server.root_path, app.url_map)
    scopes = route_scopes(openapi.OPERATIONS, open_paths=_opened(settings.security.open))
    scopes.check(app.url_map)
    hosts = HostRules(settings.security.allowed_hosts, own=(settings.server.host, *own_names()))
    origins = OriginRules(settings.server.cors_origins)
    access = access or Access(settings.security, settings.state_dir)
    install(app, Guard(access, hosts, origins, scopes, Tokens(access)))
    app.config[PROBES] = probes(gateway, hosts, _origin_headers(None, origins))
    app.config[SAYS] = True
    app.config[LIMITS] = _body_limits(app, settings.lora.max_upload_mb * 2**20)
    _refuse_large_bodies(app)
    early_refusal.install(app, gateway)
    _allow_origins(app, origins)
    _leave_types_out(app)
    return app


def _opened(paths: Sequence[str]) -> set[str]:
    """Return the paths that the settings open: with the reference its files, and what it shows."""
    return {*paths, "/docs/{name}", "/openapi.json"} if "/docs" in paths else {*paths}


def _body_limits(app: QuartTrio, upload_bytes: int) -> BodyLimits:
    limits = dict[tuple[str, str], BodyLimit]()
    for operation in openapi.OPERATIONS:
        route = operation.method.upper(), operation.path
        if operation.upload:
            limits[route] = BodyLimit(upload_bytes, streams=True)
        elif operation.body is not None and Fields.of(operation.body).takes_images:
            limits[route] = BodyLimit(MAX_BODY_BYTES)
    return BodyLimits(app.url_map, limits)


def _refuse_large_bodies(app: QuartTrio) -> None:
    """Refuse what is too large before its route is asked: not every route reads what it is sent."""

    @app.before_request
    async def check() -> None:
        most = request.max_content_length
        if most and (request.content_length or 0) > most and request.routing_exception is None:
            raise RequestEntityTooLarge


def _leave_types_out(app: QuartTrio) -> None:
    """Say nothing of the type of a body that is not there; Quart would call it HTML."""

    @app.after_request
    async def leave_out(response: Response) -> Response:
        bodiless = response.status_code in (204, 304)
        if (bodiless or response.content_length == 0) and response.mimetype == response.default_mimetype:
            response.headers.pop("Content-Type", None)
        if bodiless:
            # Of a 304 it would be the length that the 200 has.
            response.headers.pop("Content-Length", None)
        return response


def _allow_origins(app: QuartTrio, origins: OriginRules) -> None:
    @app.after_request
    async def add_headers(response: Response) -> Response:
        added = _origin_headers(request.headers.get("Origin"), origins)
        for name, value in added.items():
            response.headers.add(name, value)
        if "Access-Control-Allow-Origin" not in added:
            return response
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Headers"] = ", ".join([ALLOWED_HEADERS, *_sdk_headers()])
            response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE, OPTIONS"
            response.headers["Access-Control-Max-Age"] = "600"
        return response


def _sdk_headers() -> list[str]:
    asked = request.headers.get("Access-Control-Request-Headers", "").lower().split(",", _MOST_SDK_HEADERS)
    names = (name.strip() for name in asked[:_MOST_SDK_HEADERS])
    return [name for name in names if _SDK_HEADER.fullmatch(name)]


def _origin_headers(origin: str | None, origins: OriginRules) -> dict[str, str]:
    """Return what an answer tells the browser about who may read it."""
    exposed = {"Access-Control-Expose-Headers": EXPOSED_HEADERS}
    if origins.every:
        return {"Access-Control-Allow-Origin": "*"} | exposed
    # Also for other origins and none: a cache must not give their answer to a page that may read it.
    vary = {"Vary": "Origin"}
    if origin is None or not origins.allows(origin):
        return vary
    return vary | {"Access-Control-Allow-Origin": origin} | exposed
