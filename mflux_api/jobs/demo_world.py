"""Which words of a prompt mean nothing to the embedded model, whose world is small."""

import re
from functools import cache
from importlib.resources import files
from typing import Final

import mflux_api.catalog
from mflux_api.catalog import Model
from mflux_api.ipc.printable import printable

# Without the s of a genitive, without what is short for two words, and without what is not wished.
_WORD = re.compile(r"(?<!['\u2019\w])(?<!\bno )(?<!\bwithout )[^\W\d_]+(?!['\u2019](?!s\b)\w|\w)")
# Of a word: enough to know it by.
_MOST_LETTERS: Final = 24
_MOST_NAMED: Final = 5


def explain(model: Model, prompt: str) -> tuple[str, ...]:
    """Return what is said of a prompt with words that the model never learnt; nothing of other models.

    Args:
        model: what it is for.
        prompt: any text.
    """
    if not model.embedded:
        return ()
    unknown = dict.fromkeys(word for word in map(str.lower, _WORD.findall(prompt)) if not _is_known(word))
    if not unknown:
        return ()
    named = [f"'{printable(word, _MOST_LETTERS)}'" for word in list(unknown)[:_MOST_NAMED]]
    more = len(unknown) - len(named)
    listed = ", ".join(named) + (f" and {more} more" if more else "")
    return (
        f"'{model.alias}' does not know {listed}: it is a miniature that draws landscapes, cities and space, "
        "in English; see docs/models.md",
    )


def _is_known(word: str) -> bool:
    if len(word) == 1 and word.isascii():
        return True
    words = _words()
    if word in words or f"{word}s" in words or (word.endswith("s") and word[:-1] in words):
        return True
    # It reads "moonlit" as "moon" and "lit".
    return any(word[:cut] in words and word[cut:] in words for cut in range(3, len(word) - 2))


@cache
def _words() -> frozenset[str]:
    """Return what ``training.demo.vocabulary`` wrote: the words of the captions, and those between them."""
    return frozenset((files(mflux_api.catalog) / "demo_words.txt").read_text("utf-8").split())
