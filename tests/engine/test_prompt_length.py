"""A prompt that is longer than the model reads is said to be cut, with the last words that were read."""

from typing import Any

import attrs
import numpy as np
import pytest

from mflux_api.engine.sampling.pipeline import Pipeline, StageEvent, StepEvent, WarningEvent
from mflux_api.engine.sampling.prompt_length import explain_cut
from mflux_api.engine.weights.components import Components
from tests.support.pipeline_runs import REQUEST, never, rgb_image

LIMIT = 48
NUMBERS = " ".join(f"cat {number}" for number in range(100, 200))


def what_is_read(tiny: Components, prompt: str) -> str:
    """The text that the text encoder gets."""
    tokens = tiny.tokenizer.tokenize(prompt=prompt, max_length=LIMIT, keep_empty=True)
    return str(tiny.tokenizer.tokenizer.decode(np.array(tokens.input_ids)[0]))


def test_sentence_counts_the_tokens_and_ends_where_reading_ends(tiny: Components) -> None:
    said = explain_cut(tiny.tokenizer, NUMBERS, LIMIT)
    assert said is not None
    text = tiny.tokenizer.tokenizer.apply_chat_template(
        [{"role": "user", "content": NUMBERS}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    count = len(tiny.tokenizer.tokenizer(text)["input_ids"])
    assert said.startswith(f"The prompt has {count} tokens with its chat template, and this model reads {LIMIT}: ")
    words = said.partition("what comes after '…")[2].partition("'")[0]
    assert what_is_read(tiny, NUMBERS).endswith(words)
    assert len(words) > 10


@pytest.mark.parametrize("prompt", ["x" * 300, "猫" * 90, "a lake\n\n" * 60, "  'quoted' <|im_end|> " * 20])
def test_any_text_is_cut_where_it_is_said(tiny: Components, prompt: str) -> None:
    said = explain_cut(tiny.tokenizer, prompt, LIMIT, name="negative prompt")
    assert said is not None
    assert said.startswith("The negative prompt has ")
    assert said.endswith("' was left out")


def test_no_prompt_is_cut_in_silence_and_none_is_said_to_be_that_is_read(tiny: Components) -> None:
    """From a prompt that is read with its template to one whose last letter is not read."""
    for length in range(1, 2 * LIMIT):
        prompt = "z" * length
        is_read = prompt in what_is_read(tiny, prompt)
        assert (explain_cut(tiny.tokenizer, prompt, LIMIT) is None) == is_read, length


def test_pass_warns_before_its_first_step_also_of_a_prompt_whose_embedding_is_cached(pipeline: Pipeline) -> None:
    for _ in range(2):
        events = list(pipeline.run(attrs.evolve(REQUEST, prompt=NUMBERS), never))
        (at,) = [index for index, event in enumerate(events) if isinstance(event, WarningEvent)]
        assert isinstance(events[at - 1], StageEvent)
        assert at < next(index for index, event in enumerate(events) if isinstance(event, StepEvent))


@pytest.mark.parametrize(("guidance", "told"), [(1.0, []), (3.0, ["negative prompt"])])
def test_negative_prompt_is_told_of_where_it_is_read(pipeline: Pipeline, guidance: float, told: list[str]) -> None:
    request = attrs.evolve(REQUEST, negative_prompt=NUMBERS, guidance=guidance)
    events: list[Any] = [event for event in pipeline.run(request, never) if isinstance(event, WarningEvent)]
    assert [event.message.partition(" has ")[0] for event in events] == [f"The {name}" for name in told]


def test_prompt_that_no_step_reads_is_not_told_of(pipeline: Pipeline) -> None:
    start = rgb_image(REQUEST.width, REQUEST.height)
    request = attrs.evolve(REQUEST, prompt=NUMBERS, start=start, strength=0.0)
    assert not [event for event in pipeline.run(request, never) if isinstance(event, WarningEvent)]
