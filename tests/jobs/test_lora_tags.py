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
        ("a lake <lora:slider:-4>, <lora:other:4.0>", "a lake,", {"slider": -4.0, "other": 4.0}),
        ("a lake <lyco:ink:-0.5>", "a lake", {"ink": -0.5}),
        ("a <LoRA:ink:0.5> lake", "a lake", {"ink": 0.5}),
        ("a lake <lora:ink:>", "a lake", {"ink": 1.0}),
        ("a lake <lora:ink:te=0.1>", "a lake", {"ink": 0.1}),
        ("a lake <lora:ink:0.8:te=0.1>", "a lake", {"ink": 0.1}),
        ("a lake <lora:ink:0.8:OUTALL>", "a lake", {"ink": 0.8}),
        ("a lake <lora:ink:0.8:lbw=1,0,1:start=4>", "a lake", {"ink": 0.8}),
        ("a <hypernet:anime:0.5> lake <embedding:blur>", "a lake", {}),
        ("a <https://example.com> lake", "a <https://example.com> lake", {}),
        ("a < lora:ink:1> b", "a < lora:ink:1> b", {}),
        ("1 < 2 <lora", "1 < 2 <lora", {}),
    ],
)
def test_tags_leave_the_prompt_and_become_loras(prompt: str, text: str, loras: dict[str, float]) -> None:
    request = without_tags(GenerateRequest(prompt=prompt)).request
    assert request.prompt == text
    assert dict(zip(request.lora_files, request.lora_scales, strict=True)) == loras


@given(
    st.lists(
        st.sampled_from(
            [" ", "\t", "\n", "<lora:a>", "<lyco:a>", "<hypernet:a>", "<x:a>", "<lora:", "b", "é", ",", ">", "<"]
        )
    ).map("".join)
)
def test_text_without_tags_is_as_one_pattern_would_leave_it(prompt: str) -> None:
    """The pattern itself takes quadratic time on blanks: a second for 10,000 of them."""

    def gap(tag: re.Match[str]) -> str:
        following = prompt[tag.end() : tag.end() + 1]
        return " " if tag.group().startswith((" ", "\t")) and following.isalnum() else ""

    assert remove_tags(prompt) == re.sub(r"[ \t]*<(?:lora|lyco|hypernet):([^<>]*)>", gap, prompt)


def test_tags_come_after_the_fields_whose_missing_scales_are_1() -> None:
    request = without_tags(GenerateRequest(prompt="a <lora:c:0.3>", lora_files=("a", "b"), lora_scales=(0.5,))).request
    assert (request.lora_files, request.lora_scales) == (("a", "b", "c"), (0.5, 1.0, 0.3))


@pytest.mark.parametrize(
    "prompt",
    [
        "a <lora:ink:-4.1>",
        "a <lora:ink:4.1>",
        "a <lora:ink:much>",
        "a <lora:ink:nan>",
        "a <lora:ink:inf>",
        "a <lyco:ink:much>",
        "a <lora:ink:te=much:unet=1>",
        "a <lora:ink:1:unet=inf>",
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


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a lake <lora:ink:0.8>", []),
        ("a lake <lora:ink:0.8:0.8>", []),
        ("a lake <lora:ink:te=0.8:unet=0.8> <lora:ink:te=0.8>", []),
        (
            "a lake <lora:ink:0.3:0.8>",
            ["'<lora:ink:0.3:0.8>': its scale 0.3 for the text encoder has no effect; 0.8 counts"],
        ),
        ("a lake <lora:ink:0:0.8>", ["its scale 0 for the text encoder has no effect; 0.8 counts"]),
        ("a lake <lora:ink:te=0.1:unet=1>", ["its scale 0.1 for the text encoder has no effect; 1 counts"]),
        ("a lake <lora:ink:unet=0.4>", ["its scale 1 for the text encoder has no effect; 0.4 counts"]),
        ("a lake <lora:ink:1:1:8>", ["its part '8' has no effect"]),
        ("a lake <lora:ink:1:dyn=8>", ["its part 'dyn=' has no effect"]),
        ("a lake <lyco:ink:1:OUTALL:start=4>", ["its part 'OUTALL' has no", "its part 'start=' has no"]),
        ("a lake <hypernet:anime:0.5>", ["'<hypernet:anime:0.5>' has no effect and was left out of the prompt"]),
        ("a lake <embedding:blur>", ["'<embedding:blur>' has no effect and was left out"]),
        ("a lake <segment:face>", ["'<segment:face>' was taken for text"]),
        ("a lake < lora:ink:1>", ["'< lora:…' was taken for text"]),
        ("a lake <lora:ink:1", ["'<lora:…' was taken for text"]),
        ("a lake <lora:ink<lora:oil:1>", ["'<lora:…' was taken for text"]),
        ("a lake <lora ink:1>", ["'<lora…' was taken for text: write it as <lora:name:0.8>"]),
        ("a lake <lora=ink:1>", ["'<lora=…' was taken for text"]),
        ("a lake &lt;lora:ink:1&gt;", ["'&lt;lora:…' was taken for text"]),
        ("a lake \uff1clora\uff1aink\uff1a1\uff1e", ["'\uff1clora\uff1a…' was taken for text"]),
        ("a lake lora:ink:0.8 (lyco:styles/oil v2:-1)", ["'lora:ink:0…' was taken", "'lyco:styles/oil v2:-1…' was"]),
        ("a lake withLora(ink, 0.8)", ["'withLora(…' was taken for text"]),
        ("1 < 2 and 3 > 2: a <b> lake", []),
        ("a lora of a lake: 2 lorae, lora: 3, R&lt;D", []),
    ],
)
def test_no_part_of_a_tag_is_dropped_in_silence(prompt: str, said: list[str]) -> None:
    """A1111's users write other networks and scales for the text encoder, which have no effect here."""
    warnings = without_tags(GenerateRequest(prompt=prompt)).warnings
    assert len(warnings) == len(said)
    assert all(part in warning for part, warning in zip(said, warnings, strict=True))


def test_tag_in_the_negative_prompt_is_said_to_have_no_effect() -> None:
    untagged = without_tags(GenerateRequest(prompt="a lake", negative_prompt="fog <lora:ink:1>"))
    assert (untagged.request.negative_prompt, untagged.request.lora_files) == ("fog", ())
    assert ["'negative_prompt'" in warning for warning in untagged.warnings] == [True]
    strange = without_tags(GenerateRequest(prompt="a lake", negative_prompt="fog <segment:face> <lora:ink"))
    assert strange.request.negative_prompt == "fog <segment:face> <lora:ink"
    assert ["taken for text" in warning for warning in strange.warnings] == [True, True]


def test_warnings_about_tags_are_few_short_and_printable() -> None:
    tags = "".join(f"<hypernet:{n}>" for n in range(100)) + f"<vae:{'a' * 5000}\x1b[31m>"
    warnings = without_tags(GenerateRequest(prompt=f"a lake {tags}")).warnings
    assert len(warnings) == 9
    assert warnings[-1] == "93 more tags of the prompt have no effect, or not all of it"
    assert all(warning.isprintable() and len(warning) < 200 for warning in warnings)
