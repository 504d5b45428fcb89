"""``/sdapi/v1/refresh-…``, ``unload-checkpoint`` and ``reload-checkpoint``: what is in memory, by A1111's routes."""

from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.errors import (
    EngineUnavailable,
    GenerationFailed,
    InvalidModel,
    ModelInUse,
    ModelNotDownloaded,
    OutOfMemory,
    ShuttingDown,
)
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.a1111.checkpoints import find
from mflux_api.http.a1111.client_options import ClientOptions
from mflux_api.http.a1111.discovery_schemas import RefreshResponse
from mflux_api.http.a1111.options import chosen_model
from mflux_api.http.half_close import need_client
from mflux_api.http.operations import Operation
from mflux_api.http.responses import json_response

_REFRESHED = ("checkpoints", "vae", "loras", "embeddings")

OPERATIONS = (
    *(
        Operation(
            method="post",
            path=f"/sdapi/v1/refresh-{what}",
            summary="Nothing to do: lists are read from the disk each time",
            scope=Scope.MANAGE,
            response=RefreshResponse,
        )
        for what in _REFRESHED
    ),
    Operation(
        method="post",
        path="/sdapi/v1/unload-checkpoint",
        summary="Remove all models from memory",
        scope=Scope.MANAGE,
        response=RefreshResponse,
        errors=(ModelInUse, ShuttingDown),
    ),
    Operation(
        method="post",
        path="/sdapi/v1/reload-checkpoint",
        summary="Bring the model of this client's calls into memory",
        scope=Scope.MANAGE,
        response=RefreshResponse,
        errors=(InvalidModel, ModelNotDownloaded, OutOfMemory, GenerationFailed, EngineUnavailable, ShuttingDown),
    ),
)


def blueprint(gateway: Gateway, options: ClientOptions) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("residency", __name__, url_prefix="/sdapi/v1")

    async def resident() -> Response:
        engines = await gateway.engines()
        models = dict.fromkeys(model for engine in engines for model in engine.models)
        return json_response(RefreshResponse(models=tuple(models)))

    for what in _REFRESHED:
        routes.add_url_rule(f"/refresh-{what}", f"refresh_{what}", resident, methods=["POST"])

    @routes.post("/unload-checkpoint")
    async def unload() -> Response:
        for alias in dict.fromkeys(alias for engine in await gateway.engines() for alias in engine.models):
            model = gateway.catalog.get(alias)
            if model is not None:
                await gateway.unload_model(model)
        return await resident()

    @routes.post("/reload-checkpoint")
    async def reload() -> Response:
        model = await find(gateway, chosen_model(options) or gateway.settings.models.default)
        need_client()
        await gateway.load_model(model)
        return await resident()

    return routes
