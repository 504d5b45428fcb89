"""How long jobs take, learned from measurements."""

import pytest

from mflux_api.jobs.estimates import Estimates
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


def test_unknown_size_is_scaled_from_the_nearest_by_pixels() -> None:
    estimates = Estimates()
    estimates.add_step(SMALL, "cpu", 1.0)
    assert estimates.remaining(LARGE, "cpu") == pytest.approx(4 * 4.0)


def test_newer_measurements_weigh_more() -> None:
    estimates = Estimates()
    for _ in range(20):
        estimates.add_step(LARGE, "cpu", 10.0)
    for _ in range(20):
        estimates.add_step(LARGE, "cpu", 1.0)
    assert estimates.remaining(LARGE, "cpu") == pytest.approx(4.0, rel=0.05)


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
