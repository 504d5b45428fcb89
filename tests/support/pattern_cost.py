"""Whether a regular expression takes time in proportion to its text, told from its structure.

The rules are stricter than they have to be: what they let pass is linear, and what is not has to be written otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import attrs

MANY = 300
"""A repeat of at most so many is a constant."""
_CHARACTERS = frozenset(map(chr, range(0x250)))
_CATEGORIES = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_WORD: lambda character: character.isalnum() or character == "_",
}
_NEGATED = {
    sre.CATEGORY_NOT_DIGIT: sre.CATEGORY_DIGIT,
    sre.CATEGORY_NOT_SPACE: sre.CATEGORY_SPACE,
    sre.CATEGORY_NOT_WORD: sre.CATEGORY_WORD,
}
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)
_NO_TEXT = (sre.AT, sre.ASSERT, sre.ASSERT_NOT)


@attrs.frozen
class Token:
    """A part of one way through a pattern."""

    characters: frozenset[str]
    mandatory: bool
    endless: bool = False


def why_not_linear(pattern: str | bytes, flags: int = 0, *, searches: bool) -> str | None:
    """Return why a pattern may take more than linear time; ``None``: it does not.

    Args:
        pattern: the regular expression.
        flags: those that it is compiled with.
        searches: whether it is tried at each place of the text, as ``search`` and ``sub`` do.
    """
    try:
        ways = [list(way) for way in _ways(_parser.parse(pattern, flags))]
    except _Nested:
        return "a repeat of what repeats"
    return next((reason for way in ways if (reason := _why(way, searches)) is not None), None)


class _Nested(Exception):
    """A repeat without end of something whose length varies."""


def _why(way: list[Token], searches: bool) -> str | None:
    for place, token in enumerate(way):
        if not token.endless:
            continue
        fences = [other for other in way[:place] if other.mandatory and not other.characters & token.characters]
        if searches and not fences and any(other.mandatory for other in way[place + 1 :]):
            return "a search that begins with a repeat tries each run of it from each of its places"
        for later in range(place + 1, len(way)):
            between = way[place + 1 : later]
            fenced = any(other.mandatory and not other.characters & token.characters for other in between)
            if way[later].endless and not fenced and way[later].characters & token.characters:
                return "two repeats that share characters can split a run of them anywhere"
    return None


def _ways(parsed: Iterable[Any]) -> Iterator[tuple[Token, ...]]:
    """Each way through a pattern, with one alternative chosen of every branch."""
    for choice in itertools.product(*(list(_choices(operation, value)) for operation, value in parsed)):
        yield tuple(itertools.chain.from_iterable(choice))


def _choices(operation: Any, value: Any) -> Iterator[tuple[Token, ...]]:
    if operation is sre.SUBPATTERN:
        yield from _ways(value[-1])
    elif operation is sre.BRANCH:
        for branch in value[1]:
            yield from _ways(branch)
    elif operation in _NO_TEXT:
        yield ()
    elif operation in _REPEATS:
        yield from _repeats(*value)
    else:
        yield (Token(_characters(operation, value), mandatory=True),)


def _repeats(least: int, most: int, body: Any) -> Iterator[tuple[Token, ...]]:
    if least == 0 and most <= MANY:
        yield ()
    for way in _ways(body):
        if most <= MANY:
            yield way
        elif len(way) == 1 and not way[0].endless:
            yield (attrs.evolve(way[0], mandatory=least > 0, endless=True),)
        else:
            raise _Nested


def _characters(operation: Any, value: Any) -> frozenset[str]:
    if operation is sre.LITERAL:
        return frozenset({chr(value)})
    if operation is sre.NOT_LITERAL:
        return _CHARACTERS - {chr(value)}
    if operation is sre.ANY:
        return _CHARACTERS
    if operation is sre.IN:
        negated = value[0][0] is sre.NEGATE
        found = frozenset[str]().union(*(_characters(*item) for item in value[negated:]))
        return _CHARACTERS - found if negated else found
    if operation is sre.RANGE:
        return frozenset(map(chr, range(value[0], value[1] + 1)))
    if operation is sre.CATEGORY:
        test = _CATEGORIES[_NEGATED.get(value, value)]
        found = frozenset(filter(test, _CHARACTERS))
        return _CHARACTERS - found if value in _NEGATED else found
    raise AssertionError(f"{operation} has no rule here")
