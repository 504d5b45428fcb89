"""Which jobs a search finds, by what was asked for: pure values, the same for every storage."""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TypeVar

import attrs
import msgspec

from mflux_api.jobs.job import Job, Status

MAX_QUERY = 500
"""Characters of what is looked for in prompts."""
MAX_NAME = 512
"""Characters of a model's or a LoRA's name that is looked for."""
_SUFFIX = ".safetensors"

T = TypeVar("T")


class StoredFields(msgspec.Struct):
    """What a search looks at of a stored request; a row of an older version may lack the rest."""

    prompt: str = ""
    model: str = ""
    lora_files: tuple[str, ...] = ()
    image_strength: float | None = None
    resolution: int | None = None
    """Set for an upscaler."""


_DECODER = msgspec.json.Decoder(StoredFields)


@attrs.frozen(kw_only=True)
class JobFilter:
    """What a job has to be like; without any condition every job is."""

    words: tuple[str, ...] = attrs.field(default=(), repr=False)
    """Parts of the prompt, as :func:`fold` returns them; all of them have to be there."""
    model: str | None = None
    """The alias that the job runs on."""
    lora: str | None = None
    """The name of one of its LoRA files, with or without its folder and ``.safetensors``."""
    statuses: tuple[Status, ...] = ()
    """Any of these; without one, all."""
    edit: bool | None = None
    """Whether it was made from an image."""

    def takes(self, job: Job) -> bool:
        """Whether a job is found."""
        request = job.request
        return (not self.statuses or job.status in self.statuses) and self._takes(
            StoredFields(
                prompt=request.prompt,
                model=request.model,
                lora_files=request.lora_files,
                image_strength=request.image_strength,
                resolution=None if request.upscaling is None else request.upscaling.resolution,
            )
        )

    def may_take(self, request: str | bytes) -> bool:
        """Whether a job with such a stored request may be found: a quick look, which passes what it cannot read."""
        try:
            return self._takes(_DECODER.decode(request))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return True

    def _takes(self, request: StoredFields) -> bool:
        if self.model is not None and request.model != self.model:
            return False
        edit = request.image_strength is not None or request.resolution is not None
        if self.edit not in (None, edit):
            return False
        if self.lora is not None and not any(self.lora in _names(file) for file in request.lora_files):
            return False
        prompt = fold(request.prompt) if self.words else ""
        return all(word in prompt for word in self.words)


def fold(text: str) -> str:
    """Return a text so that two that differ in case only, or in how an accent is written, are the same."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def fold_words(query: str) -> tuple[str, ...]:
    """Return the words of a query, each once."""
    return tuple(dict.fromkeys(fold(query).split()))


def choose(looked: Sequence[tuple[int, T]], found: Iterable[int], *, limit: int, rows: int) -> "Chosen":
    """Return what of a stretch of the list is on its page.

    Args:
        looked: the numbers that were looked at, newest first.
        found: those of them that match; as many are taken as are needed.
        limit: how many may be on the page.
        rows: how many may be looked at: where it were fewer, there are no more.
    """
    numbers = list(islice(found, limit + 1))
    if len(numbers) > limit:
        return Chosen(numbers=tuple(numbers[:limit]), last=numbers[limit - 1])
    return Chosen(numbers=tuple(numbers), last=looked[-1][0] if len(looked) >= rows else None)


@attrs.frozen(kw_only=True)
class Chosen:
    """A page of a search, by the jobs' numbers."""

    numbers: tuple[int, ...]
    last: int | None
    """The number below which the search goes on; ``None`` at the end of the list."""


def _names(file: str) -> tuple[str, ...]:
    base = file.rpartition("/")[2]
    return file, file.removesuffix(_SUFFIX), base, base.removesuffix(_SUFFIX)
