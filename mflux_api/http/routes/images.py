"""``/api/v1/jobs/{id}/images/{n}``: finished images as files, in the format and the size that is asked for."""

from quart import Blueprint, Response, request

from mflux_api.access.keys import Scope
from mflux_api.errors import ImageGone, ImageNotFound, InvalidParameter, JobGone, JobNotFound, ServerBusy
from mflux_api.gateway.gateway import Gateway
from mflux_api.http.held import held
from mflux_api.http.operations import Operation, path_parameter, query_parameter
from mflux_api.http.query import invalid_parameter, number, number_parameter
from mflux_api.http.responses import file_answer
from mflux_api.http.security.guard import caller
from mflux_api.images.encode import MEDIA_TYPES, ImageFormat, ImageTarget
from mflux_api.ipc.printable import printable
from mflux_api.jobs.job import Job, StoredImage

MIN_SIDE, MAX_SIDE = 16, 2048

OPERATIONS = (
    Operation(
        method="get",
        path="/api/v1/jobs/{job_id}/images/{index}",
        summary="One finished image as a file, as it is or converted",
        scope=Scope.READ,
        parameters=(
            path_parameter("job_id"),
            path_parameter("index", {"type": "integer", "minimum": 0}),
            query_parameter("format", {"enum": list(MEDIA_TYPES)}, "png by default"),
            query_parameter(
                "size",
                {"type": "integer", "minimum": MIN_SIDE, "maximum": MAX_SIDE},
                "The longer side in pixels, for a thumbnail; an image is never made larger",
            ),
            query_parameter("quality", {"type": "integer", "minimum": 0, "maximum": 100}, "Of jpeg and webp; 92"),
        ),
        content={media: {} for media in MEDIA_TYPES.values()},
        bodiless={"304": "If-None-Match names the image's ETag"},
        errors=(JobNotFound, JobGone, ImageNotFound, ImageGone, InvalidParameter, ServerBusy),
    ),
)


def blueprint(gateway: Gateway) -> Blueprint:
    """Build the routes."""
    routes = Blueprint("images", __name__, url_prefix="/api/v1")

    @routes.get("/jobs/<job_id>/images/<index>")
    async def image(job_id: str, index: str) -> Response:
        job = (await gateway.job(job_id, visible=caller().sees)).job
        found, target = _image(job, index), _target()
        etag = f"{found.sha256[:32]}-{_tag(target)}"
        if etag in request.if_none_match:
            response = Response(b"", status=304)
        else:
            held().answer.grow(await gateway.image_size(found))
            data = await gateway.image_as(found, target, caller=caller().owner)
            response = file_answer(data, MEDIA_TYPES[target.format])
        response.set_etag(etag)
        response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
        return response

    return routes


def _target() -> ImageTarget:
    wanted = request.args.get("format") or "png"
    kind: ImageFormat | None = next((known for known in MEDIA_TYPES if known == wanted), None)
    if kind is None:
        raise invalid_parameter("format", wanted, ", ".join(MEDIA_TYPES))
    quality, side = number_parameter("quality", 0, 100), number_parameter("size", MIN_SIDE, MAX_SIDE)
    return ImageTarget(format=kind, side=side, quality=None if kind == "png" else quality)


def _tag(target: ImageTarget) -> str:
    """Return what tells the conversions of one image apart."""
    side = "" if target.side is None else f"-{target.side}"
    return target.format + side + ("" if target.quality is None else f"-q{target.quality}")


def _image(job: Job, text: str) -> StoredImage:
    """Return an image by its number in a path.

    Raises:
        ImageNotFound: the job has none of that number.
    """
    index = number(text)
    if index is not None and index < len(job.images):
        return job.images[index]
    count = len(job.images)
    so_far = "" if job.status.terminal else " so far"
    has = f"{count} image(s){so_far}, numbered from 0" if count else f"no images{so_far}"
    raise ImageNotFound(f"Job '{job.id}' has no image '{printable(text, 32)}'; it has {has}", {"images": count})
