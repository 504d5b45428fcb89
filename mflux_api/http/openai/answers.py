"""A finished job as OpenAI's clients read it."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from msgspec import UNSET, UnsetType

from mflux_api.http.forwarded import external_base
from mflux_api.http.held import held
from mflux_api.http.openai.call import Call
from mflux_api.http.openai.schemas import ImageItem, ImagesAnswer, InputTokens, Usage
from mflux_api.http.render import ROOM_SECONDS, Renderer, image_parameters, image_path, with_images
from mflux_api.http.responses import Answer, to_json
from mflux_api.http.security.guard import caller, tokens
from mflux_api.jobs.job import Job

URL_SECONDS: Final = 3600.0
_PIXELS_PER_TOKEN: Final = 256
_BYTES_PER_TOKEN: Final = 4


class Answers:
    """Renders the answers of one app."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def whole(self, call: Call, job: Job) -> Answer:
        """Return a job's images in one object, base64 or URLs."""
        urls = [await self._url(job, index) if call.wants_urls else UNSET for index in range(len(job.images))]

        def build(marks: Sequence[str | UnsetType]) -> ImagesAnswer:
            items = zip(marks, urls, job.images, strict=True)
            return _answer(call, job, [ImageItem(b64_json=b64, url=url, seed=each.seed) for b64, url, each in items])

        if not call.wants_base64:
            return Answer((to_json(build([UNSET] * len(urls))),))
        return with_images(build, await self.images(job, held().stack))

    async def images(self, job: Job, kept: ExitStack) -> list[bytearray]:
        """Return a job's images as base64 in the format that it was asked for.

        Args:
            job: a finished job.
            kept: keeps them in memory until it is closed.
        """
        return await self._renderer.images(job, kept, wait_seconds=ROOM_SECONDS)

    async def _url(self, job: Job, index: int) -> str:
        path, parameters = image_path(job, index), image_parameters(job)
        return external_base() + await tokens().sign_path(path, parameters, caller().key, URL_SECONDS)


def size_of(job: Job) -> str:
    """Return the size of a job's images."""
    width, height = job.request.result_size
    return f"{width}x{height}"


def usage_of(job: Job, references: int) -> Usage:
    """Return what went into a job, and came out, as tokens: the model's own for pixels.

    Args:
        job: a finished job.
        references: how many images were given; each is brought to about the size of the result.
    """
    width, height = job.request.size
    each = width * height // _PIXELS_PER_TOKEN
    text = -(-len(job.request.prompt.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)
    details = InputTokens(text_tokens=text, image_tokens=each * references)
    came, went = details.text_tokens + details.image_tokens, each * len(job.images)
    return Usage(input_tokens=came, output_tokens=went, total_tokens=came + went, input_tokens_details=details)


def _answer(call: Call, job: Job, items: Sequence[ImageItem]) -> ImagesAnswer:
    return ImagesAnswer(
        created=int((job.completed_at or job.created_at).timestamp()),
        data=tuple(items),
        output_format=call.output_format,
        quality=call.quality,
        size=size_of(job),
        usage=usage_of(job, len(call.request.init_images)),
        warnings=job.warnings,
    )
