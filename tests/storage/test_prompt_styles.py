"""A1111's styles.csv: read when it changes, within limits, and what its texts make of a prompt."""

import logging
from pathlib import Path

import pytest

from mflux_api.storage.prompt_styles import MAX_BYTES, PromptStyle, PromptStyles, PromptTooLong, apply_style

CSV = 'name,prompt,negative_prompt\nInk,"{prompt}, ink, black and white",colour\nPlain,on white,\n,nothing,\n'


def test_styles_are_those_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "styles.csv"
    styles = PromptStyles(path)
    assert styles.read() == ()
    path.write_text("\ufeff" + CSV, "utf-8")
    assert [style.name for style in styles.read()] == ["Ink", "Plain"]
    assert styles.read()[0] == PromptStyle(
        name="Ink", prompt="{prompt}, ink, black and white", negative_prompt="colour"
    )
    path.write_text("name,text\nOld,in oil\n", "utf-8")
    assert styles.read() == (PromptStyle(name="Old", prompt="in oil"),)
    path.unlink()
    assert styles.read() == ()
    assert PromptStyles(None).read() == ()


@pytest.mark.parametrize(
    "data", [b"x" * (MAX_BYTES + 1), b"name,prompt\n" + b'a,"' + b"x" * 200_000, b"name,prompt\n\0,\0"]
)
def test_file_that_cannot_be_used_is_told_once_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "styles.csv"
    path.write_bytes(data)
    styles = PromptStyles(path)
    assert [style.name for style in (*styles.read(), *styles.read())] in ([], ["\0", "\0"])
    assert caplog.text.count("styles_file") <= 1


@pytest.mark.parametrize(
    ("text", "style", "result"),
    [
        ("a cat", "{prompt}, ink", "a cat, ink"),
        ("a cat", "in oil", "a cat, in oil"),
        ("", "in oil", "in oil"),
        ("a cat", "", "a cat"),
        ("a {prompt}", "b {prompt} c", "b a {prompt} c"),
    ],
)
def test_style_stands_around_a_prompt_or_behind_it(text: str, style: str, result: str) -> None:
    assert apply_style(text, style, most=100) == result


@pytest.mark.parametrize("style", ["{prompt}{prompt}", "{prompt}, far", "far"])
def test_style_never_makes_a_prompt_longer_than_it_may_be(style: str) -> None:
    length = len(apply_style("a cat", style, most=10))
    assert length == 10
    with pytest.raises(PromptTooLong):
        apply_style("a cat", style, most=length - 1)
