"""Every error a client can see: one flat tree, each class with its code and HTTP status.

The HTTP layer, the job rows and the error table in ``docs/api.md`` are all made from these classes.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar


class ServiceError(Exception):
    """An error with a code, a sentence that says what to do next, and details for a program.

    The message never holds a prompt, a traceback or an absolute path.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    status: ClassVar[int] = 500
    retry_after: ClassVar[int | None] = None
    """Seconds after which the same request may succeed; sent as ``Retry-After``."""

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, Any] = MappingProxyType(dict(details or {}))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, dict(self.details))


class InvalidJSON(ServiceError):
    """The body is not JSON, or not a JSON object."""

    code, status = "INVALID_JSON", 400


class InvalidHTTP(ServiceError):
    """The bytes are not an HTTP request; 431 where its headers are too long, 501 for an unknown Transfer-Encoding."""

    code, status = "INVALID_HTTP", 400


class InvalidParameter(ServiceError):
    """A field is missing, of the wrong type or outside its limits (details: field, value, limit)."""

    code, status = "INVALID_PARAMETER", 400

    @classmethod
    def for_field(
        cls, field: str, problem: str, *, value: Any = None, limit: Any = None, **details: Any
    ) -> "InvalidParameter":
        """Return the error for one field.

        Args:
            field: what the client calls it.
            problem: completes the sentence that begins with the field's name in quotes.
            value: what it held, where that is short and not a prompt.
            limit: what was expected.
            details: whatever else a program may want to know.
        """
        return cls(f"'{field}' {problem}", {"field": field, "value": value, "limit": limit, **details})


class InvalidModel(ServiceError):
    """A generation request names a model that does not exist (details: model, available_models)."""

    code, status = "INVALID_MODEL", 400

    def __str__(self) -> str:
        """The message, and the names that there are: what a Python program shows of an exception is its text."""
        names = ", ".join(map(str, self.details.get("available_models", ())))
        asked = self.details.get("model")
        return f"{self.message}: '{asked}'; the names are {names}" if names else self.message


class ModelNotDownloaded(ServiceError):
    """The model is not on disk and automatic download is off."""

    code, status = "MODEL_NOT_DOWNLOADED", 400


class ModelNotDeletable(ServiceError):
    """The model's files were not put there by this service."""

    code, status = "MODEL_NOT_DELETABLE", 400


class LoraNotDeletable(ServiceError):
    """The LoRA's file lies outside of ``lora.dirs``, or behind a link to a folder."""

    code, status = "LORA_NOT_DELETABLE", 400


class Unauthorized(ServiceError):
    """The request carries no valid API key."""

    code, status = "UNAUTHORIZED", 401


class TooManyWrongKeys(Unauthorized):
    """Its address sent so many wrong keys that this one is not even slowed any more."""

    retry_after = 60


class Forbidden(ServiceError):
    """The API key lacks the scope that this needs (details: scope)."""

    code, status = "FORBIDDEN", 403


class HostNotAllowed(ServiceError):
    """The Host header names a host that is neither this machine's nor in ``security.allowed_hosts``."""

    code, status = "HOST_NOT_ALLOWED", 403


class OriginNotAllowed(ServiceError):
    """A web page of another origin may not ask for this, unless ``server.cors_origins`` lists it by name."""

    code, status = "ORIGIN_NOT_ALLOWED", 403


class NotFound(ServiceError):
    """No route has this path."""

    code, status = "NOT_FOUND", 404


class ModelNotFound(ServiceError):
    """A path names an unknown model, or a request names a Flux1 model."""

    code, status = "MODEL_NOT_FOUND", 404


class LoraNotFound(ServiceError):
    """A path names a LoRA that ``GET /api/v1/loras`` does not list."""

    code, status = "LORA_NOT_FOUND", 404


class JobNotFound(ServiceError):
    """No job has this id."""

    code, status = "JOB_NOT_FOUND", 404


class ImageNotFound(ServiceError):
    """The job has no image of that number, or not yet (details: images, how many it has)."""

    code, status = "IMAGE_NOT_FOUND", 404


class MethodNotAllowed(ServiceError):
    """The path exists, but not for this method."""

    code, status = "METHOD_NOT_ALLOWED", 405


class RequestTimeout(ServiceError):
    """The request's head took too long, or its body came too slowly."""

    code, status = "REQUEST_TIMEOUT", 408


class IdempotencyConflict(ServiceError):
    """The ``Idempotency-Key`` was used before with another body."""

    code, status = "IDEMPOTENCY_CONFLICT", 409


class ModelInUse(ServiceError):
    """The model is leased by a running job."""

    code, status = "MODEL_IN_USE", 409


class LoraInUse(ServiceError):
    """A job that waits or runs names the LoRA (details: name, jobs)."""

    code, status = "LORA_IN_USE", 409


class JobCancelled(ServiceError):
    """Another client cancelled the job of this synchronous call."""

    code, status = "JOB_CANCELLED", 409


class JobGone(ServiceError):
    """The job existed and was removed by retention."""

    code, status = "JOB_GONE", 410


class ImageGone(ServiceError):
    """The image's file was removed from disk."""

    code, status = "IMAGE_GONE", 410


class BodyTooLarge(ServiceError):
    """The request's body is over the limit."""

    code, status = "BODY_TOO_LARGE", 413


class UnsupportedEncoding(ServiceError):
    """The body's ``Content-Encoding`` is neither ``gzip`` nor ``deflate`` (details: encoding, supported)."""

    code, status = "UNSUPPORTED_ENCODING", 415


class TooManyJobs(ServiceError):
    """The caller's jobs take its share of the queue (details: queued, limit), or of the room for init images."""

    code, status, retry_after = "TOO_MANY_JOBS", 429, 5


class TooManyDeliveries(ServiceError):
    """Too many webhooks of the caller, or of all, are still to be delivered (details: pending, limit)."""

    code, status, retry_after = "TOO_MANY_DELIVERIES", 429, 60


class TooManyConnections(ServiceError):
    """One address, or key, has all the connections, streams, uploads or resizing calls open that one may have."""

    code, status, retry_after = "TOO_MANY_CONNECTIONS", 429, 5


class GenerationFailed(ServiceError):
    """The engine reported an error for this job."""

    code, status = "GENERATION_FAILED", 500


class EngineCrashed(ServiceError):
    """The engine process died with this job inside, on every attempt."""

    code, status = "ENGINE_CRASHED", 500


class ServerCrashed(ServiceError):
    """The server died repeatedly with this job inside."""

    code, status = "SERVER_CRASHED", 500


class OutOfMemory(ServiceError):
    """The model or the image does not fit in memory."""

    code, status = "OOM_ERROR", 500


class InternalError(ServiceError):
    """A defect in the service."""

    code, status = "INTERNAL_ERROR", 500


class NotYetSupported(ServiceError):
    """A route that clients of other servers know, for what no model here can do."""

    code, status = "NOT_YET_SUPPORTED", 501


class QueueFull(ServiceError):
    """``scheduler.max_queue`` jobs are waiting already, or init images of ``scheduler.max_inputs_gb``."""

    code, status, retry_after = "QUEUE_FULL", 503, 5


class ServerBusy(ServiceError):
    """All that requests share is taken: memory (`server.max_in_flight_mb`), connections, the decoder, a slow disk."""

    code, status, retry_after = "SERVER_BUSY", 503, 5


class ShuttingDown(ServiceError):
    """The service is draining and takes no new work."""

    code, status, retry_after = "SHUTTING_DOWN", 503, 5


class ServiceRestarting(ServiceError):
    """The part that held this request was restarted by its supervisor."""

    code, status, retry_after = "SERVICE_RESTARTING", 503, 1


class EngineUnavailable(ServiceError):
    """The engine process fails to start (details: reason, the last thing that it said)."""

    code, status, retry_after = "ENGINE_UNAVAILABLE", 503, 10

    @classmethod
    def because(cls, reason: str) -> "EngineUnavailable":
        """Return the error for an engine that is not up.

        Args:
            reason: why, as a clause without paths; may be empty.
        """
        why = f" ({reason})" if reason else ""
        message = f"The engine does not start{why}; try again later, or see GET /api/v1/health and the log"
        return cls(message, {"reason": reason})


class ModelGated(ServiceError):
    """The model's licence has to be accepted first."""

    code, status = "MODEL_GATED", 503


class DownloadFailed(ServiceError):
    """The model could not be downloaded."""

    code, status, retry_after = "DOWNLOAD_FAILED", 503, 30


class DiskFull(ServiceError):
    """There is no space left to keep the result."""

    code, status, retry_after = "DISK_FULL", 503, 30


def all_errors() -> tuple[type[ServiceError], ...]:
    """Every concrete error class, ordered by status, then code."""
    return tuple(sorted(ServiceError.__subclasses__(), key=lambda error: (error.status, error.code)))


def by_code(code: str) -> type[ServiceError]:
    """Return the class for a code; :class:`InternalError` for one this version does not know."""
    return next((error for error in all_errors() if error.code == code), InternalError)


class ConfigError(Exception):
    """The configuration is unusable; the message names the file, the key and what was expected."""


class ServiceFailed(Exception):
    """A part of the supervision tree kept failing, and restarting it did not help."""


_LARGEST_SHOWN = 10**20
"""Larger numbers may have thousands of digits."""


def shorten_value(value: Any) -> Any:
    """Return a client's value for the details of an error, cut so that the error stays small."""
    if isinstance(value, str):
        return value if len(value) <= 64 else value[:64] + "…"
    if isinstance(value, int) and abs(value) > _LARGEST_SHOWN:
        return "int"
    if value is None or isinstance(value, bool | int | float):
        return value
    return type(value).__name__
