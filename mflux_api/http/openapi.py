"""``/openapi.json``: the API described by the classes that it is made from."""

import inspect
from collections.abc import Mapping
from typing import Any

import attrs
import msgspec
from quart import Blueprint, Response

from mflux_api.errors import (
    BodyTooLarge,
    DiskFull,
    DownloadFailed,
    EngineCrashed,
    EngineUnavailable,
    GenerationFailed,
    HostNotAllowed,
    IdempotencyConflict,
    ImageGone,
    InternalError,
    InvalidJSON,
    InvalidModel,
    InvalidParameter,
    JobCancelled,
    JobGone,
    JobNotFound,
    ModelGated,
    ModelInUse,
    ModelNotDeletable,
    ModelNotDownloaded,
    ModelNotFound,
    NotFound,
    OriginNotAllowed,
    OutOfMemory,
    QueueFull,
    RequestTimeout,
    ServiceError,
    ServiceRestarting,
    ShuttingDown,
    Unauthorized,
)
from mflux_api.http import schemas
from mflux_api.http.a1111.extras import ExtraBatchImages, ExtraSingleImage
from mflux_api.http.responses import json_bytes
from mflux_api.images.encode import MEDIA_TYPES
from mflux_api.jobs.idempotency import HEADER, MAX_LENGTH
from mflux_api.jobs.request import GenerateRequest
from mflux_api.version import package_version

Errors = tuple[type[ServiceError], ...]

_BODY: Errors = (InvalidJSON, InvalidParameter, BodyTooLarge, RequestTimeout)
_SUBMIT: Errors = (
    *_BODY,
    InvalidModel,
    ModelNotDownloaded,
    ModelNotFound,
    QueueFull,
    ShuttingDown,
    EngineUnavailable,
    DiskFull,
)
_GENERATE: Errors = (
    JobCancelled,
    GenerationFailed,
    EngineCrashed,
    OutOfMemory,
    ImageGone,
    ModelGated,
    DownloadFailed,
)
_JOB: Errors = (JobNotFound, JobGone)
_ALWAYS: Errors = (Unauthorized, HostNotAllowed, OriginNotAllowed, InternalError, ServiceRestarting)

_JOB_ID = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
_MODEL_ID = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
_INDEX = {"name": "index", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
_LAST_EVENT_ID = {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}}

_IDEMPOTENCY_KEY = {"name": HEADER, "in": "header", "schema": {"type": "string", "maxLength": MAX_LENGTH}}


def _query(name: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": dict(schema), "description": description}


_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"file": _FILE, "name": {"type": "string"}}, "required": ["file"]}
_UPLOAD = {"application/octet-stream": {"schema": _FILE}, "multipart/form-data": {"schema": _FORM}}
_IMAGES = _query("images", {"enum": ["base64", "url"]}, "How the result names its images")
_STATUSES = ["queued", "generating", "completed", "failed", "cancelled"]


@attrs.frozen(kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    answer: type[Any] | None
    """The class of the answer; ``None`` where it is no JSON object."""
    body: type[Any] | None = None
    body_required: tuple[str, ...] = ()
    upload: bool = False
    """The body is a file, and no JSON object."""
    parameters: tuple[Mapping[str, Any], ...] = ()
    errors: Errors = ()
    content: Mapping[str, Any] = attrs.field(factory=dict)
    """Media types of an answer that is no JSON object."""


OPERATIONS = (
    Operation(
        method="post",
        path="/sdapi/v1/txt2img",
        summary="Generate a prompt and wait for the images",
        body=GenerateRequest,
        body_required=("prompt",),
        answer=schemas.ImagesAnswer,
        errors=(*_SUBMIT, *_GENERATE),
    ),
    Operation(
        method="post",
        path="/sdapi/v1/img2img",
        summary="Edit images by a prompt and wait for the result",
        body=GenerateRequest,
        body_required=("init_images",),
        answer=schemas.ImagesAnswer,
        errors=(*_SUBMIT, *_GENERATE),
    ),
    Operation(
        method="post",
        path="/sdapi/v1/extra-single-image",
        summary="Upscale an image and wait for the result",
        body=ExtraSingleImage,
        answer=schemas.ExtraSingleAnswer,
        errors=(*_SUBMIT, *_GENERATE),
    ),
    Operation(
        method="post",
        path="/sdapi/v1/extra-batch-images",
        summary="Upscale several images and wait for the results",
        body=ExtraBatchImages,
        answer=schemas.ExtraBatchAnswer,
        errors=(*_SUBMIT, *_GENERATE),
    ),
    Operation(
        method="get",
        path="/sdapi/v1/upscalers",
        summary="List what upscaler_1 may name",
        answer=None,
        content={
            "application/json": {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/UpscalerObject"}}}
        },
    ),
    Operation(
        method="post",
        path="/api/v1/generate",
        summary="Submit a job and return at once",
        body=GenerateRequest,
        answer=schemas.GenerateAnswer,
        parameters=(_IDEMPOTENCY_KEY,),
        errors=(*_SUBMIT, IdempotencyConflict, JobGone),
    ),
    Operation(
        method="get",
        path="/api/v1/jobs",
        summary="List jobs, newest first",
        answer=schemas.JobList,
        parameters=(
            _query("limit", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50}, "Jobs on a page"),
            _query("cursor", {"type": "string"}, "next_cursor of the page before"),
            _query("status", {"enum": _STATUSES}, "Only jobs in this state"),
        ),
        errors=(InvalidParameter,),
    ),
    Operation(
        method="get",
        path="/api/v1/jobs/{job_id}",
        summary="One job, with its result once it is finished",
        answer=schemas.JobObject,
        parameters=(_JOB_ID, _IMAGES),
        errors=(*_JOB, ImageGone, InvalidParameter),
    ),
    Operation(
        method="delete",
        path="/api/v1/jobs/{job_id}",
        summary="Cancel a job",
        answer=schemas.CancelAnswer,
        parameters=(_JOB_ID,),
        errors=_JOB,
    ),
    Operation(
        method="get",
        path="/api/v1/jobs/{job_id}/stream",
        summary="Follow a job: progress events, then one of complete, failed, cancelled",
        answer=None,
        parameters=(
            _JOB_ID,
            _LAST_EVENT_ID,
            _IMAGES,
            _query("previews", {"enum": ["none", "jpeg"]}, "jpeg: also events with a small image in `preview`"),
        ),
        content={"text/event-stream": {"schema": {"type": "string"}}},
        errors=(*_JOB, InvalidParameter, ShuttingDown),
    ),
    Operation(
        method="get",
        path="/api/v1/jobs/{job_id}/images/{index}",
        summary="One finished image as a file",
        answer=None,
        parameters=(_JOB_ID, _INDEX, _query("format", {"enum": list(MEDIA_TYPES)}, "png by default")),
        content={media: {} for media in MEDIA_TYPES.values()},
        errors=(*_JOB, NotFound, ImageGone, InvalidParameter),
    ),
    Operation(method="get", path="/api/v1/models", summary="List the models", answer=schemas.ModelList),
    Operation(
        method="get",
        path="/api/v1/models/{model_id}/status",
        summary="Whether a model is on disk and in memory, or how far its download is",
        answer=schemas.ModelStatus,
        parameters=(_MODEL_ID,),
        errors=(ModelNotFound,),
    ),
    Operation(
        method="post",
        path="/api/v1/models/{model_id}/download",
        summary="Begin to download a model; its status says how far it is",
        answer=schemas.ModelStatus,
        parameters=(_MODEL_ID,),
        errors=(ModelNotFound, ShuttingDown),
    ),
    Operation(
        method="post",
        path="/api/v1/models/{model_id}/load",
        summary="Bring a model into memory, and answer when it is there",
        answer=schemas.ModelStatus,
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
        summary="Have a model out of memory",
        answer=schemas.ModelStatus,
        parameters=(_MODEL_ID,),
        errors=(ModelNotFound, ModelInUse, ShuttingDown),
    ),
    Operation(
        method="delete",
        path="/api/v1/models/{model_id}",
        summary="Remove from disk what this service downloaded or quantized",
        answer=schemas.ModelStatus,
        parameters=(_MODEL_ID,),
        errors=(ModelNotFound, ModelNotDeletable, ModelNotDownloaded, ModelInUse, ShuttingDown),
    ),
    Operation(
        method="get",
        path="/api/v1/loras",
        summary="List the LoRA files that requests may name",
        answer=schemas.LoraList,
    ),
    Operation(
        method="post",
        path="/api/v1/loras",
        summary="Add a LoRA file: the body is the file, or a form with the field `file`",
        answer=schemas.LoraObject,
        parameters=(
            _query("name", {"type": "string"}, "What to call it; a form's own file name by default"),
            _query("overwrite", {"enum": ["true", "false"]}, "Replace a file of that name"),
        ),
        upload=True,
        errors=(InvalidParameter, BodyTooLarge, RequestTimeout, DiskFull),
    ),
    Operation(method="get", path="/api/v1/health", summary="Whether the service works", answer=schemas.Health),
    Operation(method="get", path="/api/v1/system", summary="Device and memory", answer=schemas.SystemObject),
    Operation(method="get", path="/api/v1/queue", summary="What runs and what waits", answer=schemas.QueueObject),
    Operation(method="get", path="/api/v1/stats", summary="Running totals", answer=schemas.StatsObject),
    Operation(
        method="get",
        path="/openapi.json",
        summary="This description",
        answer=None,
        content={"application/json": {"schema": {"type": "object"}}},
    ),
)


def blueprint(*, max_images: int) -> Blueprint:
    """Build the route."""
    routes = Blueprint("openapi", __name__)
    document = msgspec.json.encode(describe(max_images=max_images))

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        return json_bytes(document)

    return routes


def describe(*, max_images: int) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a service that generates up to ``max_images`` at once."""
    classes = {schemas.ErrorBody: None, schemas.ProgressData: None, schemas.UpscalerObject: None}
    for operation in OPERATIONS:
        classes.update({kind: None for kind in (operation.body, operation.answer) if kind is not None})
    _, components = msgspec.json.schema_components(list(classes), ref_template="#/components/schemas/{name}")
    for component in components.values():
        component["description"] = inspect.cleandoc(component.get("description", ""))
    for body in dict.fromkeys(operation.body for operation in OPERATIONS if operation.body is not None):
        _loosen(components[body.__name__])
    components[GenerateRequest.__name__]["properties"]["num_images"]["anyOf"][0]["maximum"] = max_images
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mflux-api",
            "version": package_version(),
            "description": "FLUX.2 Klein image generation. Every failure has the shape of ErrorBody.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _loosen(request: dict[str, Any]) -> None:
    """A null is an absent field."""
    properties = request["properties"]
    for name, schema in properties.items():
        if name not in request.get("required", ()) and "anyOf" not in schema:
            default = schema.pop("default")
            properties[name] = {"anyOf": [schema, {"type": "null"}], "default": default}


def _described(operation: Operation) -> dict[str, Any]:
    content = operation.content if operation.answer is None else _json(operation.answer)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}_{operation.path.strip('/').replace('/', '_').replace('.', '_')}".replace(
            "{", ""
        ).replace("}", ""),
        "parameters": [dict(parameter) for parameter in operation.parameters],
        "responses": {"200": {"description": "Success", "content": content}} | _failures(operation.errors),
    }
    if operation.body is not None:
        schema: dict[str, Any] = _reference(operation.body)
        if operation.body_required:
            schema = {"allOf": [schema, {"required": list(operation.body_required)}]}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if operation.upload:
        described["requestBody"] = {"required": True, "content": _UPLOAD}
    return described


def _failures(errors: Errors) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for error in dict.fromkeys((*errors, *_ALWAYS)):
        by_status.setdefault(error.status, []).append(error.code)
    return {
        str(status): {"description": ", ".join(codes), "content": _json(schemas.ErrorBody)}
        for status, codes in sorted(by_status.items())
    }


def _json(kind: type[Any]) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(kind)}}


def _reference(kind: type[Any]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
