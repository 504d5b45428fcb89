"""JSON of ``/api/v1/loras``: a LoRA as clients see it; fields only."""

import attrs


@attrs.frozen(kw_only=True)
class LoraResponse:
    """One LoRA file; its name is what ``lora_files`` takes."""

    name: str
    size_bytes: int
    modified_at: str


@attrs.frozen(kw_only=True)
class LoraList:
    """``GET /api/v1/loras``."""

    loras: tuple[LoraResponse, ...]
