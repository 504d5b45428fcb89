"""What is said of a prompt that the embedded model has no words for."""

import re
from pathlib import Path

import pytest

from mflux_api.catalog import Model
from mflux_api.catalog.lookup import find_model
from mflux_api.config import Settings
from mflux_api.jobs import demo_world
from tests.semantic.edit_cases import EDIT_CASES
from tests.semantic.prompts import CASES
from training.demo.vocabulary import FILE, vocabulary

ROOT = Path(__file__).parents[2]


def _model(alias: str) -> Model:
    return find_model(alias, Settings().catalog())


DEMO = _model("demo")


def test_words_are_those_that_the_model_was_trained_on() -> None:
    assert FILE.read_text("utf-8").split() == vocabulary(), "run: uv run --group dev python -m training.demo.vocabulary"


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("an astronaut riding a horse on the moon", "'astronaut', 'riding', 'horse'"),
        ("A CAT's house, a cat", "'cat'"),
        ("猫", "'猫'"),
        ("dog cat fox cow owl elk hen", "'dog', 'cat', 'fox', 'cow', 'owl' and 2 more"),
        ("z" * 300, f"'{'z' * 23}…'"),
    ],
)
def test_unknown_words_are_named_once(prompt: str, unknown: str) -> None:
    (warning,) = demo_world.explain(DEMO, prompt)
    assert warning.startswith(f"'demo' does not know {unknown}: it is a miniature that draws landscapes")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "A Beautiful SUNSET over the mountains' peaks, 4k, masterpiece",
        "don't let it rain",
        "a moonlit lake without people",
        "snow-covered houses, (golden hour:1.2)",
        *re.findall(r'generate "([^"]+)" --model demo', (ROOT / "README.md").read_text("utf-8")),
        *(case.prompt for case in CASES),
        *(case.instruction for case in EDIT_CASES),
    ],
)
def test_nothing_is_said_of_its_own_world(prompt: str) -> None:
    assert demo_world.explain(DEMO, prompt) == ()


def test_other_models_are_not_meant() -> None:
    assert demo_world.explain(_model("flux2-klein-4b"), "an astronaut riding a horse") == ()
    assert demo_world.explain(_model("demo-base"), "an astronaut")[0].startswith("'demo-base' does not know")
