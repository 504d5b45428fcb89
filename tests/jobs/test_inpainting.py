"""Requests with a mask: limits, defaults, and what is said of fields that count for nothing."""

from typing import Any

import attrs
import pytest

from mflux_api.catalog import BUILT_IN
from mflux_api.errors import InvalidParameter
from mflux_api.images.run_inputs import differs_in_shape, inpainting_canvas, inpainting_size
from mflux_api.jobs.inpainting import Inpainting, resolve_inpainting, unused_modifiers
from mflux_api.jobs.parse import from_body, validate
from mflux_api.jobs.request import Extend, GenerateRequest, check_fields
from mflux_api.jobs.upscaling import check_upscaling
from tests.support.requests import resolved_request

UPSCALER = next(model for model in BUILT_IN if model.upscales)
MASKED = GenerateRequest(prompt="a", init_images=("x",), mask="y")


def read(**fields: Any) -> GenerateRequest:
    request = from_body({"prompt": "a", **fields}, upscales=lambda name: False, aliases={}).request
    check_fields(request, max_images=4)
    return request


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mask": "y"}, "mask"),
        ({"extend": {"left": 8}}, "extend"),
        ({"extend": {"left": -1}}, "extend"),
        ({"extend": {"left": 2049}}, "extend"),
        ({"extend": 64}, "extend"),
        ({"mask": 5}, "mask"),
        ({"mask_blur": -1}, "mask_blur"),
        ({"mask_blur": 257}, "mask_blur"),
        ({"inpainting_fill": 4}, "inpainting_fill"),
        ({"inpainting_mask_invert": 2}, "inpainting_mask_invert"),
        ({"inpaint_full_res_padding": -1}, "inpaint_full_res_padding"),
    ],
)
def test_fields_of_masks_have_limits_and_an_image(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        read(**fields)
    assert caught.value.details["field"] == named


def test_margins_of_0_extend_nothing_and_need_no_image() -> None:
    assert not read(extend={"left": 0, "top": None}).extend


def test_margin_may_be_written_as_a_float() -> None:
    assert read(init_images=["x"], extend={"right": 64.0}).extend == Extend(right=64)


@pytest.mark.parametrize(
    ("extend", "problem", "value"),
    [
        ({"left": 8, "top": 2049}, "expected int <= 2048 in 'top'", 2049),
        ({"bottom": -1}, "expected int >= 0 in 'bottom'", -1),
        ({"right": 64.5}, "expected a whole number, got 64.5 in 'right'", 64.5),
        ({"right": "x"}, "expected int, got str in 'right'", "x"),
    ],
)
def test_margin_that_is_refused_is_named(extend: dict[str, Any], problem: str, value: object) -> None:
    with pytest.raises(InvalidParameter, match=f"'extend' is invalid: {problem}") as caught:
        read(init_images=["x"], extend=extend)
    assert (caught.value.details["field"], caught.value.details["value"]) == ("extend", value)


def test_requests_made_in_python_may_have_them() -> None:
    request = attrs.evolve(MASKED, extend=Extend(left=3), inpaint_full_res=True, mask_blur=2.5)
    assert validate(request) == request


def test_upscaler_refuses_a_mask() -> None:
    with pytest.raises(InvalidParameter, match=r"'mask' is invalid: .* upscales whole images"):
        check_upscaling(MASKED, UPSCALER)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"result": (500, 333), "blur": (4.0, 4.0), "fill": 1, "padding": None, "invert": False, "masked": True}),
        ({"width": 256}, {"result": (256, 336)}),
        ({"width": 256, "height": 512, "inpaint_full_res": 1}, {"result": (500, 333), "padding": 32}),
        ({"inpaint_full_res": True, "inpaint_full_res_padding": 0}, {"padding": 0}),
        ({"inpaint_full_res_padding": 8}, {"padding": None}),
        ({"mask_blur": 0}, {"blur": (0.0, 0.0)}),
        ({"mask_blur_x": 2, "mask_blur_y": 9}, {"blur": (2, 9)}),
        ({"mask_blur_y": 9}, {"blur": (4.0, 9)}),
        ({"mask_blur": 7, "mask_blur_x": 2}, {"blur": (7, 7)}),
        ({"extend": Extend(top=5), "mask": None}, {"extend": (0, 5, 0, 0), "masked": False}),
    ],
)
def test_what_is_left_out_has_the_documented_default(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    request = attrs.evolve(MASKED, **changes)
    resolved = resolve_inpainting(request, (500, 333), (request.width or 496, request.height or 336))
    assert attrs.asdict(resolved, recurse=False).items() >= expected.items()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"mask": None, "mask_blur": 2.0, "inpainting_fill": 0}, "nothing is masked; ignored: 'mask_blur', 'inpaint"),
        ({"mask_blur": 7, "mask_blur_x": 2}, "'mask_blur_x' is not used"),
        ({"inpaint_full_res_padding": 8}, "'inpaint_full_res_padding' is not used"),
        ({"mask": None, "extend": Extend(left=1), "inpainting_mask_invert": True}, "there is no 'mask'"),
        ({"inpainting_fill": 3, "image_strength": 0.0}, "'inpainting_fill' is not used"),
    ],
)
def test_field_that_counts_for_nothing_is_said(changes: dict[str, Any], part: str) -> None:
    (sentence,) = unused_modifiers(attrs.evolve(MASKED, **changes))
    assert part in sentence


@pytest.mark.parametrize("changes", [{}, {"mask": None}, {"mask_blur": 7, "mask_blur_x": 4.0, "mask_blur_y": 7}])
def test_usual_requests_have_no_warning(changes: dict[str, Any]) -> None:
    assert unused_modifiers(attrs.evolve(MASKED, **changes)) == ()


@pytest.mark.parametrize(
    ("source", "run"),
    [
        ((512, 512), (512, 512)),
        ((500, 333), (496, 336)),
        ((1000, 1048), (992, 1056)),
        ((1400, 748), (1392, 736)),
        ((4000, 3000), (1184, 880)),
        ((20, 20), (64, 64)),
        ((5000, 300), (2048, 128)),
        ((300, 5000), (128, 2048)),
        ((9000, 100), (2048, 64)),
    ],
)
def test_size_to_generate_at_is_the_nearest_within_a_megapixel(source: tuple[int, int], run: tuple[int, int]) -> None:
    assert inpainting_size(source) == run


def test_image_may_not_be_extended_beyond_what_a_result_may_have() -> None:
    with pytest.raises(InvalidParameter, match=r"'extend' is invalid: the image would have 7048 × 5000"):
        inpainting_canvas(attrs.evolve(MASKED, extend=Extend(left=2048)), (5000, 5000))


@pytest.mark.parametrize(
    ("mask", "image", "differs"),
    [
        ((512, 512), (512, 512), False),
        ((256, 171), (500, 333), False),
        ((64, 64), (1000, 1003), False),
        ((512, 512), (512, 768), True),
        ((333, 500), (500, 333), True),
    ],
)
def test_mask_of_another_shape_is_noticed(mask: tuple[int, int], image: tuple[int, int], differs: bool) -> None:
    assert differs_in_shape(mask, image) is differs


def test_mask_is_an_input_behind_the_init_images_and_goes_with_them() -> None:
    request = resolved_request(init_images=("a", "b"), mask="m", inpainting=Inpainting(result=(64, 64), masked=True))
    assert request.inputs == ("a", "b", "m")
    waiting = request.without_inputs()
    assert waiting.inputs == ("", "", "")
    assert waiting.with_inputs(("a", "b", "m")) == request
    assert request.with_inputs(()).inputs == ()
    extended = attrs.evolve(request, mask="", inpainting=Inpainting(result=(64, 64)))
    assert extended.inputs == ("a", "b")
