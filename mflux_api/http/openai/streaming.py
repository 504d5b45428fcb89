"""OpenAI's event stream of a call: its images on the way, where they are asked for, then each finished one."""

import msgspec
from quart import Response

from mflux_api.http.openai.answers import Answers, size_of, usage_of
from mflux_api.http.openai.call import Call
from mflux_api.http.responses import Answer
from mflux_api.http.sse import CONTENT_TYPE, HEADERS, event
from mflux_api.jobs.job import Job


async def completed(answers: Answers, call: Call, job: Job) -> Answer:
    """Return the events of a job's finished images."""
    segments = list[bytes | bytearray]()
    for image in await answers.images(job):
        data = {
            "type": f"{call.prefix}.completed",
            "created_at": int((job.completed_at or job.created_at).timestamp()),
            "size": size_of(job),
            "quality": call.quality,
            "background": "opaque",
            "output_format": call.output_format,
            "warnings": job.warnings,
            "usage": msgspec.to_builtins(usage_of(job, len(call.request.init_images))),
            "b64_json": "",
        }
        head = msgspec.json.encode(data)
        # The image is not copied: it stands in the empty text at the end.
        segments += event(f"{call.prefix}.completed", "", Answer((head[:-2], image, b'"}'))).segments
    return Answer(tuple(segments))


def stream_headers(response: Response) -> Response:
    """Return a response as an event stream."""
    response.headers["Content-Type"] = CONTENT_TYPE
    response.headers.update(HEADERS)
    return response
