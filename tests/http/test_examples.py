"""The examples of ``/openapi.json``: each is a request that the service takes as it stands, with nothing to warn of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from jsonschema import Draft202012Validator

from mflux_api.http.examples import EXAMPLES
from mflux_api.http.openapi import OPERATIONS, describe
from mflux_api.http.tags import TAGS
from tests.support.harness import settings
from tests.support.scripted_api import scripted_api

# The example's image has no request in it, which is what this route tells.
TOLD = {"/api/v1/images/info": ["The file does not say how it was made"]}
# They take 0 and 1 for booleans, which their schema does not say; an example would have schemathesis send such.
WITHOUT = {"/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images"}
WITH_BODIES = {each.path: each for each in OPERATIONS if each.body is not None}


def test_bodies_have_an_example_that_its_schema_allows() -> None:
    document = describe(max_images=4)
    assert EXAMPLES.keys() == WITH_BODIES.keys() - WITHOUT
    for path in EXAMPLES:
        operation = WITH_BODIES[path]
        content = document["paths"][path][operation.method]["requestBody"]["content"]["application/json"]
        schema: dict[str, Any] = content["schema"] | {"components": document["components"]}
        assert [error.message for error in Draft202012Validator(schema).iter_errors(content["example"])] == []


async def test_every_example_is_taken_without_a_warning(tmp_path: Path) -> None:
    base = settings(tmp_path)
    # The embedded model is always on disk; the other default would be downloaded.
    offline = attrs.evolve(base, models=attrs.evolve(base.models, default="demo"))
    async with scripted_api(tmp_path, changed=offline) as api:
        for path, body in EXAMPLES.items():
            answer = await api.http.post(path, json=dict(body))
            assert answer.status_code == 200, (path, answer.text)
            warnings = (answer.json() or {}).get("warnings") or []
            assert warnings == TOLD.get(path, []), path


def test_every_route_is_in_one_group_and_every_group_has_a_route() -> None:
    document = describe(max_images=4)
    used = [each["tags"] for methods in document["paths"].values() for each in methods.values()]
    assert all(len(tags) == 1 for tags in used)
    assert {tags[0] for tags in used} == {tag["name"] for tag in TAGS}
    at = {path: next(iter(methods.values()))["tags"][0] for path, methods in document["paths"].items()}
    assert (at["/api/v1/jobs/{job_id}/ticket"], at["/v1/models"], at["/"]) == ("Jobs", "OpenAI", "Server")
