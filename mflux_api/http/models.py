"""``/api/v1/models``."""

import trio
from quart import Blueprint, Response

from mflux_api.actors.gateway import Gateway
from mflux_api.actors.messages import Residency
from mflux_api.catalog import Model
from mflux_api.errors import ModelNotFound
from mflux_api.http.responses import json_response
from mflux_api.http.schemas import ModelConfigObject, ModelList, ModelObject, ModelStatus, ModelStatusName
from mflux_api.storage.checkpoints import CheckpointState

SEQUENCE_LENGTH = 512
EMBEDDED_SEQUENCE_LENGTH = 64


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("models", __name__, url_prefix="/api/v1")
    checkpoints = gateway.checkpoints
    default_steps = gateway.settings.generation.default_steps

    @routes.get("/models")
    async def list_models() -> Response:
        def look() -> tuple[ModelObject, ...]:
            return tuple(_object(model, checkpoints.state(model), default_steps) for model in gateway.catalog)

        return json_response(ModelList(models=await trio.to_thread.run_sync(look)))

    @routes.get("/models/<model_id>/status")
    async def status(model_id: str) -> Response:
        model = gateway.catalog.get(model_id)
        if model is None:
            raise ModelNotFound(
                f"Model '{model_id[:64]}' not found; GET /api/v1/models lists them all", {"model": model_id[:64]}
            )
        residency = await gateway.residency()
        state = await trio.to_thread.run_sync(checkpoints.state, model)
        status_name = _status_name(model, residency, state)
        return json_response(
            ModelStatus(
                model=model.alias,
                status=status_name,
                downloaded=state.downloaded,
                loaded=status_name == "loaded",
                size_gb=model.size_gb,
                path=None if state.path is None else str(state.path),
            )
        )

    return routes


def _status_name(model: Model, residency: Residency, state: CheckpointState) -> ModelStatusName:
    if model.alias in residency.models:
        return "loaded"
    if residency.loading == model.alias:
        return "loading"
    return "ready" if state.downloaded else "not_downloaded"


def _object(model: Model, state: CheckpointState, default_steps: int) -> ModelObject:
    return ModelObject(
        title=model.alias,
        model_name=model.repo or model.alias,
        hash=state.short_hash,
        sha256=state.sha256,
        config=ModelConfigObject(
            base_arch="seedvr2" if model.family == "seedvr2" else "flux2",
            supports_guidance=model.supports_guidance,
            max_sequence_length=EMBEDDED_SEQUENCE_LENGTH if model.embedded else SEQUENCE_LENGTH,
        ),
        downloaded=state.downloaded,
        size_gb=model.size_gb,
        description=model.description,
        quantization=model.quantization,
        bits=model.bits,
        licence=model.licence,
        default_steps=model.default_steps or default_steps,
        default_guidance=model.default_guidance,
        native_size=model.native_size,
    )
