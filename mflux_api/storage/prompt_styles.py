"""Prompt styles in A1111's ``styles.csv``: texts under names that calls add to their prompts."""

import csv
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import attrs

from mflux_api.jobs.request import MAX_PROMPT

MAX_BYTES = 2**20
MAX_STYLES = 1000
_PLACE = "{prompt}"
_BETWEEN = ", "

logger = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class PromptStyle:
    """One style; a text with ``{prompt}`` in it is put around the prompt, another one behind it."""

    name: str
    prompt: str = attrs.field(default="", repr=False)
    negative_prompt: str = attrs.field(default="", repr=False)


class PromptStyles:
    """The styles of one file, which is read again when it has changed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._styles: tuple[PromptStyle, ...] = ()

    def read(self) -> tuple[PromptStyle, ...]:
        """Return the styles that the file has now; none where there is no file. Call it in a thread."""
        if self._path is None:
            return ()
        try:
            status = self._path.stat()
            seen = status.st_mtime_ns, status.st_size
            if seen != self._seen:
                # Remembered first: a file that cannot be used is told once, and not with every call.
                self._seen, self._styles = seen, ()
                self._styles = _parse(self._path)
        except FileNotFoundError:
            self._seen, self._styles = None, ()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            logger.warning("generation.styles_file cannot be used: %s", reason)
        return self._styles


class PromptTooLong(ValueError):
    """A style makes a prompt longer than it may be."""


def apply_style(text: str, style: str, *, most: int) -> str:
    """Return a prompt, or a negative one, with a style's text; as A1111 does it.

    Args:
        text: the prompt.
        style: the style's text for it.
        most: how many characters the result may have; it is counted first, as each style may double the prompt.

    Raises:
        PromptTooLong: it would have more.
    """
    style = style.strip()
    places = style.count(_PLACE)
    if len(style) + places * (len(text) - len(_PLACE)) + (0 if places else len(text) + len(_BETWEEN)) > most:
        raise PromptTooLong
    if places:
        return style.replace(_PLACE, text)
    return _BETWEEN.join(filter(None, (text.strip(), style)))


def _parse(path: Path) -> tuple[PromptStyle, ...]:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is over {MAX_BYTES // 1024} KB")
    styles = {style.name: style for style in _rows(data.decode("utf-8-sig", "replace"))}
    if len(styles) > MAX_STYLES:
        raise ValueError(f"it has more than {MAX_STYLES} styles")
    return tuple(styles.values())


def _rows(text: str) -> Iterator[PromptStyle]:
    try:
        for row in csv.DictReader(io.StringIO(text, newline="")):
            name = (row.get("name") or "").strip()
            # Older files call the prompt "text".
            prompt, negative = row.get("prompt") or row.get("text") or "", row.get("negative_prompt") or ""
            if name and len(name) <= 300 and len(prompt) <= MAX_PROMPT and len(negative) <= MAX_PROMPT:
                yield PromptStyle(name=name, prompt=prompt, negative_prompt=negative)
    except csv.Error as error:
        raise ValueError(f"it is not CSV: {error}") from None
