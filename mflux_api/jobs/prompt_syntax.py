"""A1111's syntax in a prompt that its model reads as text: weights, schedules, alternatives and the words for parts."""

import re
from typing import Final

# Each pattern looks at bounded stretches: a prompt of 10,000 characters takes 5 ms at most (on one core of an EPYC).
_NUMBER: Final = r"(?:(?:[^\W\d]\s{0,4}:|::)\s{0,4}[+-]?\d{1,3}|:\s{0,4}[+-]?\d{0,3}\.\d{1,8})\s{0,4}"
"""A number behind a colon. A whole one counts behind a letter, or nothing, alone: 16:9 and 10:30 are no weights."""

_PATTERNS: Final = (
    ("(word:1.2)", re.compile(rf"{_NUMBER}\)")),
    ("((word))", re.compile(r"\(\([^\W\d][^()]{0,200}\)\)")),
    ("[[word]]", re.compile(r"\[\[[^\W\d][^\[\]]{0,200}\]\]")),
    ("[from:to:when]", re.compile(rf"\[[^\[\]]{{0,200}}{_NUMBER}\]")),
    ("[one|other]", re.compile(r"\[[^\[\]|]{0,200}\|[^\[\]]{0,200}\]")),
    ("AND", re.compile(r"[a-z0-9,.)]\s{1,4}AND\s{1,4}[a-z(\[]")),
    ("BREAK", re.compile(r"[a-z0-9,.)]\s{1,4}BREAK[\s,]{1,4}[a-z(\[]")),
)
"""Capitals between capitals are more often a text to be written in the image."""
_NEUTRAL: Final = re.compile(r":\s{0,4}\+?1(?:\.0{0,8})?\s{0,4}\)")


def explain(field: str, prompt: str) -> tuple[str, ...]:
    """Return what is said of A1111's syntax in a prompt; weights of 1 ask for nothing.

    Args:
        field: what the client calls the prompt.
        prompt: without its LoRA tags.
    """
    text = _NEUTRAL.sub(")", prompt)
    found = [shown for shown, pattern in _PATTERNS if pattern.search(text)]
    if not found:
        return ()
    return (f"'{field}' has A1111's {', '.join(found)}, without effect: the model reads it as text",)
