"""``/api/v1/health``."""

from importlib.metadata import PackageNotFoundError, version

from quart import Blueprint, Response

from mflux_api.actors.gateway import Gateway
from mflux_api.actors.messages import Load
from mflux_api.errors import ServiceRestarting
from mflux_api.http.responses import json_response


def package_version() -> str:
    """Return this package's version, also in an uninstalled checkout."""
    try:
        return version("mflux-api")
    except PackageNotFoundError:
        return "2.0.0"


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("system", __name__, url_prefix="/api/v1")
    release = package_version()

    @routes.get("/health")
    async def health() -> Response:
        try:
            load = await gateway.load()
        except ServiceRestarting:
            load = Load(active=0, queued=0, draining=False, degraded=True)
        status = "draining" if load.draining else "degraded" if load.degraded else "healthy"
        return json_response(
            {
                "status": status,
                "version": release,
                "models_available": len(gateway.catalog),
                "active_jobs": load.active,
                "queue_length": load.queued,
            }
        )

    return routes
