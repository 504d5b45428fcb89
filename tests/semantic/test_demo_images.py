"""The demo model generates what the prompt says: a few of the prompts of ``tests.semantic.check``."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.semantic.generation import WEIGHTS, generate, open_pipeline
from tests.semantic.prompts import CASES, Case
from training.demo.measures import judge, shuffled_rates

pytestmark = pytest.mark.slow

_SIZE = 128
_SEED = 1
_FAST = tuple(case for case in CASES if case.fast)


@pytest.fixture(scope="module")
def images() -> dict[str, npt.NDArray[np.uint8]]:
    pipeline: Any = open_pipeline(WEIGHTS)
    return {case.prompt: next(generate(pipeline, case.prompt, [_SEED], width=_SIZE, height=_SIZE)) for case in _FAST}


def test_most_images_show_what_their_prompt_says(images: dict[str, npt.NDArray[np.uint8]]) -> None:
    verdicts = {case.prompt: judge(case.checks, images[case.prompt]) for case in _FAST}
    failures = {prompt: str(verdict) for prompt, verdict in verdicts.items() if not verdict.holds}
    assert len(failures) <= len(_FAST) // 10, failures


def test_the_same_measures_fail_on_other_prompts_images(images: dict[str, npt.NDArray[np.uint8]]) -> None:
    rate, _ = shuffled_rates(_FAST, [images[case.prompt] for case in _FAST])
    assert rate <= 0.6


@pytest.mark.parametrize("case", _FAST, ids=lambda case: case.prompt)
def test_an_image_is_neither_flat_nor_noise(case: Case, images: dict[str, npt.NDArray[np.uint8]]) -> None:
    light = images[case.prompt].astype(float).mean(-1)
    assert light.std() > 6
    assert np.abs(np.diff(light, axis=1)).mean() < 24
