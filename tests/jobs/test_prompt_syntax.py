"""A1111's syntax in a prompt is told, whatever it weighs; ordinary text with colons and brackets is not."""

import time

import pytest

from mflux_api.jobs.prompt_syntax import explain


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("a (red:1.3) house", "(word:1.2)"),
        ("a (red:2) house", "(word:1.2)"),
        ("a (red: 1.234 ) house", "(word:1.2)"),
        ("a (red:.5) house", "(word:1.2)"),
        ("a (red:-1) house", "(word:1.2)"),
        ("a ((red)) house", "((word))"),
        ("a [[red]] house", "[[word]]"),
        ("a [cat:dog:0.5]", "[from:to:when]"),
        ("a [cat:dog:10]", "[from:to:when]"),
        ("a [cat::5]", "[from:to:when]"),
        ("a [cat:0.5]", "[from:to:when]"),
        ("a [cat|dog]", "[one|other]"),
        ("a cat AND a dog", "AND"),
        ("a cat, BREAK a dog", "BREAK"),
        ("a (red:1.1) cat AND [a|b]", "(word:1.2), [one|other], AND"),
    ],
)
def test_syntax_is_named(prompt: str, shown: str) -> None:
    assert explain("prompt", prompt) == (f"'prompt' has A1111's {shown}, without effect: the model reads it as text",)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "(at 10:30) 16:9, (16:9)",
        "(x: 1), (x:1), (x:1.0)",
        "a (red) house [see below]",
        "Genesis (1:3)",
        'a sign that says "ROCK AND ROLL"',
        'a cup with the words "COFFEE BREAK"',
        '{"camera": {"lens": "50mm", "angles": [1, 2.5]}, "colors": ["#ff0000"], "box": [[0.1, 0.5]]}',
        "f(x) = (x + 1) * [y]",
    ],
)
def test_ordinary_text_is_not_taken_for_it(prompt: str) -> None:
    assert explain("prompt", prompt) == ()


@pytest.mark.parametrize("piece", ["(", "[", "((", "[[", ":", "a:", "::", "[:", "[|", "(a:1", " ", "a AND ", ":1.0"])
def test_prompt_of_pieces_takes_no_time(piece: str) -> None:
    prompt = (piece * 10_000)[:10_000]
    begun = time.thread_time()
    explain("prompt", prompt)
    assert time.thread_time() - begun < 0.2
