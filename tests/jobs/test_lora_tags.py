"""LoRA tags in prompts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_api.errors import InvalidParameter
from mflux_api.jobs.lora_tags import remove_tags, without_tags
from mflux_api.jobs.request import GenerateRequest


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a lake", "a lake", {}),
        ("a lake <lora:ink:0.8>", "a lake", {"ink": 0.8}),
        ("<lora:ink> a lake", "a lake", {"ink": 1.0}),
        ("a <lora:ink:0.5>, blue <lora:oil.v2:2>lake", "a, blue lake", {"ink": 0.5, "oil.v2": 2.0}),
        ("a lake <lora:ink:0.3:0.8>", "a lake", {"ink": 0.8}),
        ("a lake <lora:ink:0.3:0.8:4>", "a lake", {"ink": 0.8}),
        ("a lake <lora:ink:unet=0.4>", "a lake", {"ink": 0.4}),
        ("a lake <lora:ink:te=0.1:unet=0.4:dyn=8>", "a lake", {"ink": 0.4}),
        ("a lake <lora:styles/ink: 0 >", "a lake", {"styles/ink": 0.0}),
        ("a < lora:ink:1> b", "a < lora:ink:1> b", {}),
        ("1 < 2 <lora", "1 < 2 <lora", {}),
    ],
)
def test_tags_leave_the_prompt_and_become_loras(prompt: str, text: str, loras: dict[str, float]) -> None:
    request = without_tags(GenerateRequest(prompt=prompt))
    assert request.prompt == text
    assert dict(zip(request.lora_files, request.lora_scales, strict=True)) == loras


@given(st.lists(st.sampled_from([" ", "\t", "\n", "<lora:a>", "<lora:", "b", "é", ",", ">", "<"])).map("".join))
def test_text_without_tags_is_as_one_pattern_would_leave_it(prompt: str) -> None:
    """The pattern itself takes quadratic time on blanks: a second for 10,000 of them."""

    def gap(tag: re.Match[str]) -> str:
        following = prompt[tag.end() : tag.end() + 1]
        return " " if tag.group().startswith((" ", "\t")) and following.isalnum() else ""

    assert remove_tags(prompt) == re.sub(r"[ \t]*<lora:([^<>]*)>", gap, prompt)


def test_tags_come_after_the_fields_whose_missing_scales_are_1() -> None:
    request = without_tags(GenerateRequest(prompt="a <lora:c:0.3>", lora_files=("a", "b"), lora_scales=(0.5,)))
    assert (request.lora_files, request.lora_scales) == (("a", "b", "c"), (0.5, 1.0, 0.3))


@pytest.mark.parametrize(
    "prompt",
    [
        "a <lora:ink:-0.1>",
        "a <lora:ink:2.1>",
        "a <lora:ink:much>",
        "a <lora:ink:nan>",
        "a <lora:ink:inf>",
        "a <lora:>",
        "a <lora::1>",
        "<lora:ink:1>",
        " <lora:ink:1> <lora:oil:1> ",
    ],
)
def test_tag_that_cannot_be_used_is_an_error_without_the_prompt(prompt: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        without_tags(GenerateRequest(prompt=prompt))
    assert caught.value.details["field"] == "prompt"
    assert "ink" not in caught.value.message
