"""The demo model paints what the prompt says: a few of the prompts of ``tests.semantic.check``."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.semantic.generation import WEIGHTS, open_pipeline, paint
from tests.semantic.prompts import CASES, Case
from training.demo.measures import judge, shuffled_rates

_SIZE = 128
_SEED = 1
_FAST = tuple(case for case in CASES if case.fast)


@pytest.fixture(scope="module")
def pictures() -> dict[str, npt.NDArray[np.uint8]]:
    pipeline: Any = open_pipeline(WEIGHTS)
    return {case.prompt: next(paint(pipeline, case.prompt, [_SEED], width=_SIZE, height=_SIZE)) for case in _FAST}


def test_most_pictures_show_what_their_prompt_says(pictures: dict[str, npt.NDArray[np.uint8]]) -> None:
    verdicts = {case.prompt: judge(case.checks, pictures[case.prompt]) for case in _FAST}
    failures = {prompt: str(verdict) for prompt, verdict in verdicts.items() if not verdict.holds}
    assert len(failures) <= len(_FAST) // 10, failures


def test_the_same_measures_fail_on_other_prompts_pictures(pictures: dict[str, npt.NDArray[np.uint8]]) -> None:
    rate, _ = shuffled_rates(_FAST, [pictures[case.prompt] for case in _FAST])
    assert rate <= 0.6


@pytest.mark.parametrize("case", _FAST, ids=lambda case: case.prompt)
def test_a_picture_is_neither_flat_nor_noise(case: Case, pictures: dict[str, npt.NDArray[np.uint8]]) -> None:
    light = pictures[case.prompt].astype(float).mean(-1)
    assert light.std() > 6
    assert np.abs(np.diff(light, axis=1)).mean() < 24
