"""What a client is told of fields that are not known: their names, never their values, and what was probably meant."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw

from mflux_api.ipc.printable import printable

JSONBytes: TypeAlias = bytes | bytearray | memoryview | Raw

MAX_UNKNOWN_BYTES: Final = 64 * 1024
"""Unknown fields are named up to so many bytes of JSON, which takes 2 ms."""
MAX_QUOTES: Final = 4096
"""Beyond, they are named in a body of so few texts; else only their size is told."""
MAX_NAMES: Final = 20
"""Names that are told."""
MAX_SUGGESTIONS: Final = 8
"""Names that get a sentence of their own; the others share one."""
MAX_NAME_LENGTH: Final = 64

_LIKENESS = 0.7
"""Ratio of ``difflib`` from which a name is a misspelling: 'stpes' and 'steps' have 0.8. 20 names cost 4 ms."""

_OTHER_NAMES: Final[Mapping[str, str]] = {
    "batchsize": "num_images",
    "cfg": "guidance",
    "cfgscale": "guidance",
    "count": "num_images",
    "guidancescale": "guidance",
    "image": "init_images",
    "images": "init_images",
    "initimage": "init_images",
    **dict.fromkeys(
        ("lora", "loras", "loraname", "loranames", "lorapath", "lorapaths", "loramodel", "loramodels"), "lora_files"
    ),
    **dict.fromkeys(("lorascale", "loraweight", "loraweights", "lorastrength", "lorastrengths"), "lora_scales"),
    "maskimage": "mask",
    "modelname": "model",
    "n": "num_images",
    "niter": "num_images",
    "numinferencesteps": "steps",
    "sampler": "sampler_name",
    "samplingsteps": "steps",
    "scale": "upscale",
    "scaleloras": "lora_scales",
    "strength": "image_strength",
    "text": "prompt",
}
"""What other programs call our fields; letters alone."""

_NOT_MISSPELLED: Final = frozenset({"hiresfix", "outputformat", "saveimages", "sendimages", "softinpainting", "styles"})
"""Fields of other programs that look like ours and mean something else; letters alone."""

_ELSEWHERE: Final = frozenset({"init_images", "mask", "extend"})
"""Fields of edits, which other routes know."""
_EMPTY: Final = (b"[]", b"{}", b'""', b"[null]", b'[""]')
_LONGEST_EMPTY: Final = max(map(len, (*_EMPTY, b"null")))


class FieldName(NamedTuple):
    """A field, perhaps inside of another one."""

    name: str
    within: str = ""


def explain(names: Sequence[FieldName], known: Mapping[str, Iterable[str]], *, more: int = 0) -> tuple[str, ...]:
    """Return sentences about fields that are not known.

    Args:
        names: those fields.
        known: the names of those that are, by the field that they are inside of.
        more: how many unknown ones there are besides.
    """
    words = {within: {_letters(name): name for name in inside} for within, inside in known.items()}
    sentences, others = list[str](), list[str]()
    for field in names[:MAX_NAMES]:
        if not field.within and field.name in _ELSEWHERE:
            sentences.append(f"'{field.name}' has no effect here: send it to /sdapi/v1/img2img or /api/v1/generate")
            continue
        meant = _meant(field.name, words.get(field.within, {})) if len(sentences) < MAX_SUGGESTIONS else None
        shown = f"'{_whole(field.within, printable(field.name, MAX_NAME_LENGTH))}'"
        if meant is None:
            others.append(shown)
        else:
            sentences.append(f"{shown} is not known: did you mean '{_whole(field.within, meant)}'?")
    more += max(0, len(names) - MAX_NAMES)
    if others or more:
        listed = ", ".join(others) + (f" and {more} more" if more else "")
        one = len(others) + more == 1
        sentences.append(f"{listed} {'is' if one else 'are'} not known here, and {'was' if one else 'were'} ignored")
    return tuple(sentences)


def _whole(within: str, name: str) -> str:
    return f"{within}.{name}" if within else name


def _meant(name: str, words: Mapping[str, str]) -> str | None:
    if len(name) > MAX_NAME_LENGTH:
        return None
    letters = _letters(name)
    if letters in words:
        return words[letters]
    other = _OTHER_NAMES.get(letters)
    if other in words.values():
        return other
    if letters in _NOT_MISSPELLED:
        return None
    found = get_close_matches(letters, words, 1, _LIKENESS)
    return words[found[0]] if found else None


def _letters(name: str) -> str:
    """Return a name as all ways to write it have it: ``negativePrompt``, ``negative-prompt``."""
    return name.casefold().replace("_", "").replace("-", "").replace(" ", "")


class Unknown:
    """What is found in a body beyond the fields that are known: names, within limits."""

    def __init__(self) -> None:
        self._room = MAX_UNKNOWN_BYTES
        self._names: dict[FieldName, None] = {}
        self._more = 0
        self._known: dict[str, frozenset[str]] = {}
        self._sentences: dict[str, None] = {}

    def note(self, data: JSONBytes, known: frozenset[str], parts: Mapping[str, Raw], within: str = "") -> None:
        """Look at an object that has such fields.

        Args:
            data: its JSON.
            known: the names of its fields that are known.
            parts: what of them was found.
            within: the name of the field that it is the value of.
        """
        left = byte_count(data) - sum(map(byte_count, parts.values()))
        place = f" of '{within}'" if within else ""
        if left <= self._room:
            self._room -= left
        elif not isinstance(data, bytes | bytearray) or data.count(b'"') > MAX_QUOTES:
            self._say(f"{left // 2**10} KB of the body are in no field{place} that this endpoint knows")
            return
        try:
            found = msgspec.json.decode(data, type=dict[str, Raw])
            names = [name for name, value in found.items() if name not in known and not _is_absent(name, value)]
        except UnicodeDecodeError:
            self._say(f"The body has fields{place} whose names are not UTF-8")
            return
        self._known[within] = known
        for name in (FieldName(name, within) for name in names):
            if len(self._names) < MAX_NAMES:
                self._names[name] = None
            elif name not in self._names:
                self._more += 1

    def _say(self, what: str) -> None:
        self._sentences[f"{what}; they were ignored"] = None

    def warnings(self) -> tuple[str, ...]:
        """Return what is to be said of it."""
        return (*explain(tuple(self._names), self._known, more=self._more), *self._sentences)


def _is_absent(name: str, value: Raw) -> bool:
    """Whether a field is as good as absent: it is null, or one of edits' without an image."""
    if byte_count(value) > _LONGEST_EMPTY:
        return False
    text = bytes(value)
    return text == b"null" or (name in _ELSEWHERE and text in _EMPTY)


def byte_count(part: JSONBytes) -> int:
    """Return the size of some JSON."""
    return memoryview(part).nbytes
