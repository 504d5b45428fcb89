"""The measures themselves, on handmade images."""

import numpy as np
import numpy.typing as npt
import pytest

from tests.semantic.prompts import CASES
from training.demo.measures import MEASURES, judge, shuffled_rates

Pixels = npt.NDArray[np.uint8]


def flat(red: int, green: int, blue: int) -> Pixels:
    return np.full((128, 128, 3), (red, green, blue), dtype=np.uint8)


def with_square(image: Pixels, column: int, row: int, color: tuple[int, int, int], size: int = 24) -> Pixels:
    image[row : row + size, column : column + size] = color
    return image


def test_every_case_uses_known_measures_and_there_are_enough() -> None:
    assert len({case.prompt for case in CASES}) >= 40
    assert {check[0] for case in CASES for check in case.checks} <= set(MEASURES)


def test_night_is_dark_and_day_is_not() -> None:
    assert judge([("dark",)], flat(10, 14, 40)).holds
    assert not judge([("dark",)], flat(120, 160, 220)).holds


@pytest.mark.parametrize(("column", "side"), [(14, "left"), (52, "center"), (90, "right")])
def test_the_moon_is_found_on_its_side(column: int, side: str) -> None:
    night = with_square(flat(10, 14, 40), column, 16, (250, 248, 230))
    assert [name for name in ("left", "center", "right") if judge([("light_at", name)], night).holds] == [side]


@pytest.mark.parametrize(("column", "side"), [(10, "left"), (52, "center"), (92, "right")])
def test_a_colored_thing_is_found_on_its_side(column: int, side: str) -> None:
    day = with_square(flat(120, 180, 235), column, 80, (210, 30, 25))
    held = [name for name in ("left", "center", "right") if judge([("colored_thing", "red", name)], day).holds]
    assert held == [side]
    assert not judge([("colored_thing", "green", side)], day).holds


def test_a_color_everywhere_is_not_a_thing_on_a_side() -> None:
    assert not judge([("colored_thing", "red", "left")], flat(210, 30, 25)).holds


def test_land_is_measured_below_the_horizon() -> None:
    image = flat(120, 180, 235)
    image[64:] = (200, 40, 30)
    assert judge([("colored_land", "red")], image).holds
    assert not judge([("colored_land", "red")], image[::-1].copy()).holds


def test_failures_name_the_measure_and_its_value() -> None:
    assert str(judge([("dark",)], flat(255, 255, 255))) == "dark: 1.00"


def test_shuffling_compares_with_other_prompts_only() -> None:
    cases = [CASES[2], CASES[5]] * 8
    images = [flat(10, 14, 40), flat(120, 160, 220)] * 8
    rate, each = shuffled_rates(cases, images)
    assert rate == 0.0
    assert each["dark"] == 0.0
