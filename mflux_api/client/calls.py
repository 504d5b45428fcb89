"""The routes of a server as calls: what is sent, and what the answer becomes. Nothing is sent here."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import attrs
import msgspec

from mflux_api.client import answers as a
from mflux_api.client.errors import UnexpectedAnswer
from mflux_api.errors import ServiceError, by_code
from mflux_api.jobs.request import GenerateRequest

T = TypeVar("T")

ANSWER_SECONDS = 60.0
"""What an answer may take that does no work; also how long a connection or a pause between two bytes may last."""
WORK_SECONDS = 600.0
"""What loading a large model may take."""


@attrs.frozen(kw_only=True)
class Call(Generic[T]):
    """One request, and the class of its answer."""

    method: str
    path: str
    """Below ``/api/v1/``."""
    answer: type[T]
    params: Mapping[str, Any] = attrs.field(factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    seconds: float = ANSWER_SECONDS
    repeatable: bool = False
    """Whether sending it twice does no more than once."""

    def read(self, base: str, status: int, content: bytes) -> T:
        """Return the answer.

        Raises:
            ServiceError: the server refuses; the class says why.
            UnexpectedAnswer: it is not the answer of such a server.
        """
        if status >= 400:
            raise refusal(base, status, content)
        if self.answer is bytes:
            return content  # type: ignore[return-value]
        try:
            return decode(content, self.answer)
        except msgspec.DecodeError:
            raise UnexpectedAnswer(base, None if status == 200 else status) from None


def decode(content: bytes | str, kind: type[T]) -> T:
    """Read JSON; fields that are not known are left out.

    Raises:
        msgspec.DecodeError: it is not JSON, or not of this kind.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None


def refusal(base: str, status: int, content: bytes) -> Exception:
    """Return the error that an answer stands for."""
    try:
        body = decode(content, _Refusal)
    except msgspec.DecodeError:
        return UnexpectedAnswer(base, status)
    error: ServiceError = by_code(body.code)(body.error, body.details)
    return error


@attrs.frozen(kw_only=True)
class _Refusal:
    error: str
    code: str
    details: Mapping[str, Any] = attrs.field(factory=dict)


def body_of(request: GenerateRequest) -> dict[str, Any]:
    """Return a request as JSON has it, with what differs from the defaults."""
    default = GenerateRequest()
    body = {}
    for field in attrs.fields(GenerateRequest):
        value = getattr(request, field.name)
        if value != getattr(default, field.name):
            body[field.name] = attrs.asdict(value) if attrs.has(type(value)) else value
    return body


def submit(request: GenerateRequest, key: str) -> Call[a.Submitted]:
    """Queue a job; the key makes it one job, however often this is sent."""
    headers = {"Idempotency-Key": key}
    return Call(
        method="POST", path="generate", answer=a.Submitted, json=body_of(request), headers=headers, repeatable=True
    )


def job(job_id: str) -> Call[a.Job]:
    """Return a job as it is now."""
    path = f"jobs/{segment(job_id)}"
    return Call(method="GET", path=path, answer=a.Job, params={"images": "url"}, repeatable=True)


def jobs(**conditions: Any) -> Call[a.JobPage]:
    """Return a page of the jobs that meet every condition that is not ``None``."""
    params = {name: _text(value) for name, value in conditions.items() if value is not None}
    return Call(method="GET", path="jobs", answer=a.JobPage, params=params, repeatable=True)


def cancel(job_id: str) -> Call[dict[str, Any]]:
    """Cancel a job."""
    return Call(method="DELETE", path=f"jobs/{segment(job_id)}", answer=dict, repeatable=True)


def cancel_all() -> Call[a.BulkCancel]:
    """Cancel every job that is not finished."""
    return Call(method="POST", path="jobs/cancel", answer=a.BulkCancel, json={"all": True}, repeatable=True)


def image(job_id: str, index: int, **options: Any) -> Call[bytes]:
    """Return one image of a job as a file."""
    params = {name: _text(value) for name, value in options.items() if value is not None}
    path = f"jobs/{segment(job_id)}/images/{index}"
    return Call(method="GET", path=path, answer=bytes, params=params, repeatable=True)


@attrs.frozen(kw_only=True)
class _Models:
    models: tuple[a.ModelInfo, ...]


def models() -> Call[_Models]:
    """List the models."""
    return Call(method="GET", path="models", answer=_Models, repeatable=True)


def model_status(model: str) -> Call[a.ModelStatus]:
    """Say where a model is."""
    return Call(method="GET", path=f"models/{segment(model)}/status", answer=a.ModelStatus, repeatable=True)


def model_action(model: str, action: str) -> Call[a.ModelStatus]:
    """Download, load or unload a model; loading answers when it is there."""
    path = f"models/{segment(model)}/{action}"
    return Call(method="POST", path=path, answer=a.ModelStatus, seconds=WORK_SECONDS)


def delete_model(model: str) -> Call[a.ModelStatus]:
    """Remove a model from the server's disk."""
    return Call(method="DELETE", path=f"models/{segment(model)}", answer=a.ModelStatus, seconds=WORK_SECONDS)


def loras() -> Call[a.LoraList]:
    """List the LoRAs."""
    return Call(method="GET", path="loras", answer=a.LoraList, repeatable=True)


def add_lora(name: str, *, overwrite: bool) -> Call[a.Lora]:
    """Add a LoRA; the file is sent with it."""
    params = {"name": name} | ({"overwrite": "true"} if overwrite else {})
    return Call(method="POST", path="loras", answer=a.Lora, params=params, seconds=WORK_SECONDS)


def delete_lora(name: str) -> Call[dict[str, Any]]:
    """Remove a LoRA."""
    path = "/".join(segment(part) for part in name.split("/"))
    return Call(method="DELETE", path=f"loras/{path}", answer=dict)


def queue() -> Call[a.Queue]:
    """Say what runs and what waits."""
    return Call(method="GET", path="queue", answer=a.Queue, repeatable=True)


def health() -> Call[a.Health]:
    """Say how the server is."""
    return Call(method="GET", path="health", answer=a.Health, repeatable=True)


def segment(text: str) -> str:
    """Return a name as a part of a path, which it does not lead out of."""
    return quote(text, safe="").replace(".", "%2E") if text in (".", "..") else quote(text, safe="")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
