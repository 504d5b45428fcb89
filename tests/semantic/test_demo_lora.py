"""The example LoRA: a small file with PEFT's keys; nothing changes at scale 0, and the look comes with the scale."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mflux.models.flux2.weights.flux2_lora_mapping import Flux2LoRAMapping

from tests.semantic.check_lora import PROMPTS, SCALES, colorfulness, fades
from tests.semantic.generation import LORA, WEIGHTS, generate, generate_with_lora, open_pipeline
from training.demo.lora_keys import lora_tensors
from training.demo.measures import MEASURES
from training.demo.shape import SHAPE

_PROMPTS, _SCALES = PROMPTS[:3], SCALES[::2]
_SIDE = 128
_SEED = 1
Pixels = npt.NDArray[np.uint8]


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
    assert LORA.stat().st_size < 700_000


@pytest.fixture(scope="module")
def images() -> Mapping[tuple[str, float | None], Pixels]:
    pipeline: Any = open_pipeline(WEIGHTS)
    found: dict[tuple[str, float | None], Pixels] = {
        (prompt, None): next(generate(pipeline, prompt, [_SEED], width=_SIDE, height=_SIDE)) for prompt in _PROMPTS
    }
    for prompt in _PROMPTS:
        for scale in _SCALES:
            found[prompt, scale] = generate_with_lora(pipeline, prompt, scale, _SEED, side=_SIDE)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("prompt", _PROMPTS)
def test_scale_zero_changes_nothing(prompt: str, images: Mapping[tuple[str, float | None], Pixels]) -> None:
    assert np.array_equal(images[prompt, 0.0], images[prompt, None])


@pytest.mark.slow
@pytest.mark.parametrize("prompt", _PROMPTS)
def test_at_scale_one_the_image_is_an_ink_drawing(
    prompt: str, images: Mapping[tuple[str, float | None], Pixels]
) -> None:
    assert MEASURES["ink"](images[prompt, 1.0])[0]
    assert not MEASURES["ink"](images[prompt, 0.0])[0]


@pytest.mark.slow
@pytest.mark.parametrize("prompt", _PROMPTS)
def test_a_higher_scale_has_less_color(prompt: str, images: Mapping[tuple[str, float | None], Pixels]) -> None:
    assert fades([colorfulness(images[prompt, scale]) for scale in _SCALES])
