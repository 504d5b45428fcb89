"""``/openapi.json``: collects the operations of all routes modules, and renders them and their schemas."""

import copy
import inspect
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from quart import Blueprint, Response

from mflux_api.access.keys import Scope
from mflux_api.errors import (
    BodyTooLarge,
    Forbidden,
    HostNotAllowed,
    InternalError,
    OriginNotAllowed,
    ServiceRestarting,
    Unauthorized,
)
from mflux_api.http import api_reference
from mflux_api.http.a1111 import sdapi
from mflux_api.http.examples import EXAMPLES
from mflux_api.http.forwarded import external_prefix
from mflux_api.http.openai import routes as openai
from mflux_api.http.openai_errors import OpenAIErrorBody, speaks_openai, status_of_class
from mflux_api.http.operations import Errors, Operation
from mflux_api.http.responses import json_bytes
from mflux_api.http.routes import api_v1, page
from mflux_api.http.schemas import ErrorBody
from mflux_api.http.tags import TAGS, tag_of
from mflux_api.jobs.json_fields import Fields
from mflux_api.jobs.request import GenerateRequest
from mflux_api.version import package_version

OPERATIONS = (
    *sdapi.OPERATIONS,
    *openai.OPERATIONS,
    *api_v1.OPERATIONS,
    *page.OPERATIONS,
    *api_reference.OPERATIONS,
    Operation(
        method="get",
        path="/openapi.json",
        summary="This description",
        scope=Scope.READ,
        content={"application/json": {"schema": {"type": "object"}}},
    ),
)

_ALWAYS: Errors = (Unauthorized, Forbidden, HostNotAllowed, OriginNotAllowed, InternalError, ServiceRestarting)
_WORDS = re.compile(r"\w+", re.ASCII)
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "basic": {"type": "http", "scheme": "basic"},
}
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"file": _FILE, "name": {"type": "string"}}, "required": ["file"]}
_UPLOAD = {"application/octet-stream": {"schema": _FILE}, "multipart/form-data": {"schema": _FORM}}


def blueprint(*, max_images: int) -> Blueprint:
    """Build the route."""
    routes = Blueprint("openapi", __name__)
    document = msgspec.json.encode(describe(max_images=max_images))

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        # Below a prefix a client takes the paths for those of the host otherwise.
        servers = msgspec.json.encode([{"url": external_prefix() or "/"}])
        return json_bytes(b'{"servers":' + servers + b"," + document[1:])

    return routes


def describe(*, max_images: int) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a service that generates up to ``max_images`` at once."""
    classes: dict[type[Any], None] = {ErrorBody: None, OpenAIErrorBody: None}
    for operation in OPERATIONS:
        used = (operation.body, operation.response, operation.awaited, operation.accepted, *operation.also_describes)
        classes.update({kind: None for kind in used if kind is not None})
    _, components = msgspec.json.schema_components(list(classes), ref_template="#/components/schemas/{name}")
    for component in components.values():
        component["description"] = inspect.cleandoc(component.get("description", ""))
    forms = dict.fromkeys(operation.body for operation in OPERATIONS if operation.forms and operation.body is not None)
    components |= {f"{kind.__name__}Form": _as_form(components[kind.__name__], Fields.of(kind)) for kind in forms}
    bodies = dict.fromkeys(operation.body for operation in OPERATIONS if operation.body is not None)
    for body in bodies:
        _allow_nulls(components[body.__name__])
    for kind in classes.keys() - bodies.keys():
        _require_all(components[kind.__name__])
    components[GenerateRequest.__name__]["properties"]["num_images"]["anyOf"][0]["maximum"] = max_images
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe_operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mflux-api",
            "version": package_version(),
            "description": "FLUX.2 Klein image generation. Every failure has the shape of ErrorBody.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": list(TAGS),
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
    }


def _require_all(answer: dict[str, Any]) -> None:
    """Promise every field of an answer: what the service leaves out it sends as null."""
    if "properties" in answer:
        answer["required"] = list(answer["properties"])


def _allow_nulls(request: dict[str, Any]) -> None:
    """Let every optional field of a request be null, which means that it is absent."""
    properties = request["properties"]
    for name, schema in properties.items():
        if name not in request.get("required", ()) and "anyOf" not in schema:
            default = schema.pop("default")
            properties[name] = {"anyOf": [schema, {"type": "null"}], "default": default}


def _as_form(request: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Return a request's schema as that of a form: images are files, or base64 as in JSON."""
    form = copy.deepcopy(dict(request))
    for name, schema in form["properties"].items():
        field = fields.field(name)
        if field is not None and field.large and field.fields is None:
            file = {key: text for key, text in schema.items() if key == "description"}
            many = {"type": "array", "items": _FILE, "maxItems": field.most_items}
            form["properties"][name] = file | (_FILE if field.most_items is None else many)
            continue
        # What is left out is absent: a form has no null.
        kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
        if kinds:
            form["properties"][name] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return form


def _form_reference(operation: Operation) -> dict[str, Any]:
    assert operation.body is not None
    reference = {"$ref": f"#/components/schemas/{operation.body.__name__}Form"}
    return {"allOf": [reference, {"required": list(operation.body_required)}]} if operation.body_required else reference


def _describe_operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": [tag_of(operation.path)],
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "parameters": [dict(parameter) for parameter in operation.parameters],
        "responses": {"200": {"description": "Success", "content": _content(operation)}}
        | _describe_accepted(operation)
        | {status: {"description": when} for status, when in operation.bodiless.items()}
        | _describe_errors(
            (*operation.errors, *([BodyTooLarge] if operation.method == "post" else [])),
            openai=speaks_openai(operation.path),
        ),
    }
    if operation.scope is not None:
        # The empty one stands for a service without keys.
        described["security"] = [{}, *({name: [operation.scope.value]} for name in _SCHEMES)]
    if operation.body is not None:
        schema: dict[str, Any] = _reference(operation.body)
        if operation.body_required:
            schema = {"allOf": [schema, {"required": list(operation.body_required)}]}
        example = EXAMPLES.get(operation.path)
        shown = {} if example is None else {"example": dict(example)}
        content = {"application/json": {"schema": schema} | shown} | (
            {"multipart/form-data": {"schema": _form_reference(operation)}} if operation.forms else {}
        )
        described["requestBody"] = {"required": not operation.body_optional, "content": content}
    if operation.upload:
        described["requestBody"] = {"required": True, "content": _UPLOAD}
    return described


def _describe_accepted(operation: Operation) -> dict[str, Any]:
    if operation.accepted is None:
        return {}
    return {"202": {"description": "The job goes on", "content": _json(_reference(operation.accepted))}}


def _operation_id(operation: Operation) -> str:
    # An identifier: generators of clients name functions by it.
    words = _WORDS.findall(operation.path) or ["root"]
    return "_".join((operation.method, *words))


def _content(operation: Operation) -> dict[str, Any]:
    if operation.response is None:
        return dict(operation.content)
    schema = _reference(operation.response)
    if operation.awaited is not None:
        return _json({"anyOf": [schema, _reference(operation.awaited)]})
    return _json({"type": "array", "items": schema} if operation.is_list else schema)


def _describe_errors(errors: Errors, *, openai: bool) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for error in dict.fromkeys((*errors, *_ALWAYS)):
        by_status.setdefault(status_of_class(error) if openai else error.status, []).append(error.code)
    shape = _json(_reference(OpenAIErrorBody if openai else ErrorBody))
    return {
        str(status): {"description": ", ".join(codes), "content": shape} for status, codes in sorted(by_status.items())
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(kind: type[Any]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
