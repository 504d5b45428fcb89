"""Text of strangers (out of a file, of a library's error), made fit for a frame, a row, a log line and an error."""

from collections.abc import Mapping

MAX_NAME = 200
"""Characters of one text out of a file: the longest name of a tensor in a released model has 88."""
MAX_SENTENCE = 600
"""Characters of a sentence that such texts are part of."""
MAX_ENTRIES = 32


def printable(text: object, most: int = MAX_NAME) -> str:
    """Return a text cut to so many characters, each of which can be shown.

    A replacement character stands for each control character, line break, lone surrogate and direction mark.

    Args:
        text: what was read, or an exception for its own words.
        most: how many characters are left at most; ``…`` is the last one of a text that was longer.
    """
    whole = str(text)
    cut = whole if len(whole) <= most else f"{whole[: most - 1]}…"
    return cut if cut.isprintable() else "".join(each if each.isprintable() else "\ufffd" for each in cut)


def sentence(text: object) -> str:
    """Return a message that may have texts of strangers in it, cut and printable."""
    return printable(text, MAX_SENTENCE)


def printable_values(texts: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return a mapping whose keys and values are cut and printable, and of so many entries at most."""
    entries = list(texts.items())[:MAX_ENTRIES]
    return {printable(key): None if value is None else printable(value) for key, value in entries}
