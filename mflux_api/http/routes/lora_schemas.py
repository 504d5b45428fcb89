"""JSON of ``/api/v1/loras``: a LoRA as clients see it; fields only."""

import attrs


@attrs.frozen(kw_only=True)
class LoraResponse:
    """One LoRA file; its name is what ``lora_files`` takes."""

    name: str
    size_bytes: int
    modified_at: str


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
