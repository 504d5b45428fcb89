"""JSON of ``/api/v1/models``: a model, its rules and its status, as clients see them; fields only."""

from collections.abc import Mapping
from typing import Any, Literal

import attrs

ModelStatusName = Literal["not_downloaded", "downloading", "ready", "loading", "loaded", "error"]


@attrs.frozen(kw_only=True)
class ModelConfig:
    """The rules of a model."""

    base_arch: str
    supports_guidance: bool
    max_sequence_length: int


@attrs.frozen(kw_only=True)
class ModelResponse:
    """One model of the catalog."""

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    config: ModelConfig
    downloaded: bool
    size_gb: float | None
    size_source: Literal["measured", "computed"] | None
    """Whether the files were weighed, or the size follows from the shapes of the parameters."""
    description: str
    base: str
    """The alias whose architecture and rules it has."""
    revision: str | None
    quantization: Literal["none", "stored", "runtime"]
    bits: int | None
    licence: str
    gated: bool
    default_steps: int
    default_guidance: float
    native_size: tuple[int, int]


@attrs.frozen(kw_only=True)
class ModelList:
    """``GET /api/v1/models``."""

    models: tuple[ModelResponse, ...]
    disk_free_gb: float | None
    """Gigabytes (10^9 bytes) that are left where models are downloaded to."""


@attrs.frozen(kw_only=True)
class ModelStatus:
    """``GET /api/v1/models/{model_id}/status``; keys that do not apply are null."""

    model: str
    status: ModelStatusName
    downloaded: bool
    loaded: bool
    size_gb: float | None
    path: str | None
    commit: str | None
    """The repository's commit that is on disk."""
    percent: float | None
    """How much of the download under way is done."""
    bytes_done: int | None
    """Bytes of the download under way that have arrived."""
    bytes_total: int | None
    """Bytes of the download under way in all."""
    bytes_per_second: float | None
    """Speed of the download under way."""
    eta_seconds: float | None
    """Seconds until the download under way is done."""
    error: str | None
    """Why the last download failed, as a sentence."""
    code: str | None
    """Code of the error with which the last download failed."""
    details: Mapping[str, Any] | None
    """Details of the error with which the last download failed."""
