"""What a request may ask for, and what it becomes."""

from typing import Any

import attrs
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from mflux_api.catalog import BUILT_IN, Catalog, is_flux1
from mflux_api.catalog.lookup import find_model
from mflux_api.errors import InvalidModel, InvalidParameter, ModelNotFound, ServiceError
from mflux_api.jobs.parse import from_body, validate
from mflux_api.jobs.request import MAX_SEED, GenerateRequest, check_fields
from mflux_api.jobs.resolve import resolve

DEMO = next(model for model in BUILT_IN if model.alias == "demo")
BASE = next(model for model in BUILT_IN if model.alias == "demo-base")


DEV = next(model for model in BUILT_IN if model.alias == "flux2-dev-8-bit")


def never(name: object) -> bool:
    return False


@pytest.mark.parametrize(
    ("fields", "upscales"),
    [
        ({"upscale": 100, "resolution": "1024x1024", "softness": "high"}, False),
        ({"width": 500, "height": "tall", "steps": 0, "guidance": -1, "image_strength": 7}, True),
    ],
)
def test_fields_of_the_other_kind_of_model_are_ignored_whatever_they_hold(
    fields: dict[str, Any], upscales: bool
) -> None:
    assert from_body({"prompt": "a", **fields}, upscales=lambda name: upscales, aliases={}).request == GenerateRequest(
        prompt="a"
    )


def test_defaults_are_the_documented_ones() -> None:
    request = from_body({"prompt": " a lake "}, upscales=never, aliases={}).request
    assert request == GenerateRequest(prompt="a lake")
    assert resolve(request, DEMO, default_steps=4).size == (512, 512)
    assert (request.num_images, request.low_ram) == (1, False)


def test_null_is_an_absent_field_and_unknown_fields_are_ignored() -> None:
    body = {"prompt": "a", "width": None, "seed": None, "steps": None, "whatever": {"deep": [1]}, "lora_files": None}
    assert from_body(body, upscales=never, aliases={}).request == GenerateRequest(prompt="a")


FIELDS = st.sampled_from([field.name for field in attrs.fields(GenerateRequest)])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=3), LEAVES, max_size=3)


@given(st.dictionaries(FIELDS, VALUES))
def test_any_json_is_accepted_within_the_limits_or_refused_with_a_typed_error(body: dict[str, Any]) -> None:
    try:
        request = from_body(body, upscales=never, aliases={}).request
        check_fields(request, max_images=4)
    except InvalidParameter as error:
        event(f"refused: {error.details['field']}")
        return
    assert 1 <= len(request.prompt) <= 10_000
    assert (request.width or 512) % 16 == (request.height or 512) % 16 == 0
    assert 1 <= request.num_images <= 4


@pytest.mark.parametrize(
    "changes",
    [{"width": 100}, {"steps": 0}, {"num_images": 5}, {"seed": MAX_SEED + 1}, {"guidance": 31.0}, {"prompt": "  "}],
)
def test_requests_made_in_python_have_the_same_limits(changes: dict[str, Any]) -> None:
    request = attrs.evolve(GenerateRequest(prompt="a"), **changes)
    with pytest.raises(InvalidParameter) as caught:
        check_fields(validate(request), max_images=4)
    assert caught.value.details["field"] in changes


def test_resolve_fills_in_seed_steps_and_guidance() -> None:
    distilled = resolve(GenerateRequest(prompt="a", guidance=7.0), DEMO, default_steps=4)
    base = resolve(GenerateRequest(prompt="a", seed=-1), BASE, default_steps=4)
    dev = resolve(GenerateRequest(prompt="a"), DEV, default_steps=4)
    chosen = resolve(GenerateRequest(prompt="a", seed=0, steps=9, guidance=2.0), BASE, default_steps=4)
    assert (distilled.steps, distilled.guidance, distilled.model) == (4, 1.0, "demo")
    assert (base.steps, base.guidance) == (dev.steps, dev.guidance) == (50, 4.0)
    assert (chosen.seed, chosen.steps, chosen.guidance) == (0, 9, 2.0)
    assert base.seed is not None
    assert 0 <= base.seed < 2**32
    assert attrs.evolve(chosen, num_images=3).seeds == (0, 1, 2)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_guidance_without_a_second_branch_is_reported_as_the_1_that_runs(guidance: float) -> None:
    assert resolve(GenerateRequest(prompt="a", guidance=guidance), BASE, default_steps=4).guidance == 1.0


def test_largest_seed_leaves_room_for_four_exact_images() -> None:
    assert float(MAX_SEED + 3) == MAX_SEED + 3 < 2**53


@pytest.mark.parametrize("name", ["schnell", "dev", "krea-dev", "dev-krea", "kontext", "flux1-dev", "schnell-4-bit"])
def test_flux1_names_are_known_to_be_gone(name: str) -> None:
    assert is_flux1(name)
    with pytest.raises(ModelNotFound, match="Flux1 models removed"):
        find_model(name, Catalog())


@pytest.mark.parametrize("name", ["flux2-dev", "demo", "developer", "flux2-klein-4b"])
def test_other_names_are_not_flux1(name: str) -> None:
    assert not is_flux1(name)


def test_unknown_model_lists_what_there_is() -> None:
    with pytest.raises(InvalidModel) as caught:
        find_model("nonsense", Catalog())
    assert caught.value.details["available_models"] == Catalog().aliases()
    assert caught.value.message == "Invalid model specified"
    assert all(alias in str(caught.value) for alias in Catalog().aliases())


def test_errors_survive_pickling_with_their_details() -> None:
    import pickle

    error = InvalidParameter("'a' is invalid", {"field": "a"})
    again: ServiceError = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, dict(again.details)) == (InvalidParameter, error.message, {"field": "a"})
