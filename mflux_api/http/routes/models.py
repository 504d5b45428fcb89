"""``/api/v1/models``: the table, a model's status, download, load, unload, delete."""

from collections.abc import Sequence

from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.actors.messages import DownloadState, Transfer
from mflux_api.catalog import Model
from mflux_api.errors import (
    EngineUnavailable,
    GenerationFailed,
    ModelInUse,
    ModelNotDeletable,
    ModelNotDownloaded,
    ModelNotFound,
    OutOfMemory,
    ShuttingDown,
)
from mflux_api.gateway.gateway import Gateway
from mflux_api.gateway.models import EngineView
from mflux_api.http.half_close import need_client
from mflux_api.http.operations import Operation, path_parameter
from mflux_api.http.responses import json_response
from mflux_api.http.routes.model_schemas import ModelConfig, ModelList, ModelResponse, ModelStatus, ModelStatusName
from mflux_api.storage.checkpoints import CheckpointState

SEQUENCE_LENGTH = 512
EMBEDDED_SEQUENCE_LENGTH = 64

_MODEL_ID = path_parameter("model_id")

OPERATIONS = (
    Operation(method="get", path="/api/v1/models", summary="List the models", scope=Scope.READ, response=ModelList),
    Operation(
        method="get",
        path="/api/v1/models/{model_id}/status",
        summary="Whether a model is on disk and in memory, or how far its download is",
        scope=Scope.READ,
        response=ModelStatus,
        parameters=(_MODEL_ID,),
        errors=(ModelNotFound,),
    ),
    Operation(
        method="post",
        path="/api/v1/models/{model_id}/download",
        summary="Begin to download a model; its status says how far it is",
        scope=Scope.MANAGE,
        response=ModelStatus,
        parameters=(_MODEL_ID,),
        errors=(ModelNotFound, ShuttingDown),
    ),
    Operation(
        method="post",
        path="/api/v1/models/{model_id}/load",
        summary="Bring a model into memory, and answer when it is there",
        scope=Scope.MANAGE,
        response=ModelStatus,
        parameters=(_MODEL_ID,),
        errors=(
            ModelNotFound,
            ModelNotDownloaded,
            OutOfMemory,
            GenerationFailed,
            EngineUnavailable,
            ShuttingDown,
        ),
    ),
    Operation(
        method="post",
        path="/api/v1/models/{model_id}/unload",
        summary="Remove a model from memory",
        scope=Scope.MANAGE,
        response=ModelStatus,
        parameters=(_MODEL_ID,),
        errors=(ModelNotFound, ModelInUse, ShuttingDown),
    ),
    Operation(
        method="delete",
        path="/api/v1/models/{model_id}",
        summary="Remove from disk what this service downloaded or quantized",
        scope=Scope.MANAGE,
        response=ModelStatus,
        parameters=(_MODEL_ID,),
        errors=(ModelNotFound, ModelNotDeletable, ModelNotDownloaded, ModelInUse, ShuttingDown),
    ),
)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("models", __name__, url_prefix="/api/v1")
    checkpoints = gateway.checkpoints
    default_steps = gateway.settings.generation.default_steps

    @routes.get("/models")
    async def list_models() -> Response:
        def read() -> ModelList:
            listed = (_response(model, checkpoints.state(model), default_steps) for model in gateway.catalog)
            free = checkpoints.free_bytes()
            return ModelList(models=tuple(listed), disk_free_gb=None if free is None else round(free / 1e9, 2))

        return json_response(await gateway.read_models(read))

    @routes.get("/models/<model_id>/status")
    async def status(model_id: str) -> Response:
        return await answer(find(model_id))

    @routes.post("/models/<model_id>/download")
    async def download(model_id: str) -> Response:
        model = find(model_id)
        await gateway.download(model)
        return await answer(model)

    @routes.post("/models/<model_id>/load")
    async def load(model_id: str) -> Response:
        model = find(model_id)
        # No model is loaded for a client that is gone.
        need_client()
        await gateway.load_model(model)
        return await answer(model)

    @routes.post("/models/<model_id>/unload")
    async def unload(model_id: str) -> Response:
        model = find(model_id)
        await gateway.unload_model(model)
        return await answer(model)

    @routes.delete("/models/<model_id>")
    async def delete(model_id: str) -> Response:
        model = find(model_id)
        await gateway.delete_model(model)
        return await answer(model)

    def find(model_id: str) -> Model:
        model = gateway.catalog.get(model_id)
        if model is None:
            shown = model_id[:64]
            raise ModelNotFound(f"Model '{shown}' not found; GET /api/v1/models lists them all", {"model": shown})
        return model

    async def answer(model: Model) -> Response:
        download = await gateway.download_state(model)
        engines = await gateway.engines()
        state = await gateway.read_models(checkpoints.state, model)
        return json_response(_status(model, engines, download, state))

    return routes


def _status(
    model: Model, engines: Sequence[EngineView], download: DownloadState, state: CheckpointState
) -> ModelStatus:
    name = _status_name(model, engines, download, state)
    transfer = download.transfer if name == "downloading" else None
    failure = download.failure if name == "error" else None
    return ModelStatus(
        model=model.alias,
        status=name,
        downloaded=state.downloaded,
        loaded=name == "loaded",
        size_gb=model.size_gb,
        path=None if state.path is None else str(state.path),
        commit=state.commit,
        percent=None if transfer is None else _percent(transfer),
        bytes_done=None if transfer is None else transfer.bytes_done,
        bytes_total=None if transfer is None else transfer.bytes_total,
        bytes_per_second=None if transfer is None else transfer.bytes_per_second,
        eta_seconds=None if transfer is None else transfer.eta_seconds,
        error=None if failure is None else failure.message,
        code=None if failure is None else failure.code,
        details=None if failure is None else failure.details,
    )


def _status_name(
    model: Model, engines: Sequence[EngineView], download: DownloadState, state: CheckpointState
) -> ModelStatusName:
    if any(model.alias in engine.models for engine in engines):
        return "loaded"
    if any(engine.loading == model.alias for engine in engines):
        return "loading"
    if state.downloaded:
        return "ready"
    if download.transfer is not None:
        return "downloading"
    return "not_downloaded" if download.failure is None else "error"


def _sequence_length(model: Model) -> int:
    """Return how many tokens of a prompt the model sees; an upscaler has a prompt of its own and sees none."""
    if model.upscales:
        return 0
    return EMBEDDED_SEQUENCE_LENGTH if model.embedded else SEQUENCE_LENGTH


def _percent(transfer: Transfer) -> float:
    return round(100 * transfer.bytes_done / transfer.bytes_total, 1) if transfer.bytes_total else 0.0


def _response(model: Model, state: CheckpointState, default_steps: int) -> ModelResponse:
    return ModelResponse(
        title=model.alias,
        model_name=model.repo or model.alias,
        hash=state.short_hash,
        sha256=state.sha256,
        config=ModelConfig(
            base_arch="seedvr2" if model.upscales else "flux2",
            supports_guidance=model.supports_guidance,
            max_sequence_length=_sequence_length(model),
        ),
        downloaded=state.downloaded,
        size_gb=model.size_gb,
        size_source=model.size_source,
        description=model.description,
        base=model.base,
        revision=model.revision,
        quantization=model.quantization,
        bits=model.bits,
        licence=model.licence,
        gated=model.gated,
        default_steps=model.default_steps or default_steps,
        default_guidance=model.default_guidance,
        native_size=model.native_size,
    )
