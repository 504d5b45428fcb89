"""How long jobs take, learned from measurements."""

from typing import Any

import attrs
import pytest

from mflux_api.jobs.estimates import Estimates
from mflux_api.jobs.resolve import ResolvedRequest
from tests.support.requests import resolved_request

SMALL = resolved_request(model="demo", width=64, height=64, steps=4, seed=0, num_images=2)
LARGE = resolved_request(model="demo", width=128, height=128, steps=4, seed=0)


def test_unknown_model_has_no_estimate() -> None:
    estimates = Estimates()
    estimates.add_step(SMALL, "cpu", 1.0)
    assert estimates.remaining(resolved_request(model="other", steps=4), "cpu") is None


def test_steps_and_rest_of_every_image_count() -> None:
    estimates = Estimates()
    estimates.add_step(SMALL, "cpu", 1.0)
    estimates.add_rest(SMALL, "cpu", 0.5)
    assert estimates.remaining(SMALL, "cpu") == pytest.approx(2 * 4 * 1.0 + 2 * 0.5)
    assert estimates.remaining(SMALL, "cpu", step=3, image=1) == pytest.approx(1.0 + 0.5)


def sized(side: int, *, model: str = "flux2-klein-4b", steps: int = 1) -> ResolvedRequest:
    return resolved_request(model=model, width=side, height=side, steps=steps, seed=0)


@pytest.mark.parametrize(("known", "new"), [(512, 1024), (1024, 512)])
def test_unknown_size_is_scaled_from_one_by_what_a_transformers_step_costs(known: int, new: int) -> None:
    """As it was measured on an H200."""
    steps = {512: 18.3, 1024: 59.9}
    estimates = Estimates()
    estimates.add_step(sized(known), "cuda", steps[known])
    assert estimates.remaining(sized(new), "cuda") == pytest.approx(steps[new], rel=0.05)


def test_short_prompts_of_the_demo_model_leave_more_to_its_pixels() -> None:
    estimates = Estimates()
    estimates.add_step(sized(256, model="demo"), "cpu", 66.0)
    assert estimates.remaining(sized(512, model="demo"), "cpu") == pytest.approx(265.0, rel=0.15)


def test_rest_of_an_image_does_not_grow_with_it_where_it_is_short() -> None:
    estimates = Estimates()
    for side, rest in ((512, 0.027), (2048, 2.7)):
        known = sized(side)
        estimates.add_step(known, f"device {side}", 0.0)
        estimates.add_rest(known, f"device {side}", rest)
    assert estimates.remaining(sized(1024), "device 512") == pytest.approx(0.05, rel=0.25)
    assert estimates.remaining(sized(1024), "device 2048") == pytest.approx(2.7 / 4, rel=0.05)


def test_size_between_two_others_is_on_the_line_through_them() -> None:
    estimates = Estimates()
    for side in (256, 512, 1024):
        estimates.add_step(sized(side), "cpu", 1.0)
        estimates.add_rest(sized(side), "cpu", 5.0 + (side / 256) ** 2)
    assert estimates.remaining(sized(384), "cpu") == pytest.approx(1.0 + 5.0 + 2.25)
    assert estimates.remaining(sized(768), "cpu") == pytest.approx(1.0 + 5.0 + 9.0)
    assert estimates.remaining(sized(2048), "cpu") == pytest.approx(1.0 + 5.0 + 64.0)


def test_no_size_is_expected_to_be_faster_than_a_smaller_one() -> None:
    estimates = Estimates()
    # The larger one was measured on a day without other programs.
    for side, seconds in ((512, 3.0), (1024, 2.0)):
        estimates.add_step(sized(side), "cpu", seconds)
    for side in (64, 256, 768, 2048):
        assert (estimates.remaining(sized(side), "cpu") or 0.0) > 0.0
    assert estimates.remaining(sized(2048), "cpu") == pytest.approx(2.0)


def test_start_counts_once_and_only_before_the_first_step() -> None:
    estimates = Estimates()
    estimates.add_start(SMALL, "cpu", 7.0)
    estimates.add_step(SMALL, "cpu", 1.0)
    assert estimates.remaining(SMALL, "cpu") == pytest.approx(7.0 + 8.0)
    assert estimates.remaining(SMALL, "cpu", begun=True) == pytest.approx(8.0)
    assert estimates.remaining(SMALL, "cpu", step=1) == pytest.approx(7.0)


def test_load_is_known_by_model_and_device_once_it_was_measured() -> None:
    estimates = Estimates()
    assert estimates.load("demo", "cuda") == 0.0
    estimates.add_load("demo", "cuda", 5.0)
    assert [estimates.load("demo", "cuda"), estimates.load("demo", "cpu"), estimates.load("other", "cuda")] == [5, 0, 0]


@pytest.mark.parametrize(
    "fields", [{"lora_files": ("a",), "lora_scales": (1.0,)}, {"guidance": 4.0}, {"low_ram": True}]
)
def test_other_kind_of_run_is_measured_apart_and_like_the_nearest_until_then(fields: dict[str, Any]) -> None:
    other = attrs.evolve(LARGE, **fields)
    estimates = Estimates()
    estimates.add_step(LARGE, "cpu", 1.0)
    assert estimates.remaining(other, "cpu") == pytest.approx(4 * 1.0)
    estimates.add_step(other, "cpu", 3.0)
    assert estimates.remaining(other, "cpu") == pytest.approx(4 * 3.0)
    assert estimates.remaining(LARGE, "cpu") == pytest.approx(4 * 1.0)


def test_newer_measurements_weigh_more() -> None:
    estimates = Estimates()
    for _ in range(20):
        estimates.add_step(LARGE, "cpu", 10.0)
    for _ in range(20):
        estimates.add_step(LARGE, "cpu", 1.0)
    assert estimates.remaining(LARGE, "cpu") == pytest.approx(4.0, rel=0.05)


def test_first_measurements_weigh_as_much_as_each_other() -> None:
    estimates = Estimates()
    for seconds in (4.0, 1.0, 1.0):
        estimates.add_step(LARGE, "cpu", seconds)
    assert estimates.remaining(LARGE, "cpu") == pytest.approx(4 * 2.0)


def test_edits_are_measured_apart_and_count_the_steps_that_run() -> None:
    edit = resolved_request(
        prompt="a", model="demo", width=64, height=64, steps=4, seed=0, init_images=("x",), image_strength=0.5
    )
    estimates = Estimates()
    estimates.add_step(SMALL, "cpu", 1.0)
    assert estimates.remaining(edit, "cpu") == pytest.approx(2 * 1.0)
    estimates.add_step(edit, "cpu", 3.0)
    assert estimates.remaining(edit, "cpu") == pytest.approx(2 * 3.0)
    assert estimates.remaining(SMALL, "cpu") == pytest.approx(2 * 4 * 1.0)


def test_each_kind_of_device_has_its_own_times() -> None:
    estimates = Estimates()
    estimates.add_step(SMALL, "cuda", 0.01)
    assert estimates.remaining(SMALL, "cpu") is None
    estimates.add_step(SMALL, "cpu", 1.0)
    assert estimates.remaining(SMALL, "cuda") == pytest.approx(2 * 4 * 0.01)
    assert estimates.remaining(SMALL, "cpu") == pytest.approx(2 * 4 * 1.0)
