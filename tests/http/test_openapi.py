"""``/openapi.json`` against the app: the one describes what the other answers."""

import re
from pathlib import Path

from mflux_api.http.app import create_app
from mflux_api.http.openapi import OPERATIONS, describe
from tests.support.harness import gateway, scripted_service
from tests.support.scripted_engine import Script


async def test_every_route_is_described_and_every_description_is_a_route(tmp_path: Path) -> None:
    async with scripted_service(tmp_path, Script()) as service:
        app = create_app(gateway(service))
    routes = {
        (method.lower(), re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - ({"HEAD", "OPTIONS"} if "GET" in (rule.methods or ()) else {"OPTIONS"})
    }
    described = [(operation.method, operation.path) for operation in OPERATIONS]
    assert routes == set(described)
    assert len(described) == len(set(described))


def test_operation_ids_are_identifiers_and_each_is_another() -> None:
    paths = describe(max_images=4)["paths"]
    names = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert [name for name in names if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)] == []
    assert len(names) == len(set(names))
    assert "post_sdapi_v1_extra_single_image" in names


def test_every_operation_says_which_scope_a_key_needs() -> None:
    paths = describe(max_images=4)["paths"]
    for operation in OPERATIONS:
        security = paths[operation.path][operation.method].get("security", [])
        scopes = {scope for scheme in security for names in scheme.values() for scope in names}
        assert scopes == ({operation.scope} if operation.scope is not None else set())


def test_forms_have_the_fields_of_json_and_images_as_files() -> None:
    document = describe(max_images=4)
    schemas, forms = document["components"]["schemas"], [each for each in OPERATIONS if each.forms]
    assert {each.path for each in forms} >= {"/api/v1/generate", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"}
    for operation in forms:
        content = document["paths"][operation.path][operation.method]["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}
        assert operation.body is not None
        name = operation.body.__name__
        assert f"#/components/schemas/{name}Form" in str(content["multipart/form-data"])
        assert schemas[f"{name}Form"]["properties"].keys() == schemas[name]["properties"].keys()
    form = schemas["GenerateRequestForm"]["properties"]
    assert form["init_images"]["items"]["format"] == form["mask"]["format"] == "binary"
    assert form["init_images"]["maxItems"] == 4
    assert "'null'" not in str(form)
