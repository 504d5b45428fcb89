"""Errors of the service as the command line tells them: no route, no field of a request."""

import re

import attrs
import pytest

from mflux_api.catalog import Catalog
from mflux_api.catalog.lookup import find_model, not_downloaded
from mflux_api.cli.error_text import describe
from mflux_api.errors import EngineUnavailable, InvalidModel, InvalidParameter, ModelNotDownloaded, ServiceError
from mflux_api.jobs.memory_advice import MemoryAdvice
from mflux_api.jobs.request import GenerateRequest, check_fields
from mflux_api.jobs.upscaling import check_upscaling


def model(alias: str):  # type: ignore[no-untyped-def]
    found = Catalog().get(alias)
    assert found is not None
    return found


def raised(error: type[ServiceError], function, *arguments, **options) -> ServiceError:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    return caught.value


REQUEST = GenerateRequest(prompt="a", lora_files=("a",), lora_scales=(1.0, 1.0), num_images=9)
ERRORS = {
    "`mflux-api doctor` looks at this machine": EngineUnavailable.because("exited with status 1: no driver"),
    "`mflux-api doctor`": EngineUnavailable.because(""),
    "run `mflux-api models download flux2-dev`": not_downloaded(model("flux2-dev")),
    "`mflux-api models download demo` first": ModelNotDownloaded(
        "Model 'demo' is not on disk; POST /api/v1/models/demo/download first"
    ),
    "did you mean 'flux2-klein-4b'": raised(InvalidModel, find_model, "flux2-klein4b", Catalog()),
    "did you mean 'flux2-klein-9b'": raised(InvalidModel, find_model, "FLUX2-Klein-9B", Catalog()),
    "`mflux-api models list` shows them all": raised(InvalidModel, find_model, "x", Catalog()),
    "--num-images is invalid: expected at most 4": raised(InvalidParameter, check_fields, REQUEST, max_images=4),
    "--lora (NAME:SCALE) has more entries than --lora": raised(InvalidParameter, check_fields, REQUEST, max_images=9),
    "The prompt is required": raised(InvalidParameter, check_fields, GenerateRequest(prompt=""), max_images=4),
    "--init-image is required: 'seedvr2' upscales": raised(
        InvalidParameter, check_upscaling, GenerateRequest(prompt=""), model("seedvr2")
    ),
    "Use flux2-klein-9b-mlx-4bit or add --low-ram": MemoryAdvice(Catalog()).error("flux2-klein-9b", low_ram=False),
    "the server's log": ServiceError("It failed; see GET /api/v1/jobs/0123456789ab"),
}


@pytest.mark.parametrize("says", ERRORS)
def test_errors_speak_of_the_command_line(says: str) -> None:
    text = describe(ERRORS[says])
    assert says in text
    assert "/api/" not in text
    assert not re.search(r"'(init_images|lora_\w+|num_images|width|prompt)'", text)


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(GenerateRequest)])
def test_every_field_has_an_option(field: str) -> None:
    text = describe(InvalidParameter.for_field(field, "is invalid: expected another"))
    assert f"'{field}'" not in text
    assert text.startswith(("--", "The prompt"))
