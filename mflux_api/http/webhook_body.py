"""What a webhook sends: the finished job as ``GET /api/v1/jobs/{id}`` shows it, with URLs in place of images."""

from typing import Final

from mflux_api.access.access import SharedAccess
from mflux_api.gateway.jobs import JobView
from mflux_api.http.render import image_parameters, image_path, job_with_images
from mflux_api.http.responses import to_json
from mflux_api.http.security.tokens import Tokens
from mflux_api.jobs.job import Job

URL_SECONDS: Final = 24 * 3600.0
"""For which an image's URL is good without a key; each attempt has fresh ones."""


class WebhookBodies:
    """Makes bodies. The images of a key's job have signed paths, which can be read without the key for a while."""

    def __init__(self, access: SharedAccess, base: str) -> None:
        """Take the keys, and what receivers call this server; a path alone, or nothing, gives them paths."""
        self._access = access
        self._base = base.rstrip("/")
        self._tokens: Tokens | None = None

    async def __call__(self, job: Job) -> bytes:
        """Return a finished job as JSON."""
        access = await self._access.get()
        if self._tokens is None:
            self._tokens = Tokens(access)
        # Of a key that is gone the paths stay unsigned: they need one of those that there are.
        key = next((each for each in access.keys.keys if each.owner == job.owner), None)
        urls = [
            self._base + await self._tokens.sign_path(image_path(job, index), image_parameters(job), key, URL_SECONDS)
            for index in range(len(job.images))
        ]
        return to_json(job_with_images(JobView(job=job, live=None), urls))
