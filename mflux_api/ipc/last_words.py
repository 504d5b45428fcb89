"""The last thing that a child printed before it died, as one clause that any client may read."""

import re
from collections import deque

from mflux_api.ipc.printable import MAX_NAME, printable

_LINES = 40
"""Lines that are kept of what a child printed: the end of a traceback of a library that loads a library."""
_LINE = 600
"""Characters that are kept of each."""
_TRACEBACK = "Traceback (most recent call last):"
_NATIVE = re.compile(
    r"(libc\+\+abi|terminate called|what\(\):|Fatal Python error|fatal error|\[METAL\]|\[metal|CUDA error|cuda|malloc|"
    r"free\(\)|double free|corrupted|dyld)",
    re.IGNORECASE,
)
"""How a line begins that a runtime prints when it ends a process; no prompt is in those."""
_NATIVE_LINES = 3
"""How far before the end such a line may stand."""
_NOISE = ("note:", "[transformers]")
"""How lines begin that say nothing of an end: Rust's hint for its programmers, and what every healthy engine prints."""
_TYPE = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")
_WORD = re.compile(r"[^\s'\"<>]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+\Z")
_QUOTED_PATH = re.compile(r"'[~/][^'\n]*'|\"[~/][^\"\n]*\"")
_PATH_CHARACTERS = re.compile(r"[^\s'\":,;()<>]+")
_TOKEN = re.compile(r"\bhf_\w+")


class LastWords:
    """What a child printed of late, and which line of it says why it died."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES)

    def note(self, line: str) -> None:
        """Take the next line that it printed."""
        if line.strip():
            self._lines.append(line[:_LINE].rstrip())

    def quote(self, *, private: bool, killed: bool) -> str:
        """Return the line that says most, without paths, addresses and tokens; empty where there is none to quote.

        Args:
            private: the child has seen prompts: of an exception only the kind is told.
            killed: a signal ended it: what it printed before need not be about that, unless a runtime printed it.
        """
        if killed:
            line = self._native()
        elif private:
            kind = _TYPE.match(self._exception())
            line = kind[0] if kind else self._native()
        else:
            line = self._exception() or self._last()
        return printable(without_paths(line), MAX_NAME)

    def _native(self) -> str:
        lines = [line.strip() for line in self._lines][-_NATIVE_LINES:]
        return next((line for line in reversed(lines) if _NATIVE.match(line)), "")

    def _exception(self) -> str:
        """The line of the last exception that got away; a library's own advice may follow it."""
        lines = list(self._lines)
        for index in range(len(lines) - 1, -1, -1):
            if lines[index] == _TRACEBACK:
                after = (line for line in lines[index + 1 :] if not line[0].isspace())
                first = next(after, "")
                # Some libraries begin their explanation on the next line.
                return "" if first.endswith(":") else first
        return ""

    def _last(self) -> str:
        # C++ indents the reason.
        telling = (line.strip() for line in reversed(self._lines) if not line.lstrip().startswith(_NOISE))
        return next(telling, "")


def without_paths(text: str) -> str:
    """Return a text in which of each absolute path only the last part is left, of each address only its scheme."""
    text = _WORD.sub(lambda word: _without_address(word[0]), text)
    text = _QUOTED_PATH.sub(lambda quoted: quoted[0][0] + _last_part(quoted[0][1:-1]) + quoted[0][0], text)
    text = _PATH_CHARACTERS.sub(lambda word: _without_path(word[0]), text)
    return _TOKEN.sub("…", text)


def _without_address(word: str) -> str:
    before, mark, _ = word.partition(":/")
    # The longest scheme that is registered has some twenty characters.
    return f"{before}:…" if mark and _SCHEME.search(before[-20:]) else word


def _without_path(word: str) -> str:
    for index, character in enumerate(word):
        begins = character == "/" or word.startswith("~/", index)
        if begins and not (index and (word[index - 1].isalnum() or word[index - 1] in "_.~/")):
            return word[:index] + _last_part(word[index:])
    return word


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path
