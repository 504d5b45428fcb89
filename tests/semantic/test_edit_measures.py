"""The measures of edits, on pairs from the renderer: what was asked is seen, and the layout is kept."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.semantic import edit_pairs
from tests.semantic.edit_cases import EDIT_CASES, EditCase
from training.demo.edit_measures import LEAST_LAYOUT, judge_edit, layout, shuffled_edit_rates
from training.demo.measures import MEASURES, judge

Pixels = npt.NDArray[np.uint8]
_IDS = [f"{number}: {case.instruction}" for number, case in enumerate(EDIT_CASES)]


PAIRS = [(edit_pairs.base(number), edit_pairs.target(number)) for number in range(len(EDIT_CASES))]


def test_there_are_rendered_images_for_every_case() -> None:
    with Image.open(edit_pairs.FILE) as sheet:
        assert sheet.size == (3 * edit_pairs.SIDE, len(EDIT_CASES) * edit_pairs.SIDE)
    assert {check[0] for case in EDIT_CASES for check in case.checks} <= set(MEASURES)


@pytest.mark.parametrize(("case", "pair"), list(zip(EDIT_CASES, PAIRS, strict=True)), ids=_IDS)
def test_what_is_asked_is_seen_afterwards_and_not_before(case: EditCase, pair: tuple[Pixels, Pixels]) -> None:
    before, after = pair
    assert judge_edit(case, before, after).holds, str(judge_edit(case, before, after))
    assert not judge(case.checks, before).holds


def test_other_images_neither_fit_the_layout_nor_show_the_change() -> None:
    layouts, changes = shuffled_edit_rates(EDIT_CASES, [before for before, _ in PAIRS], [after for _, after in PAIRS])
    assert layouts <= 0.2
    assert changes <= 0.15


def test_an_image_has_its_own_layout_and_not_that_of_its_mirror_image() -> None:
    before = PAIRS[0][0]
    assert layout(before, before) == pytest.approx(1.0)
    assert layout(before, before[:, ::-1]) < LEAST_LAYOUT


def test_a_lost_layout_is_named_with_its_value() -> None:
    case, (before, after) = EDIT_CASES[0], PAIRS[0]
    assert str(judge_edit(case, before[::-1], after)).startswith("layout: ")


def test_without_an_image_of_the_same_size_only_the_change_is_judged() -> None:
    case, (_, after) = EDIT_CASES[0], PAIRS[0]
    assert judge_edit(case, None, after).holds
