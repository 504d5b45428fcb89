"""The example LoRA: a small file of PEFT's keys, nothing at scale 0, the ink look at 1, and between it in between."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mflux.models.flux2.weights.flux2_lora_mapping import Flux2LoRAMapping

from tests.semantic.painting import LORA, WEIGHTS, can_edit, is_trained, open_pipeline, paint, paint_with_lora
from training.demo.lora_keys import lora_tensors
from training.demo.measures import MEASURES
from training.demo.shape import SHAPE

_PROMPTS = ("a beautiful sunset over mountains", "a red house on the left", "a castle in the hills")
_SCALES = (0.0, 0.5, 1.0)
_SIDE = 128
_SEED = 1
Pixels = npt.NDArray[np.uint8]

needs_model = [
    pytest.mark.skipif(not (is_trained() and LORA.is_file()), reason="no trained demo checkpoint, or no loras/"),
    pytest.mark.skipif(not can_edit(), reason="the engine takes no LoRA"),
]


def _patterns() -> set[str]:
    found: set[str] = set()
    for target in Flux2LoRAMapping.get_mapping():
        for pattern in (*target.possible_down_patterns, *target.possible_up_patterns):
            blocks = SHAPE.single_blocks if "single" in pattern else SHAPE.double_blocks
            found |= {pattern.replace("{block}", str(block)) for block in range(blocks)}
    return found


def test_mflux_knows_every_key_of_the_file() -> None:
    assert set(lora_tensors(SHAPE)) <= _patterns()


def test_the_file_is_well_under_a_megabyte() -> None:
    assert sum(rows * columns for rows, columns in lora_tensors(SHAPE).values()) * 2 < 700_000


@pytest.fixture(scope="module")
def pictures() -> Mapping[tuple[str, float | None], Pixels]:
    pipeline: Any = open_pipeline(WEIGHTS)
    found: dict[tuple[str, float | None], Pixels] = {
        (prompt, None): next(paint(pipeline, prompt, [_SEED], width=_SIDE, height=_SIDE)) for prompt in _PROMPTS
    }
    for prompt in _PROMPTS:
        for scale in _SCALES:
            found[prompt, scale] = paint_with_lora(pipeline, prompt, scale, _SEED, side=_SIDE)
    return found


class TestPictures:
    pytestmark = needs_model

    @pytest.mark.parametrize("prompt", _PROMPTS)
    def test_at_zero_it_is_no_lora(self, prompt: str, pictures: Mapping[tuple[str, float | None], Pixels]) -> None:
        assert np.array_equal(pictures[prompt, 0.0], pictures[prompt, None])

    @pytest.mark.parametrize("prompt", _PROMPTS)
    def test_at_one_it_is_ink(self, prompt: str, pictures: Mapping[tuple[str, float | None], Pixels]) -> None:
        assert MEASURES["ink"](pictures[prompt, 1.0])[0]
        assert not MEASURES["ink"](pictures[prompt, 0.0])[0]

    @pytest.mark.parametrize("prompt", _PROMPTS)
    def test_a_higher_scale_has_less_color(
        self, prompt: str, pictures: Mapping[tuple[str, float | None], Pixels]
    ) -> None:
        colors = [float(np.ptp(pictures[prompt, scale].astype(int), axis=2).mean()) for scale in _SCALES]
        assert colors == sorted(colors, reverse=True)
