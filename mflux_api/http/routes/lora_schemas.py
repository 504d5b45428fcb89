"""JSON of ``/api/v1/loras``: a LoRA as clients see it; fields only."""

from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class LoraResponse:
    """One LoRA file; its name is what ``lora_files`` takes."""

    name: str
    size_bytes: int
    modified_at: str
    format: Literal["lora", "lokr", "loha", "dora", "unknown"] | None
    """How its layers are written; this and what follows is null until the header was read: ask again."""
    rank: int | None
    """Its most frequent one, and null where its factors are whole matrices."""
    base: str | None
    """The model that it was trained on, where its metadata says so."""
    layers: int | None
    """Layers of a transformer that it names."""
    layers_understood: int | None
    """How many of them have names that are known here; where it is less than half, jobs that name it fail."""
    text_encoder_layers: int | None
    """Layers of a text encoder, which have no effect here."""
    unknown: tuple[str, ...]
    """Up to three of its names that are not known."""
    problem: str | None
    """Why its header cannot be read, as a clause."""


@attrs.frozen(kw_only=True)
class DeletedLora:
    """The answer to ``DELETE /api/v1/loras/{name}``."""

    name: str
    """Its name in the list, where it is no more."""
    deleted: bool = True


@attrs.frozen(kw_only=True)
class SkippedLora:
    """Something in ``lora.dirs`` that no request can name."""

    name: str
    """What no text can hold is escaped: ``\\xff`` for a byte that is not UTF-8."""
    reason: str
    """A clause that says why, and what to do."""


@attrs.frozen(kw_only=True)
class LoraList:
    """``GET /api/v1/loras``."""

    loras: tuple[LoraResponse, ...]
    skipped: tuple[SkippedLora, ...]
    """The first 100 of those that are left out."""
    skipped_total: int
