"""What the tools answer with: structured, in a few words, and with images within their limits."""

from collections.abc import Sequence
from typing import Any

import attrs
import mcp_types as types
import msgspec

from mflux_api.errors import ServiceError
from mflux_api.mcp.backend import Backend, JobState, ModelState, Unreachable
from mflux_api.mcp.files import Link, Links
from mflux_api.mcp.shown_images import MAX_IMAGES, Shown, show_image


@attrs.frozen(kw_only=True)
class ImageAnswer:
    """One finished image."""

    seed: int
    """With this seed and the same arguments it is made again."""
    path: str | None
    """The PNG file on this machine; null where it could not be read or written."""
    uri: str | None
    """The same as a resource."""


@attrs.frozen(kw_only=True)
class JobAnswer:
    """A job, and its images once it is completed."""

    job_id: str
    status: str
    """queued, generating, completed, failed or cancelled."""
    model: str
    progress: float
    """0 to 1."""
    stage: str | None
    """What is being done for it now."""
    position: int | None
    """Its place in the queue, from 1."""
    eta_seconds: float | None
    """Seconds until it is done, where that is known."""
    seconds: float | None
    """How long it took."""
    images: tuple[ImageAnswer, ...]
    error: str | None
    """Why it failed, and what to do."""
    code: str | None
    warnings: tuple[str, ...]
    """Sentences about what was asked for and not done; empty as a rule."""


@attrs.frozen(kw_only=True)
class ModelsAnswer:
    """The models."""

    default: str | None
    """What a request without a model runs on; null where the server does not say."""
    models: tuple[ModelState, ...]


def schema_of_answer(kind: type[Any]) -> dict[str, Any]:
    """Return the JSON schema of an answer: every field is there."""
    _, components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    for component in components.values():
        component["required"] = list(component["properties"])
    own: dict[str, Any] = components.pop(kind.__name__)
    return own | ({"$defs": dict(components)} if components else {})


def result(
    answer: JobAnswer | ModelsAnswer, text: str, more: Sequence[types.ContentBlock] = ()
) -> types.CallToolResult:
    """Return an answer in both forms."""
    return types.CallToolResult(
        content=[types.TextContent(text=text), *more], structured_content=msgspec.to_builtins(answer)
    )


def error_result(sentence: str) -> types.CallToolResult:
    """Return an error that an assistant reads."""
    return types.CallToolResult(content=[types.TextContent(text=sentence)], is_error=True)


async def job_result(
    backend: Backend, links: Links, job: JobState, shown: Shown, *, seconds: float | None = None
) -> types.CallToolResult:
    """Return a job, with its images where it is completed.

    Args:
        backend: has the images.
        links: what the client can read.
        job: the job.
        shown: how its images are put into the answer.
        seconds: how long the call took, where it waited for the job.
    """
    images, blocks, warnings = list[ImageAnswer](), list[types.ContentBlock](), list(job.warnings)
    for index, seed in enumerate(job.seeds if job.status == "completed" else ()):
        link: Link | None = None
        try:
            link = await links.add(await backend.file(job, index))
            blocks.append(_resource_link(link, seed))
            if index < MAX_IMAGES:
                blocks += await _content(backend, job, index, shown, warnings)
        except (ServiceError, Unreachable) as error:
            warnings.append(f"Image {index + 1} (seed {seed}): {error}")
        except OSError as error:
            why = (error.strerror or "it is gone").lower()
            warnings.append(f"Image {index + 1} (seed {seed}): its file cannot be used ({why})")
        uri, path = (None, None) if link is None else (link.uri, str(link.path))
        images.append(ImageAnswer(seed=seed, path=path, uri=uri))
    if len(images) > MAX_IMAGES and shown != "none":
        warnings.append(f"{MAX_IMAGES} of {len(images)} images are in this answer; all have files")
    answer = JobAnswer(
        job_id=job.id,
        status=job.status,
        model=job.model,
        progress=job.progress,
        stage=job.stage,
        position=job.position,
        eta_seconds=job.eta_seconds,
        seconds=job.seconds if seconds is None else round(seconds, 2),
        images=tuple(images),
        error=None if job.error is None else job.error.message,
        code=None if job.error is None else job.error.code,
        warnings=tuple(warnings),
    )
    return result(answer, _words(answer), blocks)


async def _content(
    backend: Backend, job: JobState, index: int, shown: Shown, warnings: list[str]
) -> list[types.ContentBlock]:
    image = await show_image(lambda target: backend.image(job, index, target), shown)
    if image is None:
        return []
    warnings += [image.warning] * bool(image.warning)
    return [types.ImageContent(data=image.data, mime_type=image.media_type)]


def _resource_link(link: Link, seed: int) -> types.ResourceLink:
    return types.ResourceLink(
        name=link.path.name, uri=link.uri, mime_type="image/png", size=link.size, description=f"seed {seed}"
    )


def _words(answer: JobAnswer) -> str:
    lines = [f"Job {answer.job_id} on {answer.model} is {answer.status}"]
    if answer.seconds is not None:
        lines[0] += f" after {answer.seconds:g} s"
    if answer.stage is not None:
        place = "" if answer.position is None else f", place {answer.position} in the queue"
        eta = "" if answer.eta_seconds is None else f", about {answer.eta_seconds:.0f} s left"
        lines[0] += f": {answer.stage}, {answer.progress:.0%} done{place}{eta}"
    lines += [f"{image.path or 'no file'} (seed {image.seed})" for image in answer.images]
    if answer.error is not None:
        lines.append(f"Error: {answer.error} ({answer.code})")
    lines += [f"Warning: {warning}" for warning in answer.warnings]
    return "\n".join(lines)


def models_result(models: Sequence[ModelState]) -> types.CallToolResult:
    """Return the table of models."""
    lines = [
        f"{model.name}{' (default)' if model.default else ''}: {model.kind}, "
        f"{'on disk' if model.downloaded else 'not on disk'}"
        f"{'' if model.size_gb is None else f', {model.size_gb:g} GB'}, {model.licence}; {model.description}"
        for model in models
    ]
    default = next((model.name for model in models if model.default), None)
    return result(ModelsAnswer(default=default, models=tuple(models)), "\n".join(lines))
