"""What a request asks for and its model does not do is said, and what it does is not."""

from typing import Any

import pytest

from mflux_api.catalog import BUILT_IN, Model
from mflux_api.jobs.ignored import of_request
from mflux_api.jobs.parse import from_body
from mflux_api.jobs.request import GenerateRequest
from mflux_api.jobs.resolve import resolve
from mflux_api.jobs.upscaling import resolve_upscaling

MODELS = {model.alias: model for model in BUILT_IN}
DISTILLED, BASE, DEV, UPSCALER = "flux2-klein-4b", "flux2-klein-base-4b", "flux2-dev", "seedvr2"
IMAGE = ("aa",)
AT_1 = "was set to 1: 'flux2-klein-4b' is distilled, and always runs at 1"
NO_UPSCALER = "no effect: the model is not an upscaler"


def warnings_of(alias: str, **fields: Any) -> tuple[str, ...]:
    model: Model = MODELS[alias]
    request = GenerateRequest(**{"prompt": "" if model.upscales else "a lake", **fields})
    runs = resolve_upscaling(request, model, (64, 64)) if model.upscales else resolve(request, model, default_steps=4)
    return of_request(request, model, runs, {"guidance": "cfg_scale"})


@pytest.mark.parametrize(
    ("alias", "fields", "says"),
    [
        (
            DISTILLED,
            {"guidance": 7.0},
            f"'cfg_scale' 7 {AT_1}",
        ),
        (
            DISTILLED,
            {"guidance": 0.0},
            f"'cfg_scale' 0 {AT_1}",
        ),
        (BASE, {"guidance": 0.5}, "'cfg_scale' 0.5 was raised to 1, the least that has a meaning"),
        (
            DISTILLED,
            {"negative_prompt": "dogs"},
            "'negative_prompt' has no effect: 'flux2-klein-4b' is distilled, and runs without guidance",
        ),
        (
            BASE,
            {"negative_prompt": "dogs", "guidance": 1.0},
            "'negative_prompt' has no effect at a guidance of 1; ask for more",
        ),
        (DEV, {"negative_prompt": "dogs"}, "'negative_prompt' has no effect: 'flux2-dev' takes none"),
        (DISTILLED, {"image_strength": 0.5}, "'image_strength' has no effect without init images"),
        (DISTILLED, {"upscale": 2.0}, f"'upscale' has {NO_UPSCALER}"),
        (
            DISTILLED,
            {"resolution": 512, "softness": 0.5},
            "'resolution', 'softness' have no effect: the model is not an upscaler",
        ),
        (
            UPSCALER,
            {"prompt": "a lake", "steps": 4, "guidance": 2.0, "init_images": IMAGE},
            "'prompt', 'steps', 'cfg_scale' have no effect: the model is an upscaler",
        ),
    ],
)
def test_what_is_not_done_is_said_with_its_reason(alias: str, fields: dict[str, Any], says: str) -> None:
    assert warnings_of(alias, **fields) == (says,)


@pytest.mark.parametrize(
    ("alias", "fields"),
    [
        (DISTILLED, {"guidance": 1.0, "steps": 8, "width": 64, "seed": 3, "low_ram": True, "negative_prompt": " \n"}),
        (BASE, {"guidance": 4.0, "negative_prompt": "dogs"}),
        (BASE, {"negative_prompt": "dogs"}),
        (DEV, {"guidance": 0.5}),
        (DISTILLED, {"image_strength": 0.5, "init_images": IMAGE}),
        (UPSCALER, {"upscale": 2.0, "softness": 0.5, "init_images": IMAGE, "negative_prompt": "", "low_ram": True}),
        (DISTILLED, {"output_format": "webp", "output_compression": 0}),
        (UPSCALER, {"output_format": "jpeg", "output_compression": 100, "init_images": IMAGE}),
        (DISTILLED, {"output_format": "png"}),
    ],
)
def test_request_that_is_done_as_it_stands_has_no_warning(alias: str, fields: dict[str, Any]) -> None:
    assert warnings_of(alias, **fields) == ()


@pytest.mark.parametrize(
    ("upscales", "body", "says"),
    [
        (
            False,
            {"upscale": 100, "softness": 0, "resolution": None},
            f"'upscale' has {NO_UPSCALER}",
        ),
        (
            True,
            {"width": "tall", "cfg": 7, "negative_prompt": ""},
            "'width', 'cfg' have no effect: the model is an upscaler",
        ),
    ],
)
def test_fields_of_the_other_kind_of_model_are_told_by_the_clients_names(
    upscales: bool, body: dict[str, Any], says: str
) -> None:
    asked = from_body({"prompt": "", **body}, upscales=lambda _: upscales, aliases={"guidance": "cfg"})
    assert asked.warnings == (says,)


@pytest.mark.parametrize(
    ("alias", "fields"),
    [
        (DISTILLED, {"output_compression": 0}),
        (DISTILLED, {"output_format": "png", "output_compression": 80}),
        (UPSCALER, {"output_compression": 80, "init_images": IMAGE}),
    ],
)
def test_compression_of_a_png_is_told(alias: str, fields: dict[str, Any]) -> None:
    (told,) = warnings_of(alias, **fields)
    assert told.startswith("'output_compression' has no effect: PNG files lose nothing")


def test_a1111s_syntax_is_told_of_the_prompts_that_count() -> None:
    fields = {"prompt": "a (red:1.3) house", "negative_prompt": "(blurry:1.4)"}
    told = [text for text in warnings_of(BASE, **fields) if "A1111" in text]
    assert [text.partition(" has")[0] for text in told] == ["'prompt'", "'negative_prompt'"]
    assert [text for text in warnings_of(DISTILLED, **fields) if "A1111" in text] == told[:1]
